"""Stores that lie where nothing can be written, that are made by several at once, that go while they are read."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from robustq.cli import main
from robustq.jobs.commands import store_info
from robustq.jobs.commands.base import following
from robustq.jobs.commands.queue_actions import status_text
from robustq.jobs.errors import StoreError
from robustq.jobs.store import upgrade, whole_files
from robustq.jobs.store.connection import Store, connect_store, open_store
from robustq.jobs.store.database import sqlite_files
from robustq.jobs.store.schema import SCHEMA_VERSION
from tests.helpers.drain_queue import worked_off
from tests.helpers.fake_sweep import fill
from tests.helpers.html_reading import served
from tests.jobs.report.test_server import Client

ROOT = Path(__file__).parents[3]
NOBODY = 65534
STUDY = {
    "name": "small",
    "models": {"a": {"arch": "lenet5", "train": {"epochs": 1, "examples": 64}}},
    "attacks": [{"name": "fgsm", "norm": "Linf", "eps": 0.1}],
    "examples": 10,
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with real results, closed."""
    folder = tmp_path_factory.mktemp("ran") / "store"
    worked_off(folder, STUDY).engine.dispose()
    assert sorted(path.name for path in folder.iterdir()) == ["artifacts", "r.db"]
    return folder


@pytest.fixture
def sealed(ran: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the store in a folder that nobody can write: on a read-only file system, or for this user."""
    folder = tmp_path / "archive"
    shutil.copytree(ran, folder)
    if os.getuid() == 0:
        bound = ["mount", "--bind", str(folder), str(folder)]
        if subprocess.run(bound, capture_output=True).returncode:
            pytest.skip("root can write any folder, and nothing can be mounted here")
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield folder
        subprocess.run(["umount", "-l", str(folder)], check=True)  # also where a reader has not closed it
    else:
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)


@pytest.mark.slow
def test_every_command_that_reads(sealed: Path, tmp_path: Path):
    """Asked in one process, each opens the store anew."""
    store, out = str(sealed / "r.db"), tmp_path / "out"
    assert not os.access(sealed, os.W_OK)
    said = {}
    for words in (
        ["status", "--json"],
        ["status", "--watch"],
        ["results", "--json"],
        ["logs", "2", "--json"],
        ["logs", "2", "-f"],
        ["export", f"{out}.csv"],
        ["export", f"{out}.parquet", "--per-example"],
        ["report", "--sweep", "small", "--out", f"{out}.html"],
        ["sql", "SELECT count(*) AS n FROM job", "--json"],
        ["db", "info", "--json"],
        ["db", "snapshot"],
        ["diff", store, store, "--json"],
        ["replay", "--json"],
    ):
        done = CliRunner().invoke(main, ["--store", store, *words])
        assert done.exit_code == 0, (words, done.output, done.exception)
        said[" ".join(words[:2])] = done.stdout
    assert (
        '"done": 2' in said["status --json"]
        and '"n": 2' in said["sql SELECT count(*) AS n FROM job"]
        and '"robust_accuracy"' in said["results --json"]
    )
    assert Path(f"{out}.csv").read_text().count("\n") >= 2 and "<html" in Path(f"{out}.html").read_text()
    with served(sealed / "r.db") as port:
        page, live = Client(port).get("/"), Client(port).get("/live")
    assert page.status == live.status == 200 and "small" in page.text
    assert sorted(path.name for path in sealed.iterdir()) == ["artifacts", "r.db"]


@pytest.mark.parametrize(
    "words", [["drive"], ["cancel", "1"], ["retry", "--sweep", "small"], ["pause", "--sweep", "small"]]
)
def test_a_command_that_writes_is_one_line(words, sealed: Path):
    done = CliRunner().invoke(main, ["--store", str(sealed / "r.db"), *words])
    assert done.exit_code == 2
    assert done.stderr.startswith("robustq: store ") and done.stderr.count("\n") == 1
    assert "it cannot be written: check the permissions of the file and its folder" in done.stderr


def test_a_new_store_where_nothing_can_be_written(sealed: Path):
    with pytest.raises(StoreError, match=r"new\.db: it cannot be made, its folder cannot be written: name another$"):
        open_store(str(sealed / "new.db"), create=True, write=True)


@pytest.fixture
def as_nobody(ran: Path) -> Iterator[Path]:
    """A store that another may read, not write; for root alone, who can be that other."""
    if os.getuid() != 0:
        pytest.skip("only root can be somebody else")
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        Path(folder).chmod(0o755)
        shutil.copytree(ran, Path(folder) / "s")
        yield Path(folder) / "s" / "r.db"


def read_as_nobody(path: Path) -> str:
    """The number of jobs and that of sweeps, or the line why not, as a user sees it who can write nothing there."""
    code = f"""
    import os
    from pathlib import Path
    from robustq.jobs.store.database import sqlite_files as files
    os.setuid({NOBODY})
    try:
        db = files.open_reading(Path({str(path)!r}), 1.0)
        print(db.execute("SELECT count(*) FROM job").fetchone(), db.execute("SELECT count(*) FROM sweep").fetchone())
    except Exception as error:
        print(type(error).__name__, error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or done.stderr


def test_a_colleagues_store_is_read_while_it_is_written_and_afterwards(as_nobody: Path):
    assert read_as_nobody(as_nobody) == "(2,) (1,)"
    store = open_store(str(as_nobody), write=True)
    with store.begin() as db:
        db.exec_driver_sql("INSERT INTO sweep (name, spec, identity, created_at) VALUES ('b', '{}', 'b', 0)")
    assert read_as_nobody(as_nobody) == "(2,) (2,)"  # from the log, which is not in the file yet
    store.engine.dispose()
    assert read_as_nobody(as_nobody) == "(2,) (2,)"
    as_nobody.chmod(0o600)
    assert read_as_nobody(as_nobody) == "OperationalError unable to open database file"


def test_a_log_that_cannot_be_read_is_not_passed_over(as_nobody: Path):
    """A copy of a store that was being written: SQLite needs an index of its log, and cannot make one there."""
    store = open_store(str(as_nobody), write=True)
    with store.begin() as db:
        db.exec_driver_sql("INSERT INTO sweep (name, spec, identity, created_at) VALUES ('b', '{}', 'b', 0)")
    copy = as_nobody.parents[1] / "copy" / "r.db"
    copy.parent.mkdir()
    for ending in ("", "-wal"):
        shutil.copy(f"{as_nobody}{ending}", f"{copy}{ending}")
    store.engine.dispose()
    assert read_as_nobody(copy) == (
        f"StoreError store {copy}: its last results are in r.db-wal beside it, which cannot be read in a folder that "
        "cannot be written: copy both files to a folder of your own and name that copy with --store"
    )
    os.truncate(f"{copy}-wal", 0)
    assert read_as_nobody(copy) == "(2,) (1,)"


@pytest.mark.slow
def test_several_who_make_a_store_at_once_all_have_it(tmp_path: Path):
    code = """
    import sys, time
    from robustq.jobs.store.connection import open_store, store_exists
    path, at = sys.argv[1], float(sys.argv[2])
    time.sleep(max(0.0, at - time.time()))
    for n in range(10):  # as `submit` does
        url = f"{path}-{n}"
        if store_exists(url):
            open_store(url, write=True).engine.dispose()
        open_store(url, create=True, write=True).engine.dispose()
    """
    at = str(time.time() + 3)
    words = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "r"), at]
    several = [subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [one.communicate()[1].splitlines()[-1:] for one in several] == [[]] * 4
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"r-{n}" for n in range(10)]


