"""What is lost is shown as lost, with the command that makes it again, and that command does."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import sqlalchemy as sa
from sqlalchemy import select

from robustlib.datasets import load as data
from robustq.jobs.commands import queue_actions
from robustq.jobs.errors import SpecError
from robustq.jobs.queue import user_actions
from robustq.jobs.report.page import cache
from robustq.jobs.report.page.sections import make_page
from robustq.jobs.report.page.sweep_data import gather
from robustq.jobs.report.server import Pages
from robustq.jobs.report.write import write_report
from robustq.jobs.store import artifacts
from robustq.jobs.store.connection import Store
from robustq.jobs.store.example_outcomes import examples_of
from robustq.jobs.store.schema import audit, example_blob, job, job_artifact, job_dep, sweep_job
from tests.helpers.fake_sweep import fill, keep
from tests.helpers.html_reading import Elements, report

MODELS = {"weak": 0.1, "strong": 1.0}
IMAGES = job_artifact.c.role == "images"


def shown_job(store: Store, model: str) -> int:
    """The evaluation whose images the page shows of a model: the last attack at the middle radius."""
    with store.begin() as db:
        rows = db.execute(select(job.c.id, job.c.recipe).where((job.c.attack == "square") & (job.c.eps == 0.1)))
        ids = [row.id for row in rows]
    return ids[list(MODELS).index(model)]


def path_of(store: Store, job_id: int) -> Path:
    with store.begin() as db:
        sha256 = db.execute(
            select(job_artifact.c.sha256).where((job_artifact.c.job_id == job_id) & IMAGES)
        ).scalar_one()
    return Path(artifacts.blob_path(store.artifacts, sha256))


def replace_images(store: Store, job_id: int, content: bytes) -> None:
    """As if the job had kept this."""
    with store.begin() as db:
        db.execute(sa.delete(job_artifact).where((job_artifact.c.job_id == job_id) & IMAGES))
        keep(db, store.artifacts, job_id, "images", content)


def save(x_adv: np.ndarray, name: str = "x_adv") -> bytes:
    return safetensors.numpy.save({name: x_adv})


GOOD = np.zeros((4, 1, 8, 8), np.float32)
LOSSES: dict[str, tuple[Callable[[Store, int], object], str]] = {
    "missing": (lambda store, id_: path_of(store, id_).unlink(), "their file [0-9a-f]{12} is missing"),
    "damaged": (lambda store, id_: path_of(store, id_).write_bytes(b"other"), "their file [0-9a-f]{12} is damaged"),
    "empty": (lambda store, id_: path_of(store, id_).write_bytes(b""), "their file [0-9a-f]{12} is damaged"),
    "a folder": (lambda store, id_: (path_of(store, id_).unlink(), path_of(store, id_).mkdir()), "their file [0-9a-f]{12} is missing"),
    "no images": (lambda store, id_: replace_images(store, id_, b"text"), "their file [0-9a-f]{12} is damaged"),
    "others": (lambda store, id_: replace_images(store, id_, save(GOOD, "x")), "their file [0-9a-f]{12} is damaged"),
    "a number": (lambda store, id_: replace_images(store, id_, save(np.array(3.0, np.float32))), "their file [0-9a-f]{12} is damaged"),
    "larger": (
        lambda store, id_: replace_images(store, id_, save(np.zeros((4, 3, 9, 9), np.float32))),
        r"they are of shape \(4, 3, 9, 9\), the clean ones of \(4, 1, 8, 8\)",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_lost_pictures_are_shown_as_lost_and_the_rest_is_there(made_up, loss, tmp_path):
    fill(made_up, MODELS)
    for k, name in enumerate(MODELS):
        replace_images(made_up, shown_job(made_up, name), save(GOOD + k / 7))  # each has a file of its own
    lost_one = shown_job(made_up, "strong")
    do, why = LOSSES[loss]
    do(made_up, lost_one)
    found = Elements(report(made_up)).text
    again = "" if loss == "larger" else f"; robustq retry {lost_one} makes them again"
    said = rf"strong under square, Linf, eps 0.1: no pictures, {why}{again}\."
    assert (
        re.search(said, found)
        and "strong is the most robust model" in found
        and "weak under square, Linf, eps 0.1" in found
    )
    told: list[str] = []
    written = write_report(made_up, "made-up", tmp_path / "page.html", tmp_path / "figures", told.append)
    assert {"images-weak.png", "confusion-strong.png"} <= {path.name for path in written}
    assert "images-strong.png" not in {path.name for path in written}
    assert len(told) == 1 and re.search(said.removesuffix(r"\."), told[0])
    for job_id in re.findall(r"robustq retry (\d+) makes", Pages(made_up).made(None).whole.decode()):
        assert changed(made_up, int(job_id)) == {lost_one: "queued"}  # what it says it does
        assert changed(made_up, int(job_id)) == {}


@pytest.mark.slow
def test_a_store_without_its_artifacts_has_a_page(made_up):
    fill(made_up, MODELS)
    shutil.rmtree(made_up.artifacts)
    text = Elements(report(made_up)).text
    assert "strong is the most robust model" in text and len(
        re.findall(r"their file \w{12} is missing; robustq retry ", text)
    ) == len(MODELS)
    Path(made_up.artifacts).write_text("a file where the folder was")
    assert "strong is the most robust model" in Elements(report(made_up)).text


@pytest.mark.slow
def test_pictures_that_are_there_again_are_shown_again(made_up):
    """By the same server, which keeps what it has read."""
    fill(made_up, MODELS)
    pages = Pages(made_up)
    lost_one = shown_job(made_up, "strong")
    content = path_of(made_up, lost_one).read_bytes()
    path_of(made_up, lost_one).unlink()
    assert b" is missing" in pages.live(None)[1]
    path_of(made_up, lost_one).write_bytes(content)
    with made_up.begin() as db:
        db.execute(sa.update(job).where(job.c.id == 1).values(state="failed"))  # something changes
    assert b" is missing" not in pages.live(None)[1]


@pytest.mark.slow
def test_a_data_set_that_is_there_again_is_shown_again(made_up, monkeypatch):
    """Looked for once a minute: it may be a download."""
    fill(made_up, MODELS)
    asked, now = [], [1000.0]

    def gone(place, *_):
        asked.append(place)
        raise ValueError("the folder of the data set is gone")

    pages = Pages(made_up)
    with monkeypatch.context() as patched, made_up.begin() as db:
        patched.setattr(data, "fingerprint", gone)
        patched.setattr(cache.time, "monotonic", lambda: now[0])
        sweep = gather(db, 1, pages.cache)
        for later in (0, 59, 2):
            now[0] += later
            found = make_page(db, made_up.artifacts, sweep, pages.cache)
            assert found.pictures.grids == [] and found.pictures.reason == "the folder of the data set is gone"
        assert asked == ["digits"] * 2
        now[0] += 61
        patched.undo()
        patched.setattr(cache.time, "monotonic", lambda: now[0])
        found = make_page(db, made_up.artifacts, sweep, pages.cache)
        assert len(found.pictures.grids) == 2 and found.classes.by_class is not None
        assert found.classes.confusions[0].names == tuple("0123456789")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["gone", "damaged", "cut off"])
@pytest.mark.parametrize("attack", ["worst-case", "square"])
def test_lost_outcomes_are_said_and_the_rest_is_there(made_up, how, attack, tmp_path):
    fill(made_up, MODELS)
    with made_up.begin() as db:
        chosen = select(job.c.id).where((job.c.attack == attack) & (job.c.eps == 0.1)).order_by(job.c.id.desc())
        lost_one = db.execute(chosen.limit(1)).scalar_one()
        mine = example_blob.c.job_id == lost_one
        whole = db.execute(select(example_blob.c.data).where(mine)).scalar_one()
        if how == "gone":
            db.execute(sa.delete(example_blob).where(mine))
        else:
            data = b"no Arrow" if how == "damaged" else whole[:-300]
            db.execute(sa.update(example_blob).where(mine).values(data=data))
    written = write_report(made_up, "made-up", tmp_path / "page.html", tmp_path / "figures")
    text = Elements(written[0].read_text(encoding="utf-8")).text
    assert "strong is the most robust model" in text
    if attack == "worst-case":
        assert (
            f"strong at Linf 0.1: the outcomes of single images are lost; robustq retry {lost_one} makes them" in text
        )
    else:
        assert f"no pictures, their outcomes are lost; robustq retry {lost_one} makes them again" in text
    state = "missing" if how == "gone" else "damaged"
    said = rf"outcomes of the single images of job {lost_one} are {state} in the store: robustq retry {lost_one} eval"
    with made_up.begin() as db, pytest.raises(SpecError, match=said):
        examples_of(db, lost_one)


def states(store: Store) -> dict[int, str]:
    with store.begin() as db:
        return {row.id: row.state for row in db.execute(select(job.c.id, job.c.state))}


def connect(store: Store) -> None:
    """Let each evaluation need its model's training, and each worst case the evaluations at its radius."""
    with store.begin() as db:
        rows = db.execute(select(job.c.id, job.c.kind, job.c.eps).order_by(job.c.id)).all()
        training, parts = 0, []
        for id_, kind, _ in rows:
            if kind == "train":
                training = id_
            elif kind == "eval":
                parts.append(id_)
                db.execute(sa.insert(job_dep).values(job_id=id_, needs_id=training))
            else:
                db.execute(sa.insert(job_dep), [{"job_id": id_, "needs_id": part} for part in parts])
                parts = []


