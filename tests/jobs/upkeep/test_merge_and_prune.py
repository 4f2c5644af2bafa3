"""Stores that are merged and sweeps that are removed: nothing is lost, also where the process is killed at any step."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from sqlalchemy.event import listen

from robustq.cli import main
from robustq.jobs.commands import store_info
from robustq.jobs.errors import ArtifactError, SpecError, StoreError
from robustq.jobs.queue import claims, transitions
from robustq.jobs.store import artifact_files, artifacts, example_outcomes
from robustq.jobs.store.connection import Store, open_store
from robustq.jobs.store.schema import (
    artifact,
    driver,
    example_blob,
    job,
    job_artifact,
    job_dep,
    metadata,
    result,
    sweep,
    sweep_job,
)
from robustq.jobs.submission.submit import record
from robustq.jobs.upkeep import merge, prune
from tests.helpers import fake_results
from tests.helpers.small_store import filled, resolved, small_plan


def opened(folder: Path) -> Store:
    return open_store(str(folder / "r.db"), create=True, write=True)


def result_with_file(db, store: Store, sweep_id: int, model: str, attack: str, content: bytes) -> int:
    number = fake_results.add_result(db, sweep_id, model, attack)
    leave(db, store, number, content)
    return number


def leave(db, store: Store, number: int, content: bytes) -> str:
    left = artifacts.put(store.artifacts, "images", content)
    known = db.execute(sa.select(artifact.c.sha256).where(artifact.c.sha256 == left.sha256)).first()
    if known is None:
        db.execute(sa.insert(artifact).values(sha256=left.sha256, bytes=left.bytes, created_at=0.0))
    db.execute(sa.insert(job_artifact).values(job_id=number, role="images", sha256=left.sha256))
    return left.sha256


def two_sweeps(folder: Path) -> Store:
    """`old` with two jobs of its own and one that `new` has too; each left a file, and two left the same."""
    folder.mkdir(exist_ok=True)
    store = opened(folder)
    with store.begin() as db:
        old, new = fake_results.add_sweep(db, "old"), fake_results.add_sweep(db, "new")
        result_with_file(db, store, old, "a", "fgsm", b"own")
        result_with_file(db, store, old, "a", "pgd", b"shared content")
        both = result_with_file(db, store, old, "a", "square", b"of both")
        db.execute(sa.insert(sweep_job).values(sweep_id=new, job_id=both, model="b"))
        result_with_file(db, store, new, "b", "pgd", b"shared content")
    return store


def files(store: Store) -> set[bytes]:
    return {path.read_bytes() for path in Path(store.artifacts).glob("blobs/*/*")}


def content(store: Store) -> dict[str, list]:
    """Every row of every table but drivers."""
    with store.begin() as db:
        return {
            table.name: [tuple(row) for row in db.execute(sa.select(table).order_by(*table.primary_key)).all()]
            for table in metadata.sorted_tables
        }


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
        transitions.register(db, "d", "here", 1, 0.0, "0")
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
            transitions.stop(db, driver)
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
        transitions.stop(db, "one")
    with pytest.raises(StoreError, match="a driver is at work on the store"):
        prune.prune(sqlite_store, ["small"])
    with pytest.raises(SpecError, match="there is no sweep 'smal', the store has: small"):
        store_info.prune(sqlite_store, ["smal"], yes=False)


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do the work in a child that is killed before the given step: a change of a row or a file, or a commit.

    Returns whether it got that far.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = [step]

    def count(*about):
        if len(about) > 2 and not about[2].startswith(("INSERT", "UPDATE", "DELETE")):
            return  # a statement that only reads
        left[0] -= 1
        if left[0] < 0:
            os._exit(9)

    try:
        for name in ("before_cursor_execute", "commit"):
            listen(sa.Engine, name, count)
        for module, function in ((artifact_files, "remove"), (artifacts, "put")):
            usual = getattr(module, function)
            setattr(module, function, lambda *args, usual=usual: (count(), usual(*args))[1])
        work()
        os._exit(0)
    except BaseException:
        os._exit(1)


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


@pytest.mark.slow
def test_two_stores_become_one(tmp_path):
    one, other = two_sweeps(tmp_path / "one"), two_sweeps(tmp_path / "other")
    with other.begin() as db:
        third = fake_results.add_sweep(db, "third")
        result_with_file(db, other, third, "c", "cw", b"only there")
    before = content(other)
    found = merge.merge(one, open_store(other.url))
    assert (found.sweeps, found.new, found.done, found.same, found.copied) == (1, 1, 1, 4, 1)
    assert (found.differing, found.lost) == ([], [])
    assert content(one)["result"] == before["result"] and content(other) == before
    assert b"only there" in files(one)
    again = merge.merge(one, open_store(other.url))
    assert (again.sweeps, again.new, again.taken, again.same, again.copied) == (0, 0, 0, 5, 0)


def test_results_that_differ_are_named_with_both_origins(tmp_path):
    one, other = two_sweeps(tmp_path / "one"), two_sweeps(tmp_path / "other")
    with other.begin() as db:
        db.execute(sa.update(result).where(result.c.job_id == 1).values(robust_accuracy=0.125, device="cpu: other"))
    before = content(one)
    done = CliRunner().invoke(main, ["--store", one.url, "db", "merge", other.url])
    (line,) = [line for line in done.output.splitlines() if line.startswith("differs:")]
    assert done.exit_code == 1 and "a under fgsm Linf 0.03137, seed 0" in line
    assert f"({one.url}, cpu: made up, torch 2.14), left 12.50 % ({other.url}, cpu: other, torch 2.14)" in line
    assert content(one) == before


@pytest.mark.slow
def test_outcomes_written_otherwise_are_alike_and_others_are_not(tmp_path):
    """Bytes may differ by how Arrow packs them; a single example that differs is named, whatever the row says."""
    one, other = two_sweeps(tmp_path / "one"), two_sweeps(tmp_path / "other")
    with other.begin() as db:
        table = example_outcomes.examples_of(db, 1)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:  # not compressed
            writer.write_table(table)
        columns = example_outcomes.to_columns(example_outcomes.examples_of(db, 2))
        columns["adversarial_prediction"] = np.roll(columns["adversarial_prediction"], 1)
        others = (sink.getvalue().to_pybytes(), example_outcomes.encode(example_outcomes.to_table(columns)))
        for number, data in enumerate(others, 1):
            values = {"data": data, "sha256": f"{number}" * 64}
            db.execute(sa.update(example_blob).where(example_blob.c.job_id == number).values(**values))
    found = merge.merge(one, open_store(other.url))
    assert (found.same, [row.job_id for row in found.differing]) == (3, [2])


@pytest.mark.slow
@pytest.mark.parametrize("queries, alike", [(5, True), (6, False)])
def test_outcomes_of_before_lack_a_column_and_are_alike(tmp_path, queries: int, alike: bool):
    """Stored before the queries of a radius were; what both tell must still agree."""
    one, other = two_sweeps(tmp_path / "one"), two_sweeps(tmp_path / "other")
    for store, more, missing in ((one, {}, ["radius_queries"]), (other, {"radius_queries": 3}, [])):
        with store.begin() as db:
            table = example_outcomes.examples_of(db, 1)
            given = {"queries": queries if missing else 5} | more
            columns = example_outcomes.to_columns(table) | {n: np.full(len(table), v) for n, v in given.items()}
            stored = example_outcomes.to_table(columns).drop_columns(missing)
            sink = pa.BufferOutputStream()
            with pa.ipc.new_file(sink, stored.schema) as writer:
                writer.write_table(stored)
            values = {"data": sink.getvalue().to_pybytes(), "sha256": str(len(missing)) * 64}
            db.execute(sa.update(example_blob).where(example_blob.c.job_id == 1).values(**values))
    found = merge.merge(one, open_store(other.url))
    assert (found.same, [row.job_id for row in found.differing]) == ((4, []) if alike else (3, [1]))


def finish(db, driver: str, *, most: int = 1) -> list[int]:
    """Claim jobs and finish them, as a driver does."""
    claimed = claims.claim(db, driver, most=most)
    for one in claimed:
        assert transitions.start(db, one, driver, "node", 1, "")
        row = {"n": 2, "clean_accuracy": 1.0, "robust_accuracy": 0.5, "seconds": 1.0, "device": "cpu", "versions": {}}
        assert transitions.finish(db, one, row)
    return [one.id for one in claimed]


def test_each_store_does_what_the_other_has_not(tmp_path):
    """Two clusters with the same study: one has trained the first model, the other the second and attacked it."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    with filled(str(tmp_path / "one" / "r.db")) as one, filled(str(tmp_path / "other" / "r.db")) as other:
        with one.begin() as db:
            first = finish(db, "one")
            for driver in ("one", "two"):
                transitions.stop(db, driver)
        with other.begin() as db:
            db.execute(sa.update(job).where(job.c.id == first[0]).values(state="failed", error_class="Own"))
            second = finish(db, "one")
            both = finish(db, "one", most=2)
        found = merge.merge(one, open_store(other.url))
        assert (found.new, found.taken, found.same) == (0, 1 + len(both), 0)
        with one.begin() as db:
            states = prune.pairs(db, sa.select(job.c.id, job.c.state))
        worst = {4, 8} - {id_ for id_ in states if states[id_] == "blocked"}
        assert {id_ for id_, state in states.items() if state == "done"} == {*first, *second, *both}
        needs = {}
        with one.begin() as db:
            for waits, needed in db.execute(sa.select(job_dep)):
                needs.setdefault(waits, []).append(states[needed])
        for id_, state in states.items():
            if state in ("queued", "blocked"):
                assert (state == "queued") == (set(needs.get(id_, [])) <= {"done"}), (id_, worst)


