"""Stored evaluations that are run again come out to the bit; what was tampered with does not."""

import os
import time

import numpy as np
import pytest
import sqlalchemy as sa
import torch

from robustq.jobs.commands.verification_text import shown_replays
from robustq.jobs.errors import RunError, SpecError
from robustq.jobs.queue import claims, drivers, transitions, worst_case
from robustq.jobs.results.filters import Filters, make_filters
from robustq.jobs.running import context, evaluation
from robustq.jobs.running.context import Context, Result, surroundings
from robustq.jobs.running.run import run
from robustq.jobs.specs import AttackSpec, EvalSpec, TrainSpec, parse
from robustq.jobs.store import example_outcomes
from robustq.jobs.store.connection import open_store
from robustq.jobs.store.schema import example_blob, job, result
from robustq.jobs.study.study import Origin, Study
from robustq.jobs.submission.expand_study import expand, resolve
from robustq.jobs.submission.submit import record
from robustq.jobs.verification import replay

STUDY = {
    "name": "s",
    "models": {
        "a": {"arch": "lenet5", "train": {"epochs": 1, "examples": 256, "validation_examples": 50}},
        "r": {"arch": "lenet5", "dropout_at_inference": 0.3, "train": {"epochs": 1, "examples": 256, "validation_examples": 50}},
    },
    "attacks": [{"name": "pgd", "steps": 2, "eps": [0.05, 0.1]}, {"name": "deepfool", "norm": "L2"}],
    "examples": 30,
    "images": 2,
    "draws": 10,
    "eot_draws": 2,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As jobs run and are replayed: last bits depend on the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A store whose study ran in this process."""
    folder = tmp_path_factory.mktemp("replay")
    store = open_store(str(folder / "r.db"), create=True, write=True)
    resolved = resolve(Study.model_validate(STUDY), Origin("s", {}, {}), folder, folder)
    with store.begin() as db:
        record(db, resolved, expand(resolved))
        drivers.register(db, "one", "here", os.getpid(), time.time(), "0")
    while True:
        with store.begin() as db:
            claimed = claims.claim(db, "one", most=1, what=job.c.id > 0)
            for one in claimed:
                assert transitions.start(db, one, "one", "node", 1, "")
        if not claimed:
            return store
        for one in claimed:
            if one.kind == "worst":
                with store.begin() as db:
                    assert worst_case.settle(db, one)
                continue
            spec = parse(one.spec)
            assert isinstance(spec, TrainSpec | EvalSpec)
            context = Context("cpu", store.artifacts, "", one.weights)
            (done,) = [frame for frame in run(spec, context) if isinstance(frame, Result)]
            blob = None if done.examples is None else (done.examples, done.row["n"])
            with store.begin() as db:
                assert transitions.finish(db, one, done.row, blob, done.artifacts)


def content(store) -> tuple:
    """All that the store's folder holds."""
    folder = os.path.dirname(store.artifacts)
    files = sorted(os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
    with store.begin() as db:
        tables = [
            db.execute(sa.select(table).order_by(*table.primary_key)).all() for table in (job, result, example_blob)
        ]
    return [name for name in files if not name.endswith(("-wal", "-shm"))], tables


@pytest.mark.slow
def test_everything_comes_out_to_the_bit_and_nothing_is_written(finished):
    before = content(finished)
    told = []
    rows = replay.replay(open_store(finished.url), 100, filters=Filters(), tell=told.append)
    assert len(rows) == len(told) == 6  # two radii and DeepFool for each model, no worst case and no training
    assert {(row["outcome"], row["same_machine"], row["examples_that_differ"]) for row in rows} == {("equal", True, 0)}
    assert {(row["model"], row["attack"], row["eps"]) for row in rows} == {
        (m, a, e) for m in "ar" for a, e in (("pgd", 0.05), ("pgd", 0.1), ("deepfool", None))
    }
    assert replay.count_wrong(rows) == 0
    assert content(finished) == before


@pytest.mark.slow
def test_the_draw_is_the_seeds_and_the_filters(finished):
    runs = [replay.replay(finished, 2, filters=make_filters(None, {"attack": "pgd"}), seed=s) for s in (0, 0, 5)]
    ids = [[row["job_id"] for row in rows] for rows in runs]
    assert ids[0] == ids[1] and len(ids[0]) == 2
    assert {row["attack"] for rows in runs for row in rows} == {"pgd"}


@pytest.fixture
def spoilt(finished):
    """A change of stored rows that the test's end takes back."""
    with finished.begin() as db:
        stored = {table: db.execute(sa.select(table)).mappings().all() for table in (result, example_blob)}
    yield finished
    with finished.begin() as db:
        for table, rows in stored.items():
            for row in rows:
                db.execute(sa.update(table).where(table.c.job_id == row["job_id"]).values(**row))


def first_evaluation(db) -> int:
    return (
        db.execute(sa.select(job.c.id).where((job.c.kind == "eval") & (job.c.attack == "deepfool"))).scalars().first()
    )


@pytest.mark.slow
@pytest.mark.parametrize("release", [None, "0.0.1"])
def test_an_outcome_that_was_changed_is_found(spoilt, release):
    """Also where another release stored it, or one that did not record itself: numbers depend on the kernels."""
    with spoilt.begin() as db:
        id_ = first_evaluation(db)
        data = db.execute(sa.select(example_blob.c.data).where(example_blob.c.job_id == id_)).scalar_one()
        columns = example_outcomes.to_columns(example_outcomes.decode(data))
        columns["distance"] = np.nextafter(columns["distance"], np.float32(9))  # one bit
        data = example_outcomes.encode(example_outcomes.to_table(columns))
        db.execute(sa.update(example_blob).where(example_blob.c.job_id == id_).values(data=data))
        versions = db.execute(sa.select(result.c.versions).where(result.c.job_id == id_)).scalar_one()
        del versions["robustq"]
        versions |= {"robustq": release} if release else {}
        db.execute(sa.update(result).where(result.c.job_id == id_).values(versions=versions))
    (row,) = replay.replay(spoilt, 1, filters=Filters(), job_ids=[id_])
    assert (row["outcome"], row["same_machine"], row["examples_that_differ"]) == ("differs", True, 0)
    assert replay.count_wrong([row]) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("flips", "outcome"), [(None, "equal"), (0, "within"), (12, "changed")])
def test_on_the_same_gpu_last_bits_may_differ(spoilt, monkeypatch, flips, outcome):
    """No GPU is at work: the rows say that one was, before and now."""
    there = {"device": "cuda: H100"}
    monkeypatch.setattr(evaluation, "surroundings", lambda context: surroundings(context) | there)
    monkeypatch.setattr(replay, "device_for", lambda before: "cpu")
    with spoilt.begin() as db:
        id_ = first_evaluation(db)
        db.execute(sa.update(result).where(result.c.job_id == id_).values(**there))
        blob = db.execute(sa.select(example_blob.c.data).where(example_blob.c.job_id == id_)).scalar_one()
        columns = example_outcomes.to_columns(example_outcomes.decode(blob))
        if flips is not None:
            correct = columns["adversarial_correct"]
            columns["adversarial_correct"] = np.where(np.arange(len(correct)) < flips, 1 - correct, correct)
            columns["distance"] = np.nextafter(columns["distance"], np.float32(9))
        data = example_outcomes.encode(example_outcomes.to_table(columns))
        db.execute(sa.update(example_blob).where(example_blob.c.job_id == id_).values(data=data))
    (row,) = replay.replay(spoilt, 1, filters=Filters(), job_ids=[id_])
    assert (row["outcome"], row["same_machine"]) == (outcome, True)
    assert row["reason"].startswith("on a GPU bits may differ") == (flips is not None)
    assert replay.count_wrong([row]) == (outcome == "changed")


def test_a_row_of_a_gpu_names_its_libraries(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91300)
    monkeypatch.setattr(context, "gpu_driver", lambda: "580.95.05")
    row = surroundings(Context("cuda", ""))
    wanted = {"cuda": "13.0", "cudnn": "91300", "gpu_driver": "580.95.05"}
    assert row["device"] == "cuda: H100" and row["versions"].items() >= wanted.items()
    assert not wanted.keys() & surroundings(Context("cpu", ""))["versions"].keys()


@pytest.mark.parametrize(
    "line",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 10:11:16 UTC 2025",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (builder@host)",
    ],
)
def test_the_version_of_the_driver_is_read(tmp_path, line):
    (tmp_path / "version").write_text(line + "\nGCC version: gcc version 12.3.0\n")
    assert context.gpu_driver(tmp_path / "version") == "580.95.05"
    assert context.gpu_driver(tmp_path / "none") == ""


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_random_numbers_of_a_card_are_named_as_such(device):
    random = evaluation.Ready(torch.nn.Identity(), None, 2, 0.0)
    mode = evaluation.mode_of(random, 0.1, torch.device(device))
    assert mode.endswith("its own random numbers those of this card") == (device == "cuda")


