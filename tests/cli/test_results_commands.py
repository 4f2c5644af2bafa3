"""results, export, diff and replay as a user types them."""

import csv
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from robustq import cli
from robustq.jobs.commands import results
from robustq.jobs.commands.base import remote_words
from robustq.jobs.results.columns import RESULT_COLUMNS
from robustq.jobs.results.rows import DETAILS
from robustq.jobs.store.connection import open_store
from tests.helpers.fake_results import N, add_result, add_sweep, outcome
from tests.jobs.verification.test_diff import flipped


def make(path: Path) -> Path:
    store = open_store(str(path), create=True, write=True)
    with store.begin() as db:
        sweep_id = add_sweep(db, "demo")
        for model in ("plain", "b-pgd"):
            for attack in ("fgsm", "autoattack"):
                for seed in (0, 1):
                    add_result(db, sweep_id, model, attack, 8 / 255, seed)
        add_result(db, add_sweep(db, "other"), "plain", "clean", None, norm=None)
    store.engine.dispose()
    return path


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make(tmp_path / "r.db")


def robustq(path: Path, *words: str) -> Result:
    return CliRunner().invoke(cli.main, ["--store", str(path), *words], prog_name="robustq")


def rows(path: Path, *words: str) -> list[dict]:
    found = robustq(path, "results", *words, "--json")
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def test_json_is_the_rows_with_their_details(path: Path):
    assert [tuple(row) for row in rows(path)] == [(*RESULT_COLUMNS, *DETAILS)] * 9
    assert robustq(path, "results", "--format", "json").stdout == robustq(path, "results", "--json").stdout


def test_options_choose_rows(path: Path):
    chosen = rows(path, "--model", "b-*", "--attack", "autoattack", "--eps", "8/255", "--norm", "Linf", "--seed", "1")
    assert [row["job_id"] for row in chosen] == [8]
    assert len(rows(path, "--attack", "fgsm", "--attack", "clean")) == 5
    assert len(rows(path, "--sweep", "demo")) == 8
    assert [row["attack"] for row in rows(path, "--where", "norm=null")] == ["clean"]
    assert [row["job_id"] for row in rows(path, "--where", "job_id>3", "--where", "job_id<=5")] == [4, 5]
    assert robustq(path, "results", "--model", "none").stdout == "nothing to show\n"


def test_groups_pivots_and_comparisons_in_every_format(path: Path):
    groups = rows(path, "--group", "model,attack,eps", "--sort", "-robust_accuracy", "--sweep", "demo")
    assert [group["seeds"] for group in groups] == [2] * 4
    values = [group["robust_accuracy"] for group in groups]
    assert values == sorted(values, reverse=True)
    shown = robustq(path, "results", "--over-seeds", "--sweep", "demo").stdout.splitlines()
    assert shown[0].split() == [
        "sweep",
        "dataset",
        "model",
        "attack",
        "norm",
        "eps",
        "recipe",
        "n",
        "clean",
        "%",
        "robust",
        "%",
        "robust",
        "95",
        "%",
        "distance",
        "seconds",
        "seeds",
    ]
    assert all("±" in line for line in shown[2:])
    pivot = robustq(path, "results", "--pivot", "--sweep", "demo", "--format", "markdown").stdout.splitlines()
    assert pivot[0] == "| model | fgsm Linf 8/255 | autoattack Linf 8/255 |" and len(pivot) == 4
    latex = robustq(path, "results", "--pivot", "--sweep", "demo", "--format", "latex").stdout
    assert latex.startswith("\\begin{tabular}{lll}\n\\toprule\n")
    found = list(csv.DictReader(io.StringIO(robustq(path, "results", "--format", "csv").stdout)))
    assert [float(row["robust_accuracy"]) for row in found] == [row["robust_accuracy"] for row in rows(path)]
    assert robustq(path, "results", "--model", "none", "--format", "csv").stdout == ",".join(RESULT_COLUMNS) + "\n"
    compared = rows(path, "--compare", "plain", "b-pgd")
    assert {(line["attack"], line["seed"], line["n"]) for line in compared} == {
        (a, s, N) for a in ("fgsm", "autoattack") for s in (0, 1)
    }
    best = rows(path, "--best", "robust_accuracy", "--attack", "fgsm")
    assert {row["robust_accuracy"] for row in best} == {
        max(row["robust_accuracy"] for row in rows(path, "--attack", "fgsm"))
    }