def test_open_jobs_come_along_and_wait_for_what_they_need(tmp_path):
    (tmp_path / "other").mkdir()
    with filled(str(tmp_path / "other" / "r.db")) as other:
        with other.begin() as db:
            assert claims.claim(db, "one", most=1)  # which runs there at this moment
        one = opened(tmp_path)
        found = merge.merge(one, open_store(other.url))
        assert (found.new, found.done) == (8, 0)
        rows = content(one)
        states = {row[1]: state for row, state in zip(rows["job"], rows_of(one, job.c.state), strict=True)}
        assert sorted(states.values()) == ["blocked"] * 6 + ["queued"] * 2
        assert rows_of(one, job.c.lease_owner) == [None] * 8
        with one.begin() as db:
            record(db, resolved(), small_plan())  # the same study: nothing is new
        assert len(rows_of(one, job.c.id)) == 8


def rows_of(store: Store, column) -> list:
    with store.begin() as db:
        return list(db.execute(sa.select(column).order_by(job.c.id)).scalars())


def test_a_job_whose_need_failed_here_fails_too(tmp_path):
    (tmp_path / "other").mkdir()
    with filled(str(tmp_path / "other" / "r.db")) as other:
        one = opened(tmp_path)
        with one.begin() as db:
            record(db, resolved("small"), small_plan()[:1])
            db.execute(sa.update(job).values(state="failed", error_class="Own"))
        merge.merge(one, open_store(other.url))
        assert sorted(rows_of(one, job.c.state)) == ["blocked"] * 3 + ["failed"] * 4 + ["queued"]


