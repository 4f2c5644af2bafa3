"""The URL of a store, read with care: which database it means, and which file, if it is one."""

import os
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from robustq.jobs.errors import StoreError
from robustq.jobs.store.database.store_file import checked_path
from robustq.jobs.text.safe_text import address, has_password

SCHEMES = ("sqlite:", "file:", "postgresql:", "postgres:")  # with which a URL begins that lacks its slashes


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


def check_host(url: sa.URL, text: str) -> None:
    """Raises StoreError where no server can have the URL's name, as one with a part of 64 letters."""
    try:
        (url.host or "").encode("utf-8" if (url.host or "").startswith("/") else "idna")
        text.encode()
    except UnicodeError as error:
        raise StoreError(f"store {address(text)}: no file or server can have this name ({error})") from error


def written(url: sa.URL) -> str:
    """A URL as text that means the same; of a file whose name SQLAlchemy's URLs cannot say, its path.

    Before SQLAlchemy 2.1 that is one with a question mark. A password that is a parameter is not hidden.
    """
    text = url.render_as_string()
    return text if sa.make_url(text).database == url.database else str(url.database)
