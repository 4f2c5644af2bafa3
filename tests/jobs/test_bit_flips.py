"""One flipped bit in every file that robustq reads back, the store excepted: no number changes.

A small study runs, and one of its trainings is left unfinished. Every file that is then below the artifacts and the home
must be of a kind that is known here; it is damaged in several ways, and what reads it runs again as in a new process.
Either all comes out as before, or an error names the file.
"""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
import torch
from sqlalchemy import select

from robustlib.datasets import file_stamps, load
from robustq.jobs.commands import queue_actions
from robustq.jobs.errors import RobustqError
from robustq.jobs.queue import driver_jobs, drivers, user_actions
from robustq.jobs.report.write import write_report
from robustq.jobs.results.filters import Filters
from robustq.jobs.results.rows import result_rows
from robustq.jobs.running.context import Context, Result
from robustq.jobs.running.evaluation import last_curve
from robustq.jobs.running.inputs import load_data
from robustq.jobs.running.run import run
from robustq.jobs.running.surrogates import learn
from robustq.jobs.running.warm_models import make_model_ready
from robustq.jobs.specs import TrainSpec, parse
from robustq.jobs.store.connection import Store
from robustq.jobs.store.schema import job, job_artifact
from robustq.jobs.study.study import Origin, Study
from robustq.jobs.submission.submit import submit
from robustq.jobs.verification import replay
from tests.helpers.drain_queue import work_off

TRAIN = {"epochs": 1, "examples": 60, "validation_examples": 20, "validation_steps": 1, "batch_size": 20}
STUDY = {
    "name": "s",
    "dataset": "mnist",
    "models": {"a": {"arch": "lenet5", "train": TRAIN}, "b": {"arch": "lenet5", "train": TRAIN | {"epochs": 3}}},
    "attacks": [{"name": "pgd", "steps": 2, "eps": 0.1}],
    "examples": 20,
    "images": 2,
}


class Downloaded:
    """MNIST as torchvision has it: files below a folder, arrays as attributes."""

    def __init__(self, *, root: str, download: bool, train: bool):
        path, n = Path(root) / "raw" / f"{'train' if train else 't10k'}.bin", 100 if train else 40
        if download:
            path.parent.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng(int(train))
            targets = (np.arange(n) % 4).astype(np.uint8)
            drawn = rng.integers(0, 40, (n, 8, 8), dtype=np.uint8)
            drawn[np.arange(n), targets * 2] += 200  # a bright line, whose place is the class
            path.write_bytes(targets.tobytes() + drawn.tobytes())
        content = np.frombuffer(path.read_bytes(), np.uint8)
        self.targets, self.data = content[:n], content[n:].reshape(n, 8, 8)
        self.classes = [f"line {i}" for i in range(4)]


@dataclass(frozen=True)
class Ran:
    """A study that ran: its store, the folder of all its files, and what came out.

    unfinished: the training that is.  before: the results by job, the page, the files' hashes by job, the hash of the unfinished training's weights.
    """

    store: Store
    folder: Path
    unfinished: int
    before: dict[str, Any]
    content: dict[Path, bytes]

    def files(self, pattern: str) -> list[Path]:
        return [path for path in self.content if path.relative_to(self.folder).match(pattern)]


def evaluations(store: Store) -> list[int]:
    with store.begin() as db:
        chosen = (job.c.kind == "eval") & (job.c.state == "done")
        return list(db.execute(select(job.c.id).where(chosen).order_by(job.c.id)).scalars())


def forget_process() -> None:
    """As a new process begins: nothing is known of any file."""
    for known in (load_data, make_model_ready, learn, driver_jobs.labels_of):
        known.cache_clear()
    last_curve.clear()


def left(store: Store) -> list[tuple[Any, ...]]:
    """The files that jobs left, by hash."""
    with store.begin() as db:
        rows = db.execute(select(job_artifact.c.job_id, job_artifact.c.role, job_artifact.c.sha256))
        return sorted(tuple(row) for row in rows)


def measured(store: Store) -> list[tuple[Any, ...]]:
    with store.begin() as db:
        rows = result_rows(db)
        return [tuple(row[name] for name in ("job_id", "n", "clean_accuracy", "robust_accuracy")) for row in rows]


def replayed(ran: Ran) -> None:
    rows = replay.replay(ran.store, 0, filters=Filters(), job_ids=evaluations(ran.store))
    assert rows and [row["outcome"] for row in rows] == ["equal"] * len(rows)


def trained(ran: Ran) -> None:
    """The unfinished training to its end, which is not recorded: its states stay."""
    assert finish_training(ran.store, ran.unfinished) == ran.before["unfinished"]


def reported(ran: Ran) -> None:
    html = page_of(ran.store)
    if pictures(html) != ran.before["pictures"]:
        raise Named(html)


def opened(ran: Ran) -> None:
    assert load.fingerprint("mnist") == ran.before["fingerprint"]
    assert [load.load("mnist", split).moments for split in ("train", "test")] == ran.before["moments"]


def retried(ran: Ran) -> None:
    """After this nothing is damaged that a job can make again."""
    with ran.store.begin() as db:
        ids = list(db.execute(select(job.c.id).where(job.c.state == "done")).scalars())
    queue_actions.retry(ran.store, ids, None)
    work_off(ran.store)
    assert (left(ran.store), measured(ran.store)) == (ran.before["left"], ran.before["measured"])
    for _, _, sha256 in ran.before["left"]:
        (path,) = ran.files(f"artifacts/blobs/*/{sha256}")
        assert path.read_bytes() == ran.content[path]


