"""What the documentation tells people to type exists, and its configurations are well formed."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from robustq.cli import main
from tests.test_wheel import SOURCES

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
COMMAND = re.compile(r"\brobustq (?:--store \S+ )?([a-z]+)((?: +\S+)*)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_exists(page: Path):
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", page.read_text(), re.S))
    for name, rest in COMMAND.findall(re.sub(r"(?m)\s#.*$", "", blocks)):
        assert name in main.commands, f"{page.name}: robustq {name}"
        command = main.commands[name]
        if isinstance(command, click.Group):  # robustq db
            below = rest.split()[0]
            assert below in command.commands, f"{page.name}: robustq {name} {below}"
            command = command.commands[below]
        known = {option for parameter in command.params for option in parameter.opts}
        for option in re.findall(r"(?<=\s)--?[a-z][\w-]*", rest):
            assert option in known, f"{page.name}: robustq {name} {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page: Path):
    prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.S)  # in code brackets mean something else
    for target, heading in re.findall(r"\]\(([^)#:]*)(?:#([^):]+))?\)", prose):
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name}: {target}"
        assert not heading or heading in anchors(file), f"{page.name}: {target}#{heading}"


def anchors(page: Path) -> set[str]:
    """Headings as GitHub names them."""
    headings = re.findall(r"(?m)^#+ (.*)$", page.read_text())
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_slurm_script_is_a_script():
    subprocess.run(["bash", "-n", str(ROOT / "docs" / "clusters" / "slurm.sh")], check=True)


def test_the_container_copies_what_the_wheel_is_made_of():
    lines = (ROOT / "docs" / "clusters" / "Containerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(None, 1) for line in lines if line and not line.startswith("#")]
    assert [name for name, _ in steps if name not in ("COPY", "ARG")] == ["FROM", "RUN", "WORKDIR", "ENTRYPOINT", "CMD"]
    copied = [name for step, rest in steps if step == "COPY" for name in rest.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    assert set(copied) == set(SOURCES)  # of which test_wheel.py builds a wheel that works
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"/tmp/robustq\[(.*)\]", dict(steps)["RUN"])
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert json.loads(dict(steps)["ENTRYPOINT"]) == list(project["scripts"])
    assert CliRunner().invoke(main, json.loads(dict(steps)["CMD"])).exit_code == 0


def test_the_kubernetes_cluster_has_its_token_everywhere():
    found = yaml.safe_load((ROOT / "docs" / "clusters" / "kuberay.yaml").read_text())
    assert (found["apiVersion"], found["kind"]) == ("ray.io/v1", "RayCluster")
    groups = [found["spec"]["headGroupSpec"], *found["spec"]["workerGroupSpecs"]]
    for container in [container for group in groups for container in group["template"]["spec"]["containers"]]:
        names = {entry["name"] for entry in container["env"]}
        assert {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "ROBUSTQ_STORE", "ROBUSTQ_ARTIFACTS"} <= names


def test_the_checks_page_is_the_table():
    from robustlib.audit.explanations import CAUSES
    from robustlib.checks.thresholds import LIMITS

    text = (Path(__file__).parents[2] / "docs" / "checks.md").read_text()
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    assert set(rows) == set(LIMITS)
    for name, limit in LIMITS.items():
        cells = [cell.strip() for cell in rows[name].split("|")[2:6]]
        fails = "" if limit.fail is None else f"{limit.fail:g}"
        assert cells == [limit.meaning, f"{limit.warn:g}", fails, "yes" if limit.blocking else ""]
    assert all(f"- `{cause}`: {why} {mend}" in text for cause, (why, mend) in CAUSES.items())