def changed(store: Store, *job_ids: int, sweep: str | None = None) -> dict[int, str]:
    before = states(store)
    n = queue_actions.retry(store, job_ids, sweep)
    found = {id_: state for id_, state in states(store).items() if state != before[id_]}
    assert n == len(found)
    return found


@pytest.mark.slow
def test_retry_makes_again_what_the_page_says_is_lost(made_up):
    fill(made_up, MODELS)
    connect(made_up)
    for k, name in enumerate(MODELS):
        replace_images(made_up, shown_job(made_up, name), save(GOOD + k / 7))
    weak, strong = (shown_job(made_up, name) for name in MODELS)
    assert changed(made_up, weak, strong) == {} and changed(made_up, sweep="made-up") == {}
    path_of(made_up, strong).unlink()
    assert changed(made_up, weak) == {} and changed(made_up, sweep="made-up") == {}  # somebody may have made room
    with made_up.begin() as db:
        db.execute(sa.insert(audit).values(job_id=strong, subject="s" * 64, norm="Linf", eps=0.1, robust_accuracy=0, verdict="pass"))  # fmt: skip
    assert changed(made_up, strong) == {strong: "queued"}
    with made_up.begin() as db:
        assert db.execute(select(audit)).all() == []  # as its result: it comes again
    path_of(made_up, weak).write_bytes(b"other")
    assert changed(made_up, sweep="made-up") == {weak: "queued"}