def finish_training(store: Store, id_: int, *, epochs: int | None = None, root: str | None = None) -> str | None:
    """The hash of the weights; None where only some epochs are asked for."""
    with store.begin() as db:
        spec = parse(db.execute(select(job.c.spec).where(job.c.id == id_)).scalar_one())
    assert isinstance(spec, TrainSpec)
    steps = run(spec, Context("cpu", root or store.artifacts))
    for step in steps:
        if isinstance(step, Result):
            return step.artifacts[0].sha256
        if epochs is not None and step.done == epochs:
            break
    return None


def page_of(store: Store) -> str:
    out = Path(store.artifacts).parent / "page.html"
    write_report(store, "s", out, None)
    return out.read_text()


def pictures(html: str) -> list[str]:
    """Those that a page shows, attacked and clean. When jobs ran, which it says too, a retry changes."""
    return re.findall(r"data:image/png;base64,[^\"]+", html)


class Named(ValueError):
    """Something came out otherwise, and this is what was said."""


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As jobs run and are replayed: last bits depend on the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Iterator[Ran]:
    from torchvision import datasets

    folder = tmp_path_factory.mktemp("flips")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTQ_HOME", str(folder / "home"))
        patch.setattr(datasets, "MNIST", Downloaded)
        patch.setattr(file_stamps, "clock", lambda: time.time() + 10)  # as if all were written a while ago
        forget_process()
        store, _ = submit(
            str(folder / "r.db"), Study.model_validate(STUDY), Origin("s", {}, {}), folder, data_folder=folder
        )
        with store.begin() as db:
            drivers.register(db, "one", "here", 1, 0.0, "0")
            unfinished = db.execute(select(sa.func.max(job.c.id)).where(job.c.kind == "train")).scalar_one()
            user_actions.cancel(db, [unfinished])
        yield complete(store, folder, unfinished)
        store.engine.dispose()
    forget_process()


def complete(store: Store, folder: Path, unfinished: int) -> Ran:
    work_off(store)
    shutil.rmtree(Path(store.artifacts) / "partial")  # as a driver does for what has finished
    whole = finish_training(store, unfinished, root=str(folder / "undisturbed"))
    finish_training(store, unfinished, epochs=2)
    before = {
        "unfinished": whole,
        "left": left(store),
        "measured": measured(store),
        "pictures": pictures(page_of(store)),
        "fingerprint": load.fingerprint("mnist"),
        "moments": [load.load("mnist", split).moments for split in ("train", "test")],
    }
    places = [path for part in ("artifacts", "home") for path in sorted((folder / part).rglob("*")) if path.is_file()]
    return Ran(store, folder, unfinished, before, {path: path.read_bytes() for path in places})


# What reads each kind of file, and whether it can do without: then all must come out as before.
KINDS: dict[str, tuple[list[Callable[[Ran], None]], bool]] = {
    "artifacts/blobs/*/*": ([replayed, reported, retried], False),
    "artifacts/partial/*": ([trained], True),
    "home/fingerprints/*.json": ([replayed, opened], True),
    "home/datasets/*/facts.json": ([replayed, opened], True),
    "home/datasets/*/y.npy": ([replayed, trained], True),
    "home/datasets/*/x.bin": ([replayed, trained, reported, opened], True),
    "home/datasets/*/x.sums": ([replayed, trained, opened], True),
    "home/datasets/*/moments.json": ([replayed, trained, opened], True),
    "home/data/mnist/raw/*": ([replayed, trained, opened], False),
    "home/data/mnist/.complete": ([replayed, opened], True),
}
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "first bit": lambda content: bytes([content[0] ^ 128]) + content[1:],
    "a bit in the middle": lambda content: flipped(content, len(content) // 2),
    "a bit at three quarters": lambda content: flipped(content, 3 * len(content) // 4),
    "last bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "cut off": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
}


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


def test_every_file_is_of_a_known_kind(ran: Ran):
    """A new kind of file needs an entry above, and a hash."""
    kinds = {path: [kind for kind in KINDS if path in ran.files(kind)] for path in ran.content}
    assert {path: found for path, found in kinds.items() if len(found) != 1} == {}
    assert ran.before["pictures"] and all(ran.files(kind) for kind in KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("kind", KINDS)
def test_no_number_changes(kind: str, how: str, ran: Ran):
    uses, must_hold = KINDS[kind]
    for path in ran.files(kind):
        noticed_by = []
        for use in uses:
            forget_process()
            path.write_bytes(DAMAGE[how](ran.content[path]))
            if noticed(use, ran, path):
                noticed_by.append(use)
            restore(ran)
        assert retried not in noticed_by and bool(noticed_by) != must_hold


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGE)
def test_both_states_of_a_training_may_be_damaged(how: str, ran: Ran, capsys: pytest.CaptureFixture[str]):
    forget_process()
    states = ran.files("artifacts/partial/*")
    assert len(states) == 2
    for path in states:
        path.write_bytes(DAMAGE[how](ran.content[path]))
    trained(ran)
    said = capsys.readouterr().err
    assert all(said.count(f"{path} is damaged") == 1 for path in states)
    restore(ran)


def noticed(use: Callable[[Ran], None], ran: Ran, path: Path) -> bool:
    """Whether an error of one line names the file; else all must be as it was."""
    try:
        use(ran)
    except (RobustqError, ValueError) as error:
        said = str(error)
        assert str(path) in said or path.name[:12] in said, said
        assert "\n" not in said or isinstance(error, Named), said
        return True
    return False


def restore(ran: Ran) -> None:
    """Every file as it was."""
    for path, content in ran.content.items():
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    for part in ("artifacts", "home"):
        for path in [path for path in (ran.folder / part).rglob("*") if path.is_file() and path not in ran.content]:
            path.unlink()