def test_a_damaged_artifact_is_named_and_not_taken(tmp_path):
    one, other = opened(tmp_path), two_sweeps(tmp_path / "other")
    with other.begin() as db:
        sha256 = db.execute(sa.select(job_artifact.c.sha256).where(job_artifact.c.job_id == 1)).scalar_one()
    Path(artifacts.blob_path(other.artifacts, sha256)).write_bytes(b"another")
    done = CliRunner().invoke(main, ["--store", one.url, "db", "merge", other.url])
    assert (done.exit_code, f"lost: no place has the artifact {sha256}" in done.output) == (1, True), done.output
    assert files(one) == {b"shared content", b"of both"}


@pytest.mark.slow
def test_artifacts_are_looked_for_beside_and_where_one_says(tmp_path, monkeypatch):
    other = two_sweeps(tmp_path / "other")
    (tmp_path / "other" / "artifacts").rename(tmp_path / "away")
    monkeypatch.setenv("ROBUSTQ_ARTIFACTS", str(tmp_path / "mine"))
    one = opened(tmp_path)
    assert len(merge.merge(one, open_store(other.url), dry_run=True).lost) == 3
    assert merge.merge(one, open_store(other.url), places=[str(tmp_path / "away")]).lost == []
    assert len(files(one)) == 3