def test_a_making_that_is_killed_leaves_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def killed(part: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("robustq.jobs.store.connection.give_name", killed)
    with pytest.raises(KeyboardInterrupt):
        open_store(str(tmp_path / "r.db"), create=True, write=True)
    assert not (tmp_path / "r.db").exists()
    monkeypatch.undo()
    open_store(str(tmp_path / "r.db"), create=True, write=True).engine.dispose()


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def link(*_: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    for _ in range(2):
        open_store(str(tmp_path / "r.db"), create=True, write=True).engine.dispose()
    assert [path.name for path in tmp_path.iterdir()] == ["r.db"]
    (tmp_path / "part").write_text("new")
    with pytest.raises(FileExistsError):
        whole_files.give_name(tmp_path / "part", tmp_path / "r.db")


def older(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(Path(__file__).with_name("store-1.sql").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("while_", ["copying", "naming"])
def test_an_upgrade_that_is_killed_leaves_no_half_copy(while_: str, tmp_path: Path):
    """Killed outright in the midst: under the good name there is nothing, and the next upgrade goes through."""
    path = tmp_path / "r.db"
    older(path)
    where = {"copying": "os.open", "naming": "os.link"}[while_]
    code = f"""
    import os, signal
    from robustq.jobs.store import whole_files as copies, upgrade
    {where} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    upgrade.upgrade({str(path)!r})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "r.v1.db").exists() and store_info.info(str(path))["schema_version"] == 1
    assert upgrade.upgrade(str(path)).endswith(f"1 -> {SCHEMA_VERSION}, the old one is in {tmp_path / 'r.v1.db'}")
    with contextlib.closing(sqlite3.connect(tmp_path / "r.v1.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_an_upgrade_where_nothing_can_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    older(tmp_path / "r.db")

    def full(db: sqlite3.Connection, target: Path) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(upgrade, "write_copy", full)
    with pytest.raises(StoreError, match=r"it cannot be copied to .*r\.v1\.db before it is changed \(database or disk"):
        upgrade.upgrade(str(tmp_path / "r.db"))


@pytest.mark.slow
def test_a_reader_follows_the_path(made_up: Store, tmp_path: Path):
    path, reader = tmp_path / "results.db", open_store(made_up.url)
    fill(made_up, {"strong": 1.0})
    assert "made-up" in status_text(reader, None, as_json=False)
    other = open_store(str(tmp_path / "other.db"), create=True, write=True)
    other.engine.dispose()
    made_up.engine.dispose()
    os.replace(tmp_path / "other.db", path)
    assert "made-up" not in status_text(reader, None, as_json=False)
    path.unlink()
    with pytest.raises(StoreError, match=r"^there is no store .*/results\.db: `robustq run` or"):
        status_text(reader, None, as_json=False)
    assert not path.exists()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t (x)")
    with pytest.raises(StoreError, match=r"is no robustq store: it has no table 'robustq_meta'"):
        status_text(reader, None, as_json=False)
    path.write_text("something else altogether" * 100)
    with pytest.raises(StoreError, match=r"it is no SQLite database"):
        status_text(reader, None, as_json=False)


def test_watching_ends_with_one_line_when_the_store_goes(made_up: Store, tmp_path: Path):
    fill(made_up, {"strong": 1.0})
    made_up.engine.dispose()
    reader, turns = open_store(made_up.url), iter(range(5))

    def ended() -> bool:
        if next(turns) == 2:
            (tmp_path / "results.db").unlink()
        return False

    with pytest.raises(StoreError, match="there is no store"):
        following(lambda: status_text(reader, None, as_json=False), ended, seconds=0.0)


@pytest.mark.slow
def test_the_live_page_shows_the_store_that_took_its_place(made_up: Store, tmp_path: Path):
    """The same numbers of sweep and jobs, other results: nothing that was kept of the first one is shown."""
    path = tmp_path / "results.db"
    fill(made_up, {"strong": 1.0})
    other = open_store(str(tmp_path / "other" / "results.db"), create=True, write=True)
    fill(other, {"feeble": 0.2})
    made_up.engine.dispose()
    other.engine.dispose()
    with served(path) as port:
        client = Client(port)
        assert "strong is the most robust model" in client.get("/").text
        tag = client.get("/live").headers["ETag"]
        os.replace(tmp_path / "other" / "results.db", path)
        live = client.get("/live", {"If-None-Match": tag})
        assert live.status == 200 and "feeble" in live.text and "strong" not in live.text
        assert "feeble is the most robust model" in client.get("/").text
        path.unlink()
        for where in ("/", "/live"):
            gone = client.get(where)
            assert gone.status == 503 and gone.text.startswith("there is no store ") and gone.text.count("\n") == 1


@pytest.mark.parametrize(
    "statement", ["DELETE FROM robustq_meta", "INSERT INTO robustq_meta VALUES (5, 0)", "UPDATE robustq_meta SET schema_version='x'",
                  "ALTER TABLE robustq_meta RENAME COLUMN schema_version TO v"],
)  # fmt: skip
def test_a_store_that_tells_no_version_is_one_line(statement: str, made_up: Store):
    made_up.engine.dispose()
    with contextlib.closing(sqlite3.connect(made_up.url.removeprefix("sqlite:///"), isolation_level=None)) as db:
        db.execute(statement)
    with pytest.raises(StoreError, match=r"is no robustq store: its table 'robustq_meta' tells no schema version"):
        open_store(made_up.url)


@pytest.mark.parametrize("name", ["a b.db", "a%20b.db", "a#b.db", "ä.db", "a?b.db"])
def test_names_of_files(name: str, tmp_path: Path):
    store = open_store(str(tmp_path / name), create=True, write=True)
    assert store.opened == [sqlite_files.identity(tmp_path / name)]
    store.engine.dispose()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with connect_store(store.url).begin(), connect_store(str(tmp_path / name)).begin():
        assert {path.name.removesuffix("-wal").removesuffix("-shm") for path in tmp_path.iterdir()} == {name}
