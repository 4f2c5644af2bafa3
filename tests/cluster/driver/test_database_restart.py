"""The server of a store restarts: a run waits for it, and what it writes is written once."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from robustq.cluster.driver import loop
from robustq.cluster.driver.state import Driver
from robustq.cluster.slots import Slots
from robustq.jobs.errors import StoreAway, StoreError
from robustq.jobs.queue import drivers, transitions
from robustq.jobs.queue.claims import claim
from robustq.jobs.queue.probe_jobs import submit_probes
from robustq.jobs.queue.status import counts
from robustq.jobs.store import connection as engine
from robustq.jobs.store.connection import Store, open_store
from robustq.jobs.store.schema import attempt, job
from tests.helpers.no_workers import NoWorkers
from tests.helpers.postgres_server import own_server

pytestmark = pytest.mark.postgres
PROBED = {"n": 0, "seconds": 0.0, "device": "cpu", "versions": {}}


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Callable[..., None]]]:
    with own_server() as found:
        yield found


@pytest.fixture
def store(server, monkeypatch) -> Iterator[Store]:
    monkeypatch.setattr(engine, "LOOK_SECONDS", 0.05)
    made = open_store(server[0], create=True, write=True)
    yield made
    with made.begin() as db:
        for table in reversed(sa.inspect(db).get_table_names()):
            db.execute(sa.text(f'DROP TABLE IF EXISTS "{table}" CASCADE'))
    made.engine.dispose()


@pytest.fixture
def driver(store) -> Driver:
    submit_probes(store, 3)
    made = Driver(store, NoWorkers(), Slots(1, 0, 1), None, tell=[].append)
    with store.begin() as db:
        made.beat_at = drivers.register(db, made.id, "here", 1, 0.0, "")
    return made


def once(act: Callable[[], None]) -> Callable[[], None]:
    left = [act]
    return lambda: left.pop()() if left else None


def lose_the_answer(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next commit is made, and the server goes before it can say so."""
    dialect, commit = store.engine.dialect, store.engine.dialect.do_commit

    def do_commit(connection: Any) -> None:
        monkeypatch.setattr(dialect, "do_commit", commit)
        commit(connection)
        connection.driver_connection.close()
        raise psycopg.errors.AdminShutdown("terminating connection due to administrator command")

    monkeypatch.setattr(dialect, "do_commit", do_commit)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_change_that_is_broken_off_is_made_again(mode, server, store, driver):
    restart = once(lambda: server[1]("restart", "-m", mode))

    def take(db: sa.Connection) -> list[transitions.Claimed]:
        found = claim(db, driver.id, most=2)
        restart()
        return found

    told: list[str] = []
    driver.tell = told.append
    claimed = driver.write(take)
    assert [c.fence for c in claimed] == [1, 1]  # the first claim was never made
    assert len(told) == 2 and "waiting for it, 5 minutes at most: what runs goes on" in told[0]
    assert told[1].startswith(f"store {store.url}: its server is back after ")
    with store.begin() as db:
        assert counts(db)["leased"] == 2
        driver.verify(db)  # and it knows the store for its own


def test_a_claim_whose_answer_was_lost_is_known(store, driver, monkeypatch):
    lose_the_answer(store, monkeypatch)
    claimed = driver.write(lambda db: claim(db, driver.id, most=2))
    with store.begin() as db:
        held = db.execute(sa.select(job.c.id, job.c.fence).where(job.c.lease_owner == driver.id)).all()
        driver.verify(db)
    assert sorted((c.id, c.fence) for c in claimed) == sorted(map(tuple, held)) and len(held) == 2


def test_a_result_whose_answer_was_lost_is_recorded_once(store, driver, monkeypatch):
    (claimed,) = driver.write(lambda db: claim(db, driver.id, most=1))
    driver.write(lambda db: transitions.start(db, claimed, driver.id, "here", 1, ""))
    lose_the_answer(store, monkeypatch)
    assert driver.write(lambda db: transitions.finish(db, claimed, PROBED))
    lose_the_answer(store, monkeypatch)
    driver.write(lambda db: transitions.crash(db, claimed, "late"))
    with store.begin() as db:
        assert counts(db)["done"] == 1
        assert [(row.outcome, row.n) for row in db.execute(attempt.select())] == [("done", 1)]
        assert db.execute(sa.text("SELECT kind FROM event")).all() == []  # no second try was seen, nor refused


def test_leases_that_ran_out_while_the_server_was_down_are_still_ones_own(server, store, driver, monkeypatch):
    monkeypatch.setattr("robustq.jobs.queue.claims.LEASE_SECONDS", -1.0)
    claimed = driver.write(lambda db: claim(db, driver.id, most=2))
    restart = once(lambda: server[1]("restart", "-m", "fast"))

    def look(db: sa.Connection) -> int:
        restart()
        return drivers.reclaim(db, [])

    assert len(claimed) == 2 and driver.write(look) == 0


def test_housekeeping_that_is_broken_off_forgets_nothing(server, store, driver, monkeypatch):
    claimed = driver.write(lambda db: claim(db, driver.id, most=2))
    bundle = loop.Bundle(None, {c.id: c for c in claimed}, None, 1.0)  # pyright: ignore[reportArgumentType]
    driver.bundles.append(bundle)
    monkeypatch.setattr(loop.watchdog, "end", lambda driver, bundle: None)
    with store.begin() as db:
        db.execute(sa.update(job).where(job.c.id == claimed[0].id).values(cancel_requested=True))
    restart = once(lambda: server[1]("restart", "-m", "fast"))
    monkeypatch.setattr(loop.watchdog, "end_stuck", lambda db, driver: restart())
    loop.housekeep(driver)
    with store.begin() as db:
        found = counts(db)
    assert (found["cancelled"], found["queued"], found["leased"], driver.bundles) == (1, 2, 0, [])


def test_a_server_that_stays_away(server, store, driver, monkeypatch):
    monkeypatch.setattr(engine, "AWAY_SECONDS", 0.3)
    server[1]("stop", "-m", "fast")
    try:
        began = time.monotonic()
        with pytest.raises(StoreAway, match=r"its server cannot be used: .*; check the URL, and that the server runs$"):
            driver.write(lambda db: None)
        assert time.monotonic() - began < 10
        with pytest.raises(StoreError, match="its server cannot be used"):  # what is no run waits for nobody
            open_store(server[0])
    finally:
        server[1]("start")
