"""Checks of a bundle: a whole one holds and runs no code, a changed one is named, a forged one contradicts itself."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from robustlib.metrics import summarise
from robustq.cli import main
from robustq.jobs.store import example_outcomes
from robustq.jobs.verification.bundle_check import check_bundle
from robustq.jobs.verification.bundle_format import Bundle, Refused
from robustq.jobs.verification.bundled_jobs import How, from_lines, outcomes_csv, read_outcomes, rows_csv, to_lines
from tests.helpers.bundles import altered, members, of_jobs

NONE = How(number=0)


def test_a_whole_bundle_holds_and_no_code_of_it_runs(bundled, whole):
    mark = Path(bundled.artifacts).parents[1] / "mark"
    mark.unlink(missing_ok=True)
    found = check_bundle(whole, How(number=4))
    assert (found.wrong, found.evaluations, found.tampered, found.contradictions) == (0, 4, [], [])
    assert [(row["model"], row["outcome"]) for row in found.replayed] == [("a", "equal")] * 2
    assert list(found.left_out.values()) == [2] and "--trust-code" in next(iter(found.left_out))
    assert not mark.exists()


@pytest.mark.slow
def test_code_that_is_trusted_runs_from_the_bundle(bundled, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = Path(bundled.artifacts).parents[1] / "m.py"
    away = source.rename(source.with_name("away.py"))
    try:
        found = check_bundle(whole, How(number=4, trust_code=True))
    finally:
        away.rename(source)
    assert (
        sorted((row["model"], row["outcome"]) for row in found.replayed)
        == [("a", "equal")] * 2 + [("own", "equal")] * 2
    )
    assert found.left_out == {}


@pytest.mark.parametrize(
    "prefix", ["outcomes/", "artifacts/", "files/", "code/", "jobs.jsonl", "results.csv", "study.json"]
)
def test_a_file_that_was_changed_is_named(whole, tmp_path, prefix):
    name = next(name for name in members(whole) if name.startswith(prefix))

    def change(found):
        found[name] = found[name][:-1] + bytes([found[name][-1] ^ 1])

    path = altered(whole, tmp_path / "t.zip", change, seal=False)
    done = CliRunner().invoke(main, ["check", str(path), "--replay", "0"])
    assert (done.exit_code, f"changed: {name}" in done.output) == (1, True), done.output
    assert "1 thing is not as it should be: see above" in done.output


def test_files_that_were_added_or_taken_are_named(whole, tmp_path):
    gone = next(name for name in members(whole) if name.startswith("outcomes/"))

    def change(found):
        del found[gone]
        found["code/" + "0" * 64 + "/more.py"] = b""

    found = check_bundle(altered(whole, tmp_path / "t.zip", change, seal=False), NONE)
    assert sorted(found.tampered) == [("code/" + "0" * 64 + "/more.py", "added"), (gone, "missing")]


def better(line):
    if line["kind"] == "eval":
        line["result"]["robust_accuracy"] = 0.99


def shown(**columns):
    return lambda line: line["kind"] == "eval" and line.update(columns)


def unseen(line):
    if line["kind"] == "eval":
        line["outcomes"] = False
        line["result"]["robust_accuracy"] = 0.99


def kinder(line):
    for one in line["checks"] if line["kind"] == "eval" else ():
        one.update(value=0.95, threshold=0.85, verdict="pass") if one["name"] == "chance" else None


def unbound(line):
    if line["kind"] == "eval":
        line["needs"] = []
    if line["kind"] == "train":
        line["artifacts"] = {}


def weaker(line):
    if line["kind"] == "eval":
        line["spec"]["attack"]["eps"] = line["eps"] = 0.01


def another(line):
    if line["kind"] == "worst":
        line["kind"] = "train"


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, told",
    [
        (better, "robust_accuracy is 0.99, its outcomes come to"),
        (weaker, "is not that of its spec"),
        (lambda line: line["needs"].append("0" * 64), "it rests on a job 000000000000, which is not in the bundle"),
        (lambda line: line["result"].update(verdict="pass"), "is not that of its checks"),
        (shown(eps=0.3), "its eps is 0.3, its spec has 0.05"),
        (shown(attack="autoattack"), "its attack is 'autoattack', its spec has"),
        (shown(recipe="pgd(steps=1000)"), "its recipe is 'pgd(steps=1000)', its spec has"),
        (shown(arch="resnet18"), "its arch is 'resnet18', its spec has"),
        (shown(defence="trades"), "its defence is 'trades', its spec has"),
        (shown(dataset="cifar10"), "its data set is 'cifar10', its spec has 'digits'"),
        (shown(seed=7), "its seed is 7, its spec has 0"),
        (unseen, "it has no outcomes that its numbers follow from"),
        (kinder, "its check chance is 'pass' with a value of 0.95"),
        (unbound, "(train), seed 0: it has no weights"),
        (lambda line: line["kind"] == "worst" and line["result"].update(verdict="fail"), "is not that of its checks and evaluations"),
        (another, "jobs.jsonl cannot be read: line"),
        (lambda line: line.update(surprise=1), "surprise: Extra inputs are not permitted"),
        (lambda line: line["artifacts"] and line["artifacts"]["weights"].update(sha256="0" * 64), "its weights 000000000000 are not in the bundle"),
    ],
    ids=[
        "number", "radius", "dependency", "verdict", "eps", "attack", "recipe", "arch", "defence", "dataset", "seed",
        "outcomes", "check", "training", "worst", "kind", "entry", "weights",
    ],
)  # fmt: skip
def test_numbers_under_new_hashes_contradict_the_rest(whole, tmp_path, change, told):
    found = check_bundle(altered(whole, tmp_path / "t.zip", of_jobs(change)), How(number=3))
    assert any(told in line for line in found.contradictions), found.contradictions
    assert found.tampered == [] and found.replayed == [] and found.wrong


def without_the_broken(table):
    return table.filter(~table.column("success").to_numpy())


def some_twice(table):
    return pa.concat_tables([table.slice(0, 10), table.slice(0, 10)]).combine_chunks()


@pytest.mark.parametrize(
    "change, told",
    [
        (without_the_broken, "its outcomes are of other examples than"),
        (some_twice, "an example is in its outcomes twice"),
    ],
)
def test_chosen_examples_contradict_the_rest(whole, tmp_path, change, told):
    jobs = from_lines(members(whole)["jobs.jsonl"])
    one = next(one for one in jobs if one.kind == "eval" and one.result.robust_accuracy)

    def changed(found):
        table = change(read_outcomes(found[f"outcomes/{one.key}.csv"]))
        found[f"outcomes/{one.key}.csv"] = outcomes_csv(table)
        row = one.result.model_copy(update=summarise(example_outcomes.to_columns(table)))
        alike = [job if job.key != one.key else job.model_copy(update={"result": row}) for job in jobs]
        found |= {"jobs.jsonl": to_lines(alike), "results.csv": rows_csv(alike)}

    found = check_bundle(altered(whole, tmp_path / "t.zip", changed), NONE)
    assert any(told in line for line in found.contradictions), found.contradictions


def test_an_example_without_an_index_is_no_outcome(whole):
    name = next(name for name in members(whole) if name.startswith("outcomes/"))
    first = members(whole)[name].splitlines()[0]
    with pytest.raises(ValueError, match="an example has no index"):
        read_outcomes(first + b"\n" + b"," * first.count(b",") + b"\n")


def test_a_better_worst_case_contradicts_its_evaluations(whole, tmp_path):
    jobs = from_lines(members(whole)["jobs.jsonl"])
    worst = next(one for one in jobs if one.kind == "worst" and one.model == "own")

    def change(found):
        table = read_outcomes(found[f"outcomes/{worst.key}.csv"])
        columns = example_outcomes.to_columns(table)
        columns["distance"] = columns["distance"] * np.float32(0.5)
        found[f"outcomes/{worst.key}.csv"] = outcomes_csv(example_outcomes.to_table(columns))

    told = check_bundle(altered(whole, tmp_path / "t.zip", change), NONE).contradictions
    assert any("its outcomes are not the worst of its evaluations" in line for line in told), told


@pytest.mark.slow
def test_other_weights_under_new_hashes_do_not_replay(whole, tmp_path):
    """All files fit one another, and the outcomes are not those of the weights."""
    from safetensors.torch import load, save

    def change(found):
        (name,) = [name for name in found if name.startswith("artifacts/")]
        new = save({key: value.flip(0) if value.dim() > 1 else value for key, value in load(found.pop(name)).items()})
        sha256 = hashlib.sha256(new).hexdigest()
        found[f"artifacts/{sha256}"] = new
        of_jobs(lambda line: line["artifacts"] and line["artifacts"]["weights"].update(sha256=sha256))(found)

    found = check_bundle(altered(whole, tmp_path / "t.zip", change), How(number=2))
    assert (found.tampered, found.contradictions) == ([], [])
    assert {row["outcome"] for row in found.replayed} == {"differs"} and found.wrong == 2


def test_weights_that_do_not_fit_are_no_excuse(whole, tmp_path):
    def change(found):
        (name,) = [name for name in found if name.startswith("artifacts/")]
        del found[name]
        sha256 = hashlib.sha256(b"none").hexdigest()
        found[f"artifacts/{sha256}"] = b"none"
        of_jobs(lambda line: line["artifacts"] and line["artifacts"]["weights"].update(sha256=sha256))(found)

    found = check_bundle(altered(whole, tmp_path / "t.zip", change), How(number=1))
    (line,) = found.contradictions
    assert "it does not run again" in line and found.wrong == 1


def test_data_that_are_elsewhere_are_asked_for(whole):
    found = check_bundle(whole, How(number=2, dataset="parquet:/nowhere"))
    assert (found.replayed, found.wrong) == ([], 0)
    assert any("/nowhere" in why for why in found.left_out), found.left_out


@pytest.mark.parametrize(
    "place, told", [("folder:/etc", "{here}/etc"), ("folder:/", "has no name"), ("tar:../..", "has no name")]
)
def test_a_bundle_does_not_say_what_is_read_here(whole, tmp_path, monkeypatch, place, told):
    monkeypatch.chdir(tmp_path)

    def change(line):
        line["dataset"] = place
        if "data" in line["spec"]:
            line["spec"]["data"]["place"] = place

    def changed(found):
        of_jobs(change)(found)
        found["results.csv"] = rows_csv(from_lines(found["jobs.jsonl"]))

    found = check_bundle(altered(whole, tmp_path / "t.zip", changed), How(number=1, trust_code=True))
    assert (found.replayed, found.wrong, sum(found.left_out.values())) == ([], 0, 4)
    assert all(told.format(here=tmp_path) in why for why in found.left_out), found.left_out


def test_another_bundle_than_the_author_meant_is_refused(whole):
    found = Bundle(whole)
    found.close()
    assert check_bundle(whole, NONE, fingerprint=found.fingerprint.upper()).wrong == 0
    with pytest.raises(Refused, match="is another bundle"):
        check_bundle(whole, NONE, fingerprint="0" * 64)
