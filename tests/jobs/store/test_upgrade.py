"""Stores of every schema that landed come up to this one, with all that is in them."""

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from scipy import stats

from robustq.jobs.commands import queue_actions
from robustq.jobs.commands.store_info import info
from robustq.jobs.errors import StoreError
from robustq.jobs.queue.status import counts
from robustq.jobs.results.explanations.rows import explanation_rows
from robustq.jobs.results.rows import result_rows
from robustq.jobs.store.connection import connect_store, open_store
from robustq.jobs.store.migrations.versions import v0004_checks, v0009_median_and_queries
from robustq.jobs.store.schema import SCHEMA_VERSION, event, job, meta, sweep
from robustq.jobs.store.upgrade import upgrade
from robustq.jobs.submission.submit import record
from tests.helpers.fake_explanations import add_explanation, made_up_measures
from tests.helpers.fake_results import add_result, add_sweep, outcome
from tests.helpers.small_store import filled, resolved, small_plan

FIRST = Path(__file__).with_name("store-1.sql")  # made by the robustq whose schema was version 1: never change it
SIXTH = Path(__file__).with_name("store-before-moves.sql")  # of version 6, the same


@pytest.fixture
def first(tmp_path: Path) -> Path:
    path = tmp_path / "results.db"
    with sqlite3.connect(path) as db:
        db.executescript(FIRST.read_text())
    db.close()
    return path


def columns(path: Path) -> dict[str, list[tuple[str, str, bool]]]:
    inspector = sa.inspect(connect_store(str(path)).engine)
    tables = [name for name in inspector.get_table_names() if name != "alembic_version"]
    return {
        name: sorted((c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(name)) for name in tables
    }


def indices(path: Path) -> dict[str, str]:
    """How each index was made, and each view, by name."""
    with sqlite3.connect(path) as db:
        made = db.execute("SELECT name, sql FROM sqlite_master WHERE type IN ('index', 'view') AND sql IS NOT NULL")
        found = {name: " ".join(sql.replace('"', "").split()) for name, sql in made}
    db.close()
    return found


def test_the_first_schema_becomes_this_one(first: Path, tmp_path: Path):
    with pytest.raises(
        StoreError, match=r"has schema version 1, this robustq reads version \d+: `robustq --store .* db"
    ):
        open_store(str(first))
    assert info(str(first))["schema_version"] == 1
    said = upgrade(str(first))
    copy = tmp_path / "results.v1.db"
    assert said == f"store {first}: schema version 1 -> {SCHEMA_VERSION}, the old one is in {copy}"
    with sqlite3.connect(copy) as db:
        assert db.execute("SELECT schema_version FROM robustq_meta").fetchone() == (1,)
    db.close()
    store = open_store(str(first), write=True)
    with store.begin() as db:
        assert {state: n for state, n in counts(db).items() if n} == {"queued": 3, "blocked": 4, "done": 1}
        assert db.execute(sa.select(job.c.cost)).scalars().all() == [1.0] * 8
    store.engine.dispose()
    open_store(str(tmp_path / "new.db"), create=True, write=True).engine.dispose()
    assert columns(first) == columns(tmp_path / "new.db")
    assert indices(first) == indices(tmp_path / "new.db")
    assert "job_asked" in indices(first)
    assert upgrade(str(first)) == f"store {first} has schema version {SCHEMA_VERSION} already"


def test_a_copy_that_is_there_is_never_overwritten(first: Path, tmp_path: Path):
    (tmp_path / "results.v1.db").write_text("mine")
    with pytest.raises(StoreError, match=r"there is a file .*results\.v1\.db already: move it away"):
        upgrade(str(first))
    assert info(str(first))["schema_version"] == 1 and (tmp_path / "results.v1.db").read_text() == "mine"


def test_a_store_of_a_later_robustq_is_left_alone(first: Path):
    with connect_store(str(first), write=True).begin() as db:
        db.execute(sa.update(meta).values(schema_version=99))
    with pytest.raises(StoreError, match=r"has schema version 99, this robustq knows \d+: update robustq$"):
        upgrade(str(first))


def test_what_is_no_store_is_not_upgraded(tmp_path: Path):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="is no robustq store"):
        upgrade(str(path))
    assert path.read_bytes() == before


# What a store whose schema was version 6 noted as people cancelled sweeps, submitted them and tried them again.
NOTED = (("sweep-cancelled", "small"), ("sweep-cancelled", "other"), ("sweep-wanted", "small"), ("split", None))


def test_what_was_cancelled_stays_so_in_a_store_of_version_6(tmp_path: Path):
    """The last event of a name counts; a sweep that none names is not cancelled."""
    path = tmp_path / "results.db"
    with sqlite3.connect(path) as db:
        db.executescript(SIXTH.read_text())
        db.executemany(
            "INSERT INTO sweep (name, spec, identity, created_at) VALUES (?, '{}', ?, 0)",
            [("small", "a"), ("other", "b"), ("other", "c")],  # two versions of a study share its name
        )
        rows = [(kind, json.dumps({"sweep": name} if name else {"shards": 2})) for kind, name in NOTED]
        db.executemany("INSERT INTO event (at, kind, data) VALUES (0, ?, ?)", rows)
    db.close()
    assert upgrade(str(path)).startswith(f"store {path}: schema version 6 -> {SCHEMA_VERSION}")
    with open_store(str(path)).begin() as db:
        found = db.execute(sa.select(sweep.c.name, sweep.c.cancelled).order_by(sweep.c.id)).all()
    assert found == [("before-the-moves", False), ("small", False), ("other", True), ("other", True)]


