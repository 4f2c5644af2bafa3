"""What may be opened as a store, and what is refused: in one line, with nothing changed."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from robustq.jobs.errors import StoreError
from robustq.jobs.store.connection import open_store
from robustq.jobs.store.database import store_file
from robustq.jobs.store.schema import SCHEMA_VERSION, meta


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


def test_a_reader_cannot_write(store):
    reader = open_store(store.url)
    with pytest.raises(StoreError, match=r"it cannot be written|it was opened for reading"), reader.begin() as db:
        db.execute(sa.update(meta).values(schema_version=2))
    reader.engine.dispose()


@pytest.mark.parametrize(
    ("mounts", "kind"),
    [
        ("server:/home /home nfs4 rw 0 0", "nfs4"),
        ("server:/home /home nfs4 rw 0 0\n/dev/sda /home/me/disk ext4 rw 0 0", None),
        ("//server/share /home/me cifs rw 0 0", "cifs"),
        ("/dev/sda / ext4 rw 0 0\nserver:/x /home/other nfs rw 0 0", None),
        ("", None),
    ],
)
def test_network_file_systems(tmp_path, monkeypatch, mounts, kind):
    (tmp_path / "mounts").write_text("/dev/root / ext4 rw 0 0\n" + mounts)
    monkeypatch.setattr(store_file, "MOUNTS", tmp_path / "mounts")
    assert store_file.network_file_system(Path("/home/me/disk/r.db")) == kind


def test_sqlite_on_a_network_file_system_is_refused_and_nothing_made(tmp_path, monkeypatch):
    monkeypatch.setattr(store_file, "MOUNTS", tmp_path / "mounts")
    (tmp_path / "mounts").write_text(f"server:/x {tmp_path.resolve()} nfs4 rw 0 0\n")
    with pytest.raises(StoreError, match=r"lies on a network file system \(nfs4\), on which SQLite loses data: name a"):
        open_store(str(tmp_path / "deep" / "r.db"), create=True, write=True)
    assert not (tmp_path / "deep").exists()


@pytest.mark.postgres
def test_a_server_that_cannot_be_used_is_one_line(postgres):
    for url in (postgres + "_not_there", "postgresql+psycopg://x@127.0.0.1:1/y"):
        with pytest.raises(StoreError, match=r"its server cannot be used: .*; check the URL, and that the server runs"):
            open_store(url)


@pytest.mark.postgres
def test_two_who_come_to_a_new_server_at_once(postgres):
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: open_store(postgres, create=True, write=True), range(4)))
    with stores[0].begin() as db:
        assert db.execute(sa.select(meta.c.schema_version)).scalars().all() == [SCHEMA_VERSION]
    for store in stores:
        store.engine.dispose()


def test_other_databases_are_refused():
    with pytest.raises(StoreError, match="expected a store as sqlite:///FILE or a PostgreSQL URL, got mysql://h/d"):
        open_store("mysql://h/d")


def test_a_full_disk_is_one_line_and_loses_nothing(sqlite_store):
    store = sqlite_store
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
