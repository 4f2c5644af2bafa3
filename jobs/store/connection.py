"""The connection to the store: a database URL, the folder of artifacts beside it, and who may write."""

import atexit
import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError

from robustlib.number_text import in_seconds
from robustq.jobs.errors import StoreAway, StoreError
from robustq.jobs.store.database.engines import server_engine, sqlite_engine
from robustq.jobs.store.database.error_words import BROKEN_OFF, in_words, is_away
from robustq.jobs.store.database.sqlite_files import Identity
from robustq.jobs.store.database.store_file import network_file_system, no_store
from robustq.jobs.store.database.store_url import parse_url, written
from robustq.jobs.store.schema_check import check_schema
from robustq.jobs.store.whole_files import give_name, unfinished
from robustq.jobs.text.notes import LOGGER
from robustq.jobs.text.safe_text import address, hide

DEADLOCKS = 5  # that a driver's transaction may be broken off by
AWAY_SECONDS, LOOK_SECONDS = 300.0, 1.0  # that a server is waited for in a run, and between two looks


@dataclass(frozen=True)
class Store:
    """An open store. artifacts: folder or URL of the files that its jobs leave behind.

    opened: of an SQLite store that is written, which file it was when it was first opened.
    """

    url: str
    engine: Engine
    artifacts: str
    opened: list[Identity] = field(default_factory=list)

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """One transaction; what goes wrong with the store itself becomes one clear line."""
        try:
            with self.engine.begin() as db:
                yield db
        except DatabaseError as error:
            raise explain(self, error) from error

    def write(self, change: Callable[[Connection], Any]) -> Any:
        """A change in a transaction of its own, begun again where a server broke it off to end a deadlock."""
        for _ in range(DEADLOCKS):
            try:
                with self.begin() as db:
                    return change(db)
            except OperationalError as error:
                if getattr(error.orig, "sqlstate", None) not in BROKEN_OFF:
                    raise
        with self.begin() as db:
            return change(db)

    def insist(self, change: Callable[[Connection, bool], Any], tell: Callable[[str], None]) -> Any:
        """A change that a server which restarts does not stop: it is waited for, and the change made again.

        change: is told whether it was tried before, when it may have been made although nobody heard of it.
        tell: hears once that the server is away, and once that it is back.  Raises StoreAway after AWAY_SECONDS.
        """
        since = None
        while True:
            try:
                found = self.write(lambda db, again=since is not None: change(db, again))
                if since is not None:
                    away = in_seconds(round(time.monotonic() - since))
                    tell(f"store {self.url}: its server is back after {away}")
                return found
            except StoreAway as error:
                now = time.monotonic()
                if since is None:
                    since = now
                    tell(f"{error.found}; waiting for it, {AWAY_SECONDS / 60:g} minutes at most: what runs goes on")
                if now - since > AWAY_SECONDS:
                    raise
                time.sleep(LOOK_SECONDS)


def explain(store: Store, error: DatabaseError) -> Exception:
    """The store's own troubles in words; any other database error is a bug and stays as it is."""
    url, text = store.url, str(error.orig)
    if getattr(error.orig, "sqlstate", None) in BROKEN_OFF:
        return error
    if is_away(store.engine, error):
        reason = hide(" ".join(text.split()))
        return StoreAway(f"store {url}: its server cannot be used: {reason}", "check the URL, and that the server runs")
    path = parse_url(url)[1] if store.engine.dialect.name == "sqlite" else None
    if path is not None and "unable to open" in text:
        if not path.exists():
            return no_store(path)
        if os.access(path, os.R_OK):  # it is what SQLite writes beside it that cannot be
            text = "readonly"
    if path is not None and ("no such table" in text or "no such column" in text):
        try:  # another file may have taken its place since it was opened
            with store.engine.begin() as db:
                check_schema(db, url, create=False)
        except StoreError as found:
            return found
        except DatabaseError:
            return error
    return in_words(url, text) or error


def store_exists(text: str) -> bool:
    """Whether there is something to open; a server's database is always taken to be there."""
    path = parse_url(text)[1]
    return path is None or path.exists()


def open_store(text: str, *, create: bool = False, write: bool = False) -> Store:
    """Open a store by URL, or by the path of an SQLite file.

    create: make it where there is none (with write).  write: whether transactions may write; a reader's cannot.
    Raises StoreError where it is missing, no robustq store or one of another version.
    """
    path = parse_url(text)[1]
    if path is not None and write and (kind := network_file_system(path)) is not None:
        raise StoreError(
            f"store {path} lies on a network file system ({kind}), on which SQLite loses data: name a file on a local "
            "disk with --store, or a PostgreSQL URL"
        )
    if path is not None and not path.exists() and create:
        make_file(path)
    if path is not None and write and path.exists() and path.stat().st_size:
        # Looked at before it is opened for writing, which would leave marks in somebody else's database.
        check_store(connect_store(text), create=False)
    store = connect_store(text, write=write)
    check_store(store, create=create)
    LOGGER.info("store %s opened, to be %s", store.url, "written" if write else "read")
    OPENED.add(store.engine)
    return store


# Stores that this process has open, closed when it ends: the last one to close an SQLite file takes its log into it.
OPENED: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def close_all() -> None:
    for engine in list(OPENED):
        engine.dispose()


def make_file(path: Path) -> None:
    """A new store, named once it is whole: of several who make it at once, one does, and none sees half of it."""
    target = Path(os.path.realpath(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"store {path}: its folder cannot be made ({error.strerror})") from error
    with unfinished(target) as part:
        store = Store(str(path), sqlite_engine(part, mode="rwc"), "")
        try:
            check_store(store, create=True)
        except StoreError as error:
            if os.access(target.parent, os.W_OK):
                raise
            raise StoreError(f"store {path}: it cannot be made, its folder cannot be written: name another") from error
        store.engine.dispose()  # which takes its write-ahead log into the file
        with suppress(FileExistsError):
            give_name(part, target)


def connect_store(text: str, *, write: bool = False, awaited: bool = False) -> Store:
    """The store as it is: whatever its version, and whether it is one at all. awaited: its file may come later."""
    url, path = parse_url(text)
    if path is not None and not awaited and not path.exists():
        raise no_store(path)
    folder = path.parent if path else Path(".robustq").absolute()
    shown = address(written(url))
    artifacts = os.environ.get("ROBUSTQ_ARTIFACTS") or str(folder / "artifacts")
    if path is not None:
        opened: list[Identity] = []
        return Store(shown, sqlite_engine(path, "rw" if write else "ro", opened), artifacts, opened)
    try:
        return Store(shown, server_engine(url, write=write), artifacts)
    except ModuleNotFoundError as error:
        raise StoreError(f"store {shown} needs the package {error.name}: pip install robustq[postgres]") from error
    except NoSuchModuleError as error:
        raise StoreError(f"store {shown}: there is no driver {url.drivername}: postgresql+psycopg is one") from error
    except (ArgumentError, ValueError) as error:  # of one of its parameters
        raise StoreError(f"store {shown}: {hide(str(error))}: check the URL") from error


def check_store(store: Store, *, create: bool) -> None:
    with store.begin() as db:
        check_schema(db, store.url, create=create)
