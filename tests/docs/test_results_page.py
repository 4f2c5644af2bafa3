"""docs/results.md runs as it stands, on a store that has what it asks for."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from robustq import cli
from robustq.jobs.results.api import results
from robustq.jobs.store.connection import open_store
from robustq.jobs.store.schema import sweep_job
from tests.cli.test_results_commands import make
from tests.helpers.fake_explanations import add_explanation, made_up_measures

PAGE = Path(__file__).parents[2] / "docs" / "results.md"
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.S)
    for line in block.splitlines()
    if line.startswith("robustq ")
]
NEEDS_MORE = {
    "diff": "two stores",
    "replay": "a study that ran",
    "bundle": "a study that ran",
    "check": "a bundle",
    "run": "a study",
}  # tested in test_results_commands.py, test_replay.py, test_bundle.py and test_end_hook.py


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    (folder / ".robustq").mkdir()
    make(folder / ".robustq" / "results.db")
    store = open_store(str(folder / ".robustq" / "results.db"), write=True)
    with store.begin() as db:
        sweep = db.execute(sa.select(sweep_job.c.sweep_id).limit(1)).scalar_one()
        for model, kept in (("plain", 0.4), ("b-pgd", 0.6)):
            means = {"noise": 0.7, "pgd": kept, "explanation-attack": kept}
            add_explanation(db, sweep, model, made_up_measures(0, means))
    store.engine.dispose()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_runs(folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]):
    monkeypatch.chdir(folder)
    if words[0] in NEEDS_MORE or "--to" in words:  # test_trackers.py
        with cli.main.commands[words[0]].make_context(words[0], words[1:]):
            return
    done = CliRunner().invoke(cli.main, words)
    assert done.exit_code == 0, done.output
    assert done.stdout or (folder / words[-1]).exists()  # a file is written, and nothing said


@pytest.mark.slow
def test_the_python_examples_give_the_stores_numbers(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    if not (folder / "outcomes").exists():
        CliRunner().invoke(cli.main, ["export", "--per-example", "--partition", "model,attack", "outcomes"])
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
        exec(block, names)
    rows = results().to_pylist()
    assert names["rows"].num_rows == len(rows) == 9
    robust = {model: [row["robust_accuracy"] for row in rows if row["model"] == model] for model in ("plain", "b-pgd")}
    assert dict(names["best"].iter_rows()) == {model: max(values) for model, values in robust.items()}
    assert dict(names["mean"]) == {m: pytest.approx(sum(values) / len(values)) for m, values in robust.items()}
    wanted = [
        (r["eps"], r["seed"], r["robust_accuracy"])
        for r in rows
        if (r["model"], r["attack"], r["seed"]) == ("b-pgd", "fgsm", 1)
    ]
    assert names["answer"] == [pytest.approx(row) for row in wanted]
    assert "Scanning Files: 1/5" in names["plan"] and "seed = 1" in names["plan"]
    assert len(names["frame"]) == len(names["few"]) == 4 * 40
    assert names["steady"].loc[("plain", "grad-cam", 0)].to_dict() == pytest.approx(
        {"noise": 0.7, "explanation-attack": 0.4}, abs=0.05
    )


def test_completion_completes():
    """As bash asks click for it."""
    code = "from robustq import cli; cli.main(prog_name='robustq')"
    env = {"COMP_WORDS": "robustq results --format la", "COMP_CWORD": "3", "_ROBUSTQ_COMPLETE": "bash_complete"}
    root = Path(cli.__file__).parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=root, timeout=60)
    assert done.stdout == "plain,latex\n"
