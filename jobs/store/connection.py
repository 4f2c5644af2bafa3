"""The connection to the store: a database URL, the folder of artifacts beside it, and who may write."""

import atexit
import errno
import os
import sqlite3
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError

from robustlib.names import near_file
from robustlib.regular_files import irregular
from robustq.jobs.errors import StoreAway, StoreError
from robustq.jobs.store import sqlite_files
from robustq.jobs.store.schema import SCHEMA_VERSION, meta, metadata
from robustq.jobs.store.sqlite_files import Identity
from robustq.jobs.store.views import V_CHECKS, V_EXPLANATIONS, V_RESULTS
from robustq.jobs.store.whole_files import give_name, unfinished
from robustq.jobs.text.notes import LOGGER
from robustq.jobs.text.safe_text import address, has_password, hide

BUSY_SECONDS = 30
DEADLOCKS = 5  # that a driver's transaction may be broken off by
BROKEN_OFF = ("40P01", "40001")  # PostgreSQL's codes for a deadlock and for what cannot be serialised
ENDED = ("57P01", "57P02", "57P03")  # a server that shuts down, has crashed, or does not yet take anybody in
AWAY_SECONDS, LOOK_SECONDS = 300.0, 1.0  # that a server is waited for in a run, and between two looks
MAKING = 0x726F6275  # of PostgreSQL's advisory locks: ours, to make the tables under


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
                    tell(f"store {self.url}: its server is back after {time.monotonic() - since:.0f} seconds")
                return found
            except StoreAway as error:
                now = time.monotonic()
                if since is None:
                    since = now
                    tell(f"{error.found}; waiting for it, {AWAY_SECONDS / 60:g} minutes at most: what runs goes on")
                if now - since > AWAY_SECONDS:
                    raise
                time.sleep(LOOK_SECONDS)


# In words only: a connection that cannot be made has no code.
UNREACHED = (
    "connection failed", "connection is bad", "failed to resolve host", "invalid connection option", "bad value for",
)  # fmt: skip
SCHEMES = ("sqlite:", "file:", "postgresql:", "postgres:")  # with which a URL begins that lacks its slashes
MENDS = {
    "full": "the disk is full: make room and run the same command again, nothing that was recorded is lost",
    "readonly": "it cannot be written: check the permissions of the file and its folder",
    "read-only transaction": "it was opened for reading",
    "read-only": "it cannot be written: check the permissions of the file and its folder",
    "unable to open": "it cannot be opened: check the path and its permissions",
    "not a database": "it is no SQLite database: name another file with --store",
    "malformed": "the file is damaged: restore a copy or name another file with --store",
    "disk I/O error": "it cannot be read (disk I/O error): the disk fails, or the file was changed while it was open; "
    "try again, restore a copy or name another file with --store",
    "locked": f"another process held it for more than {BUSY_SECONDS} seconds: try again",
}


def in_words(url: str, text: str) -> StoreError | None:
    """The line for what SQLite or a server says of a store; None where that is no trouble of the store's."""
    return next((StoreError(f"store {url}: {mend}") for sign, mend in MENDS.items() if sign in text), None)


def explain(store: Store, error: DatabaseError) -> Exception:
    """The store's own troubles in words; any other database error is a bug and stays as it is."""
    url, text = store.url, str(error.orig)
    if getattr(error.orig, "sqlstate", None) in BROKEN_OFF:
        return error
    if is_away(store, error):
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


def is_away(store: Store, error: DatabaseError) -> bool:
    """Whether a server cannot be reached, or is gone or going, as when it is restarted."""
    if store.engine.dialect.name == "sqlite":
        return False
    if error.connection_invalidated or getattr(error.orig, "sqlstate", None) in ENDED:
        return True
    return any(sign in str(error.orig) for sign in UNREACHED)


def no_store(path: Path) -> StoreError:
    made = "`robustq run` or `robustq submit` makes one, --store names another"
    return StoreError(f"there is no store {path}: {made}{near_file(path)}")