@pytest.mark.slow
def test_retry_of_an_evaluation_trains_again_the_weights_that_it_needs(made_up):
    """Its replay says that they are lost, and names this command with its number."""
    fill(made_up, MODELS)
    connect(made_up)
    strong = shown_job(made_up, "strong")
    with made_up.begin() as db:
        training = db.execute(select(job_dep.c.needs_id).where(job_dep.c.job_id == strong)).scalar_one()
        sha256 = db.execute(select(job_artifact.c.sha256).where(job_artifact.c.job_id == training)).scalar_one()
    Path(artifacts.blob_path(made_up.artifacts, sha256)).write_bytes(b"other")
    assert changed(made_up, shown_job(made_up, "weak")) == {}
    assert changed(made_up, strong) == {training: "queued"}
    shutil.rmtree(made_up.artifacts)
    assert changed(made_up, strong) == {strong: "blocked"}  # its images too; it waits for the training


@pytest.mark.slow
def test_retry_of_a_worst_case_evaluates_again_what_it_lost(made_up):
    fill(made_up, MODELS)
    connect(made_up)
    strong = shown_job(made_up, "strong")
    with made_up.begin() as db:
        worst = db.execute(select(job_dep.c.job_id).where(job_dep.c.needs_id == strong)).scalar_one()
        db.execute(sa.delete(example_blob).where(example_blob.c.job_id.in_([worst, strong])))
    assert changed(made_up, worst) == {worst: "blocked", strong: "queued"}


@pytest.mark.slow
def test_a_sweep_whose_jobs_all_failed_is_told_the_way_on(made_up):
    sweep_id = fill(made_up, {"strong": 1.0}, name="my sweep")
    with made_up.begin() as db:
        losses = [id_ for (id_,) in db.execute(select(sweep_job.c.job_id).where(sweep_job.c.sweep_id == sweep_id))]
        user_actions.forget(db, losses)
    said = r"no results yet: 13 jobs failed or were cancelled: robustq retry --sweep 'my sweep' queues them again$"
    with pytest.raises(SpecError, match=said):
        report(made_up, "my sweep")
    assert len(changed(made_up, sweep="my sweep")) == 13
    with pytest.raises(SpecError, match=r"no results yet: robustq drive --sweep 'my sweep' runs it$"):
        report(made_up, "my sweep")