@pytest.mark.slow
def test_a_trial_changes_nothing_and_a_store_takes_not_itself_in(tmp_path):
    one, other = two_sweeps(tmp_path / "one"), two_sweeps(tmp_path / "other")
    with other.begin() as db:
        result_with_file(db, other, fake_results.add_sweep(db, "third"), "c", "cw", b"only there")
    before = content(one), files(one)
    assert merge.merge(one, open_store(other.url), dry_run=True).new == 1
    assert (content(one), files(one)) == before
    (tmp_path / "link.db").symlink_to(tmp_path / "one" / "r.db")
    for same in (one.url, str(tmp_path / "link.db")):
        with pytest.raises(StoreError, match="which is this one"):
            merge.merge(one, open_store(same))


@pytest.mark.slow
def test_a_killed_merge_leaves_the_store_as_it_was(tmp_path):
    """Whatever step it is killed at; files that it had copied go with the next prune, and it can be done again."""
    one, other = two_sweeps(tmp_path / "one"), two_sweeps(tmp_path / "other")
    with other.begin() as db:
        result_with_file(db, other, fake_results.add_sweep(db, "third"), "c", "cw", b"only there")
    before, own = content(one), files(one)
    for store in (one, other):
        store.engine.dispose()
    shutil.copytree(tmp_path / "one", tmp_path / "calm")
    merge.merge(calm := opened(tmp_path / "calm"), open_store(other.url))
    wanted, step, orphans = content(calm), 0, 0
    while True:
        folder = tmp_path / f"at-{step}"
        shutil.copytree(tmp_path / "one", folder)
        died = killed_at(step, lambda folder=folder: merge.merge(opened(folder), open_store(other.url)))
        found = opened(folder)
        rows = content(found)
        assert rows in (before, wanted) and (died or rows == wanted), step
        if rows == before and files(found) != own:
            orphans += 1
            prune.prune(found, [])
            assert files(found) == own
        merge.merge(found, open_store(other.url))
        assert content(found) == wanted and b"only there" in files(found)
        found.engine.dispose()
        shutil.rmtree(folder)
        if not died:
            break
        step += 1
    assert step > 10 and orphans


@pytest.mark.postgres
def test_a_server_takes_a_file_in_and_is_pruned(tmp_path, postgres, monkeypatch):
    other = two_sweeps(tmp_path / "other")
    monkeypatch.setenv("ROBUSTQ_ARTIFACTS", str(tmp_path / "served"))
    server = open_store(postgres, create=True, write=True)
    assert merge.merge(server, open_store(other.url)).done == 4
    found = prune.prune(server, ["old"])
    assert (len(found.jobs), found.kept, sum(found.files.values())) == (2, 1, 3)
    server.engine.dispose()


def test_tables_of_jobs_are_all_known():
    """A table that is new, with rows of jobs, goes with them and comes with them."""
    of_jobs = {table for table in metadata.sorted_tables if any(f.column.table is job for f in table.foreign_keys)}
    assert of_jobs == {*prune.OF_JOBS, job_dep}
    assert {*merge.OF_RESULTS} <= of_jobs
    assert sqlite3.sqlite_version_info > (3, 35)  # RETURNING