def sqlite_path(url: sa.URL) -> Path | None:
    """The file of an SQLite URL, None for other databases."""
    if url.get_backend_name() != "sqlite":
        return None
    if not url.database or url.database in (":memory:", "file::memory:"):
        raise StoreError("expected a file as the store, got a database in memory: name one as sqlite:///results.db")
    if url.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise StoreError(f"expected a store as sqlite:///FILE, got the driver {url.drivername}: it has no effect")
    beside = [name for name in ("username", "password", "host", "port", "query") if getattr(url, name)]
    if beside:
        raise StoreError(
            f"expected a store as sqlite:///FILE, with three slashes and nothing beside the file, got its {beside[0]}: "
            "it has no effect"
        )
    return checked_path(Path(os.path.abspath(url.database)))


def checked_path(path: Path) -> Path:
    """The path of a store. Raises StoreError for one that no file can have, and for what is no file."""
    try:
        str(path).encode()
        os.lstat(path)
    except ValueError as error:  # of a zero byte, or of half a character
        raise StoreError(f"store {path}: no file can have this name ({error}): name another with --store") from error
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise StoreError(f"store {path}: {error.strerror}: name another with --store") from error
    if path.is_dir():
        raise StoreError(f"expected the store as a file such as {path}/results.db, got the folder {path}")
    if (kind := irregular(path)) is not None:
        raise StoreError(f"expected the store as a file, got {path}, which is {kind}: name another with --store")
    if path.is_symlink() and not path.exists() and is_loop(path):
        raise StoreError(f"store {path} is a link that leads back to itself: name another with --store")
    return path


def is_loop(path: Path) -> bool:
    try:
        os.stat(path)
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def parse_url(text: str) -> tuple[sa.URL, Path | None]:
    """The URL of a store, given as one or as the path of an SQLite file; and that file, if it is one."""
    try:
        schemed = has_password(text) or text.lower().startswith(SCHEMES) or not text.strip()
        if "://" not in text and schemed and not os.path.exists(text):
            raise ArgumentError("a URL without its slashes")
        # A path is taken as it stands: in a URL %20 and ? would mean something else.
        url = sa.make_url(text) if "://" in text else sa.URL.create("sqlite", database=text)
    except (ArgumentError, ValueError) as error:  # the latter for a port that is no number
        expected = "expected a store as sqlite:///FILE or a PostgreSQL URL"
        raise StoreError(f"{expected}, got {address(text)!r}") from error
    check_host(url, text)
    if "@" in (url.host or "") or "@" in (url.username or ""):
        raise StoreError(f"store {address(text)}: an @ in a password is written as %40")
    return url, sqlite_path(url)


def check_host(url: sa.URL, text: str) -> None:
    """Raises StoreError where no server can have the URL's name, as one with a part of 64 letters."""
    try:
        (url.host or "").encode("utf-8" if (url.host or "").startswith("/") else "idna")
        text.encode()
    except UnicodeError as error:
        raise StoreError(f"store {address(text)}: no file or server can have this name ({error})") from error


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


# As Linux names them: there several hosts may have the file open, which SQLite's write-ahead log cannot bear.
NETWORK = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "afs", "pvfs2", "fuse.sshfs",
    "fuse.glusterfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.juicefs",
}  # fmt: skip
MOUNTS = Path("/proc/self/mounts")


def network_file_system(path: Path) -> str | None:
    """The network file system that a file lies on; None on a local one, and where the system does not tell."""
    try:
        lines = [line.split(" ") for line in MOUNTS.read_text().splitlines()]
    except OSError:
        return None
    real = Path(os.path.realpath(path))
    mounts = {Path(fields[1].replace("\\040", " ")): fields[2] for fields in lines if len(fields) > 2}
    found = next((mounts[parent] for parent in (real, *real.parents) if parent in mounts), None)
    return found if found in NETWORK else None


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


