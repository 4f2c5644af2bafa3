"""The Makefile, and what calls it: public CI, the hooks before a commit, the pages."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
RECIPES = {
    name: [line.strip() for line in recipe.splitlines()]
    for name, recipe in re.findall(r"(?m)^([a-z-]+):(?!=).*\n((?:\t.*\n)*)", MAKEFILE)
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CI = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]


def steps(job: str) -> list[dict[str, Any]]:
    return CI["jobs"][job]["steps"]


def test_make_takes_its_targets_for_commands():
    """Else a folder of the same name, such as `wheel`, would count as already made."""
    (phony,) = re.findall(r"(?m)^\.PHONY: (.*)$", MAKEFILE)
    assert set(phony.split()) == RECIPES.keys()


def test_ci_runs_what_anybody_can_run():
    """Every step is somebody's action or one command of the Makefile."""
    commands = {job: [step["run"] for step in steps(job) if "run" in step] for job in CI["jobs"]}
    assert commands == {"lint": ["make lint"], "tests": ["make test"], "wheel": ["make wheel"]}
    assert {command.removeprefix("make ") for each in commands.values() for command in each} <= RECIPES.keys()
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec make test"
    assert {"push", "pull_request"} <= CI[True].keys()  # YAML 1.1 reads `on` as a boolean


def test_ci_runs_on_every_python_that_is_claimed():
    floor = PROJECT["requires-python"].removeprefix(">=")
    claimed = {name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)}
    for job in ("tests", "wheel"):
        versions = CI["jobs"][job]["strategy"]["matrix"]["python-version"]
        assert versions == ["3.11", "3.12", "3.13", "3.14"]  # text: the number 3.10 would be 3.1
        assert versions[0] == floor and claimed <= set(versions)
        (asked,) = [step["with"]["python-version"] for step in steps(job) if "setup-python" in step.get("uses", "")]
        assert asked == "${{ matrix.python-version }}"


def test_hooks_check_what_lint_checks():
    hooks = [hook for repository in HOOKS for hook in repository["hooks"]]
    assert [repository["repo"] for repository in HOOKS] == ["local"]  # no tool of another version than .venv's
    entries = [hook["entry"].removesuffix(" --force-exclude").removeprefix(".venv/bin/") for hook in hooks]
    wanted = [re.sub(r"^\$\(BIN\)/|( --check)?( \.)?$", "", line) for line in RECIPES["lint"]]
    assert entries == wanted == ["ruff format", "ruff check", "pyright"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_commands_of_the_makefile(page: Path):
    named = re.findall(r"(?m)(?:^|`)make ([a-z]+)\b", page.read_text())
    assert set(named) <= RECIPES.keys()
