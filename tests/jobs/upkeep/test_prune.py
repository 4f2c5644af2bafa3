"""Sweeps that are removed: what others need stays, also where the process is killed at any step."""

import os
import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from robustq.cli import main
from robustq.jobs.commands import store_info
from robustq.jobs.errors import ArtifactError, SpecError, StoreError
from robustq.jobs.queue import drivers
from robustq.jobs.store import artifacts
from robustq.jobs.store.connection import open_store
from robustq.jobs.store.schema import artifact, driver, example_blob, job, result, sweep, sweep_job
from robustq.jobs.upkeep import prune
from tests.helpers.small_store import small_plan
from tests.helpers.stores_with_files import content, files, killed_at, opened, two_sweeps


@pytest.mark.slow
def test_a_sweep_goes_with_what_it_has_alone(tmp_path):
    store = two_sweeps(tmp_path)
    found = prune.prune(store, ["old"])
    assert (len(found.jobs), found.kept, sum(found.files.values())) == (2, 1, 3)
    with store.begin() as db:
        assert db.execute(sa.select(sweep.c.name)).scalars().all() == ["new"]
        assert db.execute(sa.select(job.c.attack).order_by(job.c.id)).scalars().all() == ["square", "pgd"]
        assert {len(db.execute(sa.select(table)).all()) for table in (result, example_blob, sweep_job, artifact)} == {2}
    assert files(store) == {b"of both", b"shared content"}
    assert prune.prune(store, []).bytes == 0


def test_a_dry_run_says_the_same_and_removes_nothing(tmp_path):
    store = two_sweeps(tmp_path)
    before = content(store), files(store)
    dry = CliRunner().invoke(main, ["--store", store.url, "db", "prune", "--sweep", "old"])
    assert (
        dry.exit_code == 0 and "would go: 1 version of a sweep, 2 jobs" in dry.output and "--yes does it" in dry.output
    )
    assert (content(store), files(store)) == before
    sizes = store_info.sizes(store)
    freed = {row["sweep"]: row["freed"] for row in sizes["sweeps"]}
    done = store_info.prune(store, ["old"], yes=True)
    assert done["bytes"] == freed["old"] and done["not_compacted"] is None
    assert {row["sweep"]: row["jobs"] for row in sizes["sweeps"]} == {"old": 3, "new": 2}


def test_the_file_is_smaller_afterwards(tmp_path):
    store = two_sweeps(tmp_path)
    with store.begin() as db:
        db.execute(sa.update(example_blob).where(example_blob.c.job_id == 1).values(data=os.urandom(1 << 20)))
    before = store_info.sizes(store)["database"]
    store_info.prune(store, ["old"], yes=True)
    assert store_info.sizes(store)["database"] < before / 2
    with store.begin() as db:  # and is a store still
        assert db.execute(sa.select(sa.func.count()).select_from(job)).scalar() == 2


def test_what_other_stores_in_the_folder_need_stays(tmp_path):
    store = two_sweeps(tmp_path)
    store.engine.dispose()  # which takes its write-ahead log into the file
    shutil.copy(tmp_path / "r.db", tmp_path / "kept.v6.db")
    prune.prune(store, ["old"])
    assert b"own" in files(store)
    (tmp_path / "kept.v6.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 4096)
    with pytest.raises(StoreError, match=r"kept\.v6\.db beside .* cannot be read"):
        prune.prune(store, ["new"])
    with store.begin() as db:
        assert db.execute(sa.select(sweep.c.name)).scalars().all() == ["new"]


def test_nothing_goes_while_a_driver_works_on_a_store_beside(tmp_path):
    """Its workers put files down before a row names them."""
    store = two_sweeps(tmp_path)
    other = open_store(str(tmp_path / "other.db"), create=True, write=True)
    with other.begin() as db:
        drivers.register(db, "d", "here", 1, 0.0, "0")
    left = artifacts.put(other.artifacts, "weights", b"of a job that is about to finish")
    for names in ([], ["old"]):
        with pytest.raises(StoreError, match=r"a driver is at work on the store .*other\.db"):
            prune.prune(store, names)
    assert artifacts.get(store.artifacts, left.sha256)
    with other.begin() as db:
        db.execute(sa.update(driver).values(stopped_at=1.0))
    prune.prune(store, [])
    with pytest.raises(ArtifactError):
        artifacts.get(store.artifacts, left.sha256)


def test_files_of_killed_runs_go_and_open_trainings_keep_theirs(sqlite_store):
    key = small_plan()[0].key
    orphan = artifacts.put(sqlite_store.artifacts, "weights", b"of a worker that was killed")
    for name in (key, "f" * 64):
        artifacts.put_partial(sqlite_store.artifacts, name, b"state")
    half = Path(artifacts.blob_path(sqlite_store.artifacts, orphan.sha256) + ".0.partial")
    half.write_bytes(b"half")
    with sqlite_store.begin() as db:
        for driver in ("one", "two"):
            drivers.stop(db, driver)
    told = store_info.prune(sqlite_store, [], yes=True)
    assert sorted(Path(path).name.partition(".")[0] for path in told["left"]) == sorted(
        [orphan.sha256] * 2 + ["f" * 64]
    )
    left = [path for path in Path(sqlite_store.artifacts).rglob("*") if path.is_file()]
    assert [path.name for path in left] == [key]


def test_files_elsewhere_go_only_where_the_store_names_them(tmp_path, monkeypatch):
    """A folder of several stores: what this one does not know is somebody else's."""
    monkeypatch.setenv("ROBUSTQ_ARTIFACTS", str(tmp_path / "shared"))
    store = two_sweeps(tmp_path / "mine")
    artifacts.put(store.artifacts, "weights", b"of another store")
    told = store_info.prune(store, ["old"], yes=True)
    assert files(store) == {b"of both", b"shared content", b"of another store"}
    assert "other stores that use it lose these too" in store_info.prune_text(told)


def test_nothing_goes_while_a_driver_works(sqlite_store):
    with sqlite_store.begin() as db:
        drivers.stop(db, "one")
    with pytest.raises(StoreError, match="a driver is at work on the store"):
        prune.prune(sqlite_store, ["small"])
    with pytest.raises(SpecError, match="there is no sweep 'smal', the store has: small"):
        store_info.prune(sqlite_store, ["smal"], yes=False)


@pytest.mark.slow
def test_a_killed_prune_is_finished_by_the_next(tmp_path):
    """Whatever step it is killed at: what stays is whole, and what is left goes with the next one."""
    store = two_sweeps(tmp_path / "whole")
    store.engine.dispose()
    before = content(store)
    store.engine.dispose()
    shutil.copytree(tmp_path / "whole", tmp_path / "calm")
    calm = opened(tmp_path / "calm")
    prune.prune(calm, ["old"])
    wanted, kept, step, states = content(calm), files(calm), 0, set()
    while True:
        folder = tmp_path / f"at-{step}"
        shutil.copytree(tmp_path / "whole", folder)
        died = killed_at(step, lambda folder=folder: prune.prune(opened(folder), ["old"]))
        found = opened(folder)
        rows = content(found)
        assert rows == before or rows["job"] == wanted["job"], step  # all of the sweep, or nothing
        assert kept <= files(found)
        if rows == before:
            assert files(found) == kept | {b"own"}
        states.add((rows == before, rows == wanted, b"own" in files(found)))
        prune.prune(found, ["old"] if rows == before else [])
        assert (content(found), files(found)) == (wanted, kept)
        found.engine.dispose()
        shutil.rmtree(folder)
        if not died:
            break
        step += 1
    assert step > 10 and len(states) == 4  # before, rows gone, file gone too, all done