@pytest.mark.parametrize("where", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_a_sweep_that_was_cancelled_before_keeps_no_jobs_of_another(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
):
    url = str(tmp_path / "r.db") if where == "sqlite" else request.getfixturevalue("postgres")
    with filled(url) as store, store.begin() as db:
        record(db, resolved("other"), small_plan())
        back_to_6(db)
        noted = [{"at": 0.0, "kind": kind, "data": {"sweep": "other"}} for kind in ("sweep-wanted", "sweep-cancelled")]
        db.execute(sa.insert(event), noted)
    assert f"schema version 6 -> {SCHEMA_VERSION}" in upgrade(url)
    store = open_store(url, write=True)
    assert queue_actions.cancel(store, [], "small") == "8 jobs cancelled"
    store.engine.dispose()


def test_a_store_of_before_gets_intervals_of_medians_and_its_queries(tmp_path: Path):
    """From the outcomes that it holds; which query was at which radius of several nobody counted then."""
    place = str(tmp_path / "r.db")
    distances = np.linspace(0.01, 0.2, 20, dtype=np.float32)
    columns = outcome(1, n=20) | {"success": np.ones(20, bool), "broken_by": np.full(20, "square")}
    columns |= {"distance": distances, "queries": np.arange(20)}
    store = open_store(place, create=True, write=True)
    with store.begin() as db:
        add_result(db, add_sweep(db, "s"), "m", "square", columns=columns)
        add_result(db, 1, "m", "pgd", columns=columns | {"queries": np.full(20, -1)})
        add_result(db, 1, "m", "fgsm", outcomes=False)
        add_result(db, 1, "m", "worst-case", 0.1, columns=columns, kind="worst", spec={"kind": "worst"})
        back_to_6(db)
    store.engine.dispose()
    upgrade(place)
    with open_store(place).begin() as db:
        rows = {row["attack"]: row for row in result_rows(db)}
    # Of 20 values the 6th and the 15th: a fair coin gives 5 heads or fewer in 20 throws with a chance of 0.0207.
    assert stats.binom.cdf(5, 20, 0.5) < 0.025 < stats.binom.cdf(6, 20, 0.5)
    for attack, queries in (("square", 190), ("pgd", None), ("worst-case", None)):
        found = [rows[attack][name] for name in ("distance_median_low", "distance_median_high", "queries")]
        assert found == [distances[5], distances[14], queries] and rows[attack]["queries_most"] is None
    assert rows["fgsm"]["distance_median_low"] is rows["fgsm"]["queries"] is None


@pytest.mark.parametrize("where", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_a_store_of_before_takes_explanations(where: str, tmp_path: Path, request: pytest.FixtureRequest):
    url = str(tmp_path / "r.db") if where == "sqlite" else request.getfixturevalue("postgres")
    store = open_store(url, create=True, write=True)
    with store.begin() as db:
        number = add_sweep(db, "s")
        add_result(db, number, "m", "pgd")
        for view in ("v_checks", "v_explanations", "v_results"):
            db.execute(sa.text(f"DROP VIEW {view}"))
        db.execute(sa.text("DROP TABLE explanation"))
        for view in (v0009_median_and_queries.V_RESULTS, v0009_median_and_queries.V_CHECKS):
            db.execute(sa.text(view))
        db.execute(sa.update(meta).values(schema_version=9))
    store.engine.dispose()
    assert f"schema version 9 -> {SCHEMA_VERSION}" in upgrade(url)
    store = open_store(url, write=True)
    with store.begin() as db:
        means = {"noise": 0.7, "pgd": 0.3, "explanation-attack": 0.4}
        add_explanation(db, number, "m", made_up_measures(0, means))
        assert [row["attack"] for row in result_rows(db)] == ["pgd"]
        rows = explanation_rows(db)
        assert [row["against"] for row in rows] == ["clean", *means] and rows[2]["kept"] == 20
        checks = db.execute(sa.text("SELECT name FROM v_checks WHERE attack = 'explain' ORDER BY name")).scalars().all()
        assert checks == ["constant-map", "random-order", "random-weights"]
    store.engine.dispose()


def back_to_6(db: sa.Connection) -> None:
    """Make a new store one of version 6: a file of SQL like those above would not do for a server."""
    for view in ("v_checks", "v_explanations", "v_results"):
        db.execute(sa.text(f"DROP VIEW {view}"))
    db.execute(sa.text("DROP TABLE explanation"))
    for column in ("distance_median_low", "distance_median_high", "queries", "queries_most"):
        db.execute(sa.text(f"ALTER TABLE result DROP COLUMN {column}"))
    for view in (v0004_checks.V_RESULTS, v0004_checks.V_CHECKS):
        db.execute(sa.text(view))
    for table, column in (("sweep", "cancelled"), ("attempt", "gpus"), ("attempt", "cpus")):
        db.execute(sa.text(f"ALTER TABLE {table} DROP COLUMN {column}"))
    db.execute(sa.update(meta).values(schema_version=6))