def test_a_mixed_group_is_told_on_the_other_stream(path: Path):
    found = robustq(path, "results", "--group", "model", "--sweep", "demo", "--json")
    assert "2 groups hold several rows of a seed" in found.stderr
    assert [group["rows"] for group in json.loads(found.stdout)] == [4, 4]


def test_a_summary_is_of_the_rows_that_are_left(path: Path):
    shown = robustq(path, "results", "--summary", "--model", "plain").stdout
    assert shown.count("accuracy in %") == 2 and "b-pgd" not in shown
    refused = robustq(path, "results", "--summary", "--pivot")
    assert (refused.exit_code, refused.stdout) == (2, "")
    refused = robustq(path, "results", "--summary", "--json")
    assert (refused.exit_code, refused.stdout) == (2, "")


def test_wrong_questions_are_one_line(path: Path):
    for words, line in [
        (["--where", "colour=red"], "there is no column 'colour', expected one of: sweep, model"),
        (["--eps", "wide"], "eps: expected a number such as 8/255 or null, got 'wide'"),
        (["--sweep", "x"], "there is no sweep 'x', the store has: demo, other"),
        (["--compare", "plain", "x"], "--compare: no result is of model 'x'"),
        (["--sort", "colour"], "there is no column 'colour'"),
    ]:
        found = robustq(path, "results", *words)
        assert (found.exit_code, found.stdout, len(found.stderr.splitlines())) == (2, "", 1)
        assert found.stderr.startswith(f"robustq: {line}")


ON_A_TERMINAL = """
import fcntl, os, pty, struct, sys, termios
pid, terminal = pty.fork()
if pid == 0:
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
    os.environ.pop("COLUMNS", None)
    from robustq import cli
    cli.main(sys.argv[1:])
shown = b""
try:
    while some := os.read(terminal, 65536):
        shown += some
except OSError:  # the command has ended
    pass
os.waitpid(pid, 0)
sys.stdout.buffer.write(shown)
"""


@pytest.mark.slow
def test_a_narrow_terminal_gets_whole_lines(path: Path):
    """A real one: the command's standard output is a pseudo-terminal of 50 columns."""
    root = Path(cli.__file__).parent
    shown = subprocess.run(
        [sys.executable, "-c", ON_A_TERMINAL, "--store", str(path), "results"],
        capture_output=True,
        cwd=root,
        check=True,
        timeout=60,
    )
    lines = shown.stdout.decode().replace("\r", "").splitlines()
    assert lines[:3] == [
        "model  attack      norm  eps    robust %",
        "-----  ----------  ----  -----  -----------------",
        "plain  fgsm        Linf  8/255  57.5 [42.2, 71.5]",
    ]
    assert len(lines) == 12 and lines[-1] == "left out to fit: sweep, seed, n, clean %, checks,…"
    assert max(map(len, lines)) == 50
    assert max(map(len, robustq(path, "results").stdout.splitlines())) > 80


def test_export_takes_the_same_filters(path: Path, tmp_path: Path):
    done = robustq(path, "export", "--model", "plain", "--seed", "0", "--per-example", "e.parquet")
    assert (done.exit_code, done.stderr) == (0, f"{3 * N} rows in e.parquet\n")
    assert set(pq.read_table(tmp_path / "e.parquet").column("model").to_pylist()) == {"plain"}
    done = robustq(path, "export", "--partition", "model,seed", "--attack", "fgsm", "folder")
    assert done.stderr == "4 rows in folder\n"
    assert sorted(str(p.relative_to(tmp_path / "folder").parent) for p in (tmp_path / "folder").rglob("*.parquet")) == [
        f"model={m}/seed={s}" for m in ("b-pgd", "plain") for s in (0, 1)
    ]  # fmt: skip
    assert robustq(path, "export", "folder").exit_code == 2