def written(url: sa.URL) -> str:
    """A URL as text that means the same; of a file whose name SQLAlchemy's URLs cannot say, its path.

    Before SQLAlchemy 2.1 that is one with a question mark. A password that is a parameter is not hidden.
    """
    text = url.render_as_string()
    return text if sa.make_url(text).database == url.database else str(url.database)


def check_store(store: Store, *, create: bool) -> None:
    with store.begin() as db:
        check_schema(db, store.url, create=create)


def check_schema(db: Connection, url: str, *, create: bool) -> None:
    """Make the tables in an empty database; refuse a foreign one and other versions."""
    if create and db.dialect.name == "postgresql":  # one after the other, where several come to a new database
        db.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": MAKING})
    names = sa.inspect(db).get_table_names()
    if not names and create:
        metadata.create_all(db)
        db.execute(sa.text(V_RESULTS))
        db.execute(sa.text(V_EXPLANATIONS))
        db.execute(sa.text(V_CHECKS))
        db.execute(sa.insert(meta).values(schema_version=SCHEMA_VERSION, created_at=time.time()))
        return
    version = schema_version(db, url)
    if version != SCHEMA_VERSION:
        older = f"`robustq --store {url} db upgrade` brings it there" if version < SCHEMA_VERSION else "update robustq"
        raise StoreError(
            f"store {url} has schema version {version}, this robustq reads version {SCHEMA_VERSION}: "
            f"{older}, or name another file with --store"
        )


def schema_version(db: Connection, url: str) -> int:
    """Raises StoreError where this is no store of ours."""
    inspector = sa.inspect(db)
    if meta.name not in inspector.get_table_names():
        raise StoreError(f"{url} is no robustq store: it has no table {meta.name!r}; name another file with --store")
    named = any(column["name"] == "schema_version" for column in inspector.get_columns(meta.name))
    found = db.execute(sa.select(meta.c.schema_version)).scalars().all() if named else []
    if len(found) != 1 or not isinstance(found[0], int):
        raise StoreError(
            f"{url} is no robustq store: its table {meta.name!r} tells no schema version; name another file"
        )
    return found[0]


def server_engine(url: sa.URL, *, write: bool) -> Engine:
    """An engine for PostgreSQL. A reader's transactions are read-only, but the role's grants are what guards it."""
    if url.get_backend_name() != "postgresql":
        raise StoreError(
            f"expected a store as sqlite:///FILE or a PostgreSQL URL, got {address(url.render_as_string())}"
        )
    # Connections of a driver that slept or of a server that restarted are tried before they are used.
    options = {} if write else {"options": "-c default_transaction_read_only=on"}
    return sa.create_engine(url, pool_pre_ping=True, connect_args=options)


def sqlite_engine(path: Path, mode: str, opened: list[Identity] | None = None) -> Engine:
    """An engine whose writing transactions start with BEGIN IMMEDIATE: deferred ones fail when they race.

    mode: SQLite's: ro, rw, rwc.  opened: is told of the file once it is open for writing.
    A reader opens the file anew for each transaction, so that it reads what the path names then.
    """
    write = mode != "ro"

    def connect() -> sqlite3.Connection:
        if not write:
            return sqlite_files.open_reading(path, BUSY_SECONDS)
        found = sqlite_files.connect(path, f"mode={mode}", BUSY_SECONDS)
        if opened is not None and not opened and (identity := sqlite_files.identity(path)) is not None:
            opened.append(identity)
        return found

    engine = sa.create_engine("sqlite://", creator=connect, poolclass=sa.pool.QueuePool if write else sa.pool.NullPool)

    @event.listens_for(engine, "connect")
    def settings(connection: sqlite3.Connection, _: Any) -> None:
        connection.execute("PRAGMA foreign_keys=ON")
        if write:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")  # a recorded result survives a power cut
        else:
            connection.execute("PRAGMA query_only=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine
