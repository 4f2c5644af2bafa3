"""What may be opened as a store, and what is refused: in one line, with nothing changed."""

import sqlite3

import pytest
import sqlalchemy as sa

from jobs.engine import open_store
from jobs.errors import StoreError
from jobs.schema import meta


def test_a_store_that_is_not_there(tmp_path):
    with pytest.raises(StoreError, match=r"^there is no store .*/none.db: `robustq run` or `robustq submit` makes one"):
        open_store(str(tmp_path / "none.db"))
    assert not list(tmp_path.iterdir())


def test_a_foreign_database_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    before = path.read_bytes()
    for how in ({}, {"write": True}, {"write": True, "create": True}):
        with pytest.raises(StoreError, match=r"is no robustq store: it has no table 'robustq_meta'; name another file"):
            open_store(str(path), **how)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["other.db"]


def test_a_file_that_is_no_database(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to look at: " * 50)
    with pytest.raises(StoreError, match=r"notes.txt: it is no SQLite database: name another file with --store$"):
        open_store(str(path), write=True)


def test_another_schema_version(tmp_path):
    store = open_store(str(tmp_path / "r.db"), create=True, write=True)
    with store.begin() as db:
        db.execute(sa.update(meta).values(schema_version=99))
    store.engine.dispose()
    with pytest.raises(
        StoreError, match=r"has schema version 99, this robustq reads version \d+: update robustq, or name"
    ):
        open_store(str(tmp_path / "r.db"))


@pytest.mark.parametrize("text", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(text):
    with pytest.raises(StoreError, match="expected a file as the store, got a database in memory"):
        open_store(text)


def test_a_reader_cannot_write(store, tmp_path):
    reader = open_store(str(tmp_path / "results.db"))
    with pytest.raises(StoreError, match="it cannot be written"), reader.begin() as db:
        db.execute(sa.update(meta).values(schema_version=2))
    reader.engine.dispose()


def test_a_full_disk_is_one_line_and_loses_nothing(store):
    """SQLite answers a size limit as it answers a full disk."""
    with store.begin() as db:
        size = db.exec_driver_sql("PRAGMA page_count").scalar()
        db.exec_driver_sql(f"PRAGMA max_page_count={size}")
    with (
        pytest.raises(StoreError, match="the disk is full: make room and run the same command again"),
        store.begin() as db,
    ):
        db.exec_driver_sql("INSERT INTO event (at, kind) SELECT 1, hex(randomblob(100000))")
    with store.begin() as db:
        assert db.exec_driver_sql("SELECT count(*) FROM job").scalar() == 8
        assert db.exec_driver_sql("SELECT count(*) FROM event").scalar() == 0


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"its folder cannot be made \((Not a directory|File exists)\)"):
        open_store(str(tmp_path / "file" / "deep" / "r.db"), create=True, write=True)


def test_an_unknown_kind_of_url():
    with pytest.raises(StoreError, match="expected a store as sqlite:///FILE or a PostgreSQL URL, got"):
        open_store("://x")