@pytest.mark.slow
@pytest.mark.parametrize(("flips", "outcome"), [(0, "within"), (12, "changed")])
def test_on_another_machine_results_may_move_within_their_interval(spoilt, flips, outcome):
    with spoilt.begin() as db:
        id_ = first_evaluation(db)
        versions = db.execute(sa.select(result.c.versions).where(result.c.job_id == id_)).scalar_one()
        blob = db.execute(sa.select(example_blob.c.data).where(example_blob.c.job_id == id_)).scalar_one()
        columns = example_outcomes.to_columns(example_outcomes.decode(blob))
        correct = columns["adversarial_correct"]
        columns["adversarial_correct"] = np.where(np.arange(len(correct)) < flips, 1 - correct, correct)
        columns["distance"] = np.nextafter(columns["distance"], np.float32(9))
        data = example_outcomes.encode(example_outcomes.to_table(columns))
        db.execute(sa.update(example_blob).where(example_blob.c.job_id == id_).values(data=data))
        db.execute(sa.update(result).where(result.c.job_id == id_).values(versions=versions | {"torch": "0.1"}))
    (row,) = replay.replay(spoilt, 1, filters=Filters(), job_ids=[id_])
    assert (row["outcome"], row["same_machine"]) == (outcome, False)
    assert replay.count_wrong([row]) == (outcome == "changed")