def test_diff_ends_with_1_where_something_changed(path: Path, tmp_path: Path):
    same = robustq(path, "diff", str(path), str(make(tmp_path / "new.db")))
    assert (same.exit_code, same.stdout) == (0, "nothing to show\n")
    assert same.stderr == "9 are the same\n"
    for store, columns in ((path, outcome(1, n=400, broken=0.2)), (tmp_path / "new.db", None)):
        opened = open_store(str(store), write=True)
        columns = columns or flipped(outcome(1, n=400, broken=0.2), range(0, 400, 4))
        with opened.begin() as db:
            add_result(db, 1, "moved", "square", columns=columns)
        opened.engine.dispose()
    changed = robustq(path, "diff", str(path), str(tmp_path / "new.db"))
    assert changed.exit_code == 1
    assert changed.stdout.splitlines()[2].split()[:4] == ["changed", "digits", "moved", "square"]
    assert changed.stderr.splitlines() == [
        "1 changed beyond its interval, 9 are the same",
        "robustq: 1 result changed beyond its interval",
    ]
    found = robustq(path, "diff", str(path), str(tmp_path / "new.db"), "--json", "--model", "moved")
    assert (found.exit_code, [row["change"] for row in json.loads(found.stdout)]) == (1, ["changed"])
    assert robustq(path, "diff", str(path), str(tmp_path / "none.db")).exit_code == 2
    assert robustq(path, "diff", "--versions", "kernel", "3", "4").stderr == "10 are only in the old\n"


def test_diff_reads_only(path: Path, tmp_path: Path):
    other = make(tmp_path / "new.db")
    before = path.read_bytes(), other.read_bytes()
    robustq(path, "diff", str(path), str(other))
    robustq(path, "results", "--group", "model")
    robustq(path, "export", "rows.csv")
    assert (path.read_bytes(), other.read_bytes()) == before


def test_replay_refuses_what_it_cannot_run(path: Path):
    refused = robustq(path, "replay", "--job", "99")
    assert (refused.exit_code, refused.stderr) == (
        2,
        "robustq: job 99: expected a finished evaluation, there is none\n",
    )


def test_a_question_to_a_cluster_keeps_its_words():
    typed = ["--model", "b-*", "--model", "a", "--compare", "plain", "b-pgd", "--sort", "-eps", "--json"]
    with results.results.make_context("results", list(typed)) as ctx:
        words = remote_words(ctx)
    with results.results.make_context("results", words[1:]) as again:
        assert again.params == ctx.params
    assert words[words.index("--compare") :][:3] == ["--compare", "plain", "b-pgd"]


def commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*words, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))


@pytest.mark.parametrize(
    ("words", "command"),
    list(commands(cli.main)),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_every_commands_help_has_examples_that_are_right(words, command):
    lines = [line.strip() for line in (command.help or "").splitlines()]
    examples = [shlex.split(re.split(r"   +", line)[0]) for line in lines if line.startswith("robustq ")]
    assert any(" ".join(words) in " ".join(example) for example in examples), words
    for example in examples:
        rest = example[3:] if example[1] == "--store" else example[1:]
        called: click.Command = cli.main
        while isinstance(called, click.Group):
            called, rest = called.commands[rest[0]], rest[1:]
        with called.make_context("robustq", rest):  # raises for a word that the command does not know
            pass


def test_the_help_says_what_exit_codes_mean():
    shown = CliRunner().invoke(cli.main, ["--help"]).stdout
    assert "Exit codes: 0 done; 1 some jobs failed" in shown and "2 wrong usage" in shown