MARKED = [
    ("audit", "Linf", {}, "surrogate_gradients"),
    ("explain", "Linf", {"method": "smoothgrad"}, "split_sums"),
    ("transfer", "L1", {"queries": 5}, "whole_steps"),
]


@pytest.mark.parametrize(("name", "norm", "params", "mark"), MARKED)
def test_an_attack_that_was_another_once_is_known_by_its_mark(name, norm, params, mark):
    then = AttackSpec(name=name, norm=norm, eps=0.1, params=params)
    assert replay.once(then).startswith("stored when ")
    assert replay.once(then.model_copy(update={mark: True})) == ""


@pytest.mark.parametrize(
    ("name", "norm", "params"),
    [
        ("explain", "L1", {"method": "saliency"}),
        ("transfer", "L2", {"queries": 5}),
        ("transfer", "L1", {}),
        ("pgd", "L1", {}),
    ],
)
def test_other_attacks_are_what_they_were(name, norm, params):
    assert replay.once(AttackSpec(name=name, norm=norm, eps=0.1, params=params)) == ""


def test_what_is_no_evaluation_or_was_made_elsewhere_is_refused(spoilt):
    with spoilt.begin() as db:
        kinds = dict.fromkeys(("train", "worst"), 0) | {
            row.kind: row.id for row in db.execute(sa.select(job.c.kind, job.c.id))
        }
    for kind in ("train", "worst"):
        line = f"job {kinds[kind]}: expected a finished evaluation, it is of kind {kind}"
        with pytest.raises(SpecError, match=line):
            replay.replay(spoilt, 1, filters=Filters(), job_ids=[kinds[kind]])
    with pytest.raises(SpecError, match="job 999: expected a finished evaluation, there is none"):
        replay.replay(spoilt, 1, filters=Filters(), job_ids=[999])
    with pytest.raises(SpecError, match="there is no evaluation to run again that the options leave"):
        replay.replay(spoilt, 1, filters=make_filters(None, {"model": "none"}))
    if not torch.cuda.is_available():
        with spoilt.begin() as db:
            db.execute(sa.update(result).values(device="cuda: H100"))
        with pytest.raises(RunError, match="was made on cuda: H100, and this machine has no GPU"):
            replay.replay(spoilt, 1, filters=Filters())


@pytest.mark.slow
def test_the_table_says_why_where_there_is_anything_to_say(finished):
    rows = replay.replay(finished, 2, filters=Filters())
    assert "why" not in shown_replays(rows)[0]
    rows[1]["reason"] = "a GPU"
    assert [row["why"] for row in shown_replays(rows)] == ["", "a GPU"]
