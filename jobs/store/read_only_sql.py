"""A user's own SELECT on the store: nothing that it says can write, wait for ever or fill the memory.

Opening the file read-only is not enough, since ATTACH opens it again for writing. So SQLite asks `allowed` about every
step of a statement before it runs, and limits bound its time, its memory and its values.
"""

import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustq.jobs.errors import SpecError, StoreError
from robustq.jobs.store.connection import BUSY_SECONDS, connect_store, in_words, parse_url, schema_version
from robustq.jobs.store.sqlite_files import open_reading
from robustq.jobs.text import tables
from robustq.jobs.text.safe_text import address

VALUE_BYTES = 64 * 2**20  # the longest text or blob, and the longest row
HEAP_BYTES = 512 * 2**20
RESULT_BYTES = 256 * 2**20  # of all rows together
CHECK_EVERY = 20_000  # instructions of SQLite's between looks at the clock: some milliseconds
ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
FORBIDDEN = {"load_extension", "fts3_tokenizer", "writefile", "readfile", "edit"}


@dataclass(frozen=True)
class Answer:
    """Column names and rows. whole: whether these are all rows."""

    columns: list[str]
    rows: list[tuple[Any, ...]]
    whole: bool


def ask(url: str, statement: str, *, limit: int = 10_000, seconds: float = 10.0) -> Answer:
    """The answer of one SELECT (or WITH ... SELECT, or VALUES): at most `limit` rows within so many seconds.

    Raises SpecError for any other statement, for one that is wrong and for one that takes too much.
    """
    path = readable(url)
    with closing(open_reading(path, BUSY_SECONDS)) as db:
        db.execute("PRAGMA query_only=ON")
        db.execute("PRAGMA temp_store=MEMORY")
        db.execute(f"PRAGMA hard_heap_limit={HEAP_BYTES}")
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, VALUE_BYTES)
        db.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        db.set_authorizer(allowed)
        end = time.monotonic() + seconds
        db.set_progress_handler(lambda: time.monotonic() > end, CHECK_EVERY)
        try:
            return fetch(db.execute(statement), limit)
        except (sqlite3.Error, sqlite3.Warning, MemoryError, ValueError) as error:
            raise explain(url, error, seconds) from error


def readable(url: str) -> Path:
    """The file of a store of ours."""
    path = parse_url(url)[1]
    if path is None:
        raise StoreError(
            f"robustq sql reads SQLite stores, got {address(url)}: ask a server with psql, as a role that may only read"
        )
    with connect_store(url).begin() as db:
        schema_version(db, address(url))
    return path


def allowed(action: int, first: str | None, second: str | None, database: str | None, by: str | None) -> int:
    """SQLite's question before each step of a statement: reading is allowed, and nothing else is."""
    if action == sqlite3.SQLITE_FUNCTION and second in FORBIDDEN:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK if action in ALLOWED else sqlite3.SQLITE_DENY


def fetch(cursor: sqlite3.Cursor, limit: int) -> Answer:
    """Rows up to the limit, and in memory no more than RESULT_BYTES of them."""
    if cursor.description is None:
        raise ValueError("no rows")
    rows: list[tuple[Any, ...]] = []
    held = 0
    for row in cursor:
        if len(rows) == limit:
            return Answer([column[0] for column in cursor.description], rows, whole=False)
        held += sum(len(value) if isinstance(value, str | bytes) else 8 for value in row)
        if held > RESULT_BYTES:
            raise MemoryError
        rows.append(row)
    return Answer([column[0] for column in cursor.description], rows, whole=True)


def explain(url: str, error: Exception, seconds: float) -> SpecError | StoreError:
    text, code = str(error), getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN):
        return in_words(url, text) or StoreError(f"store {url}: {text}")
    if "not authorized" in text or "prohibited" in text or "readonly" in text or text == "no rows":
        return SpecError("expected one SELECT, got a statement that does something else: nothing was changed")
    if "interrupted" in text:
        return SpecError(f"the statement took more than {seconds:g} seconds: narrow it down, or raise --seconds")
    if isinstance(error, MemoryError) or "too big" in text or "out of memory" in text:
        return SpecError("the answer does not fit into memory: ask for fewer rows or columns")
    if "one statement at a time" in text:
        return SpecError("expected one statement, got several: ask for them one after the other")
    return SpecError(f"the statement is wrong: {text or type(error).__name__}")


def answer_text(answer: Answer, *, as_json: bool) -> str:
    """As a table, or as JSON: a list of objects, blobs in hexadecimal."""
    if as_json:
        rows = [
            {
                name: value.hex() if isinstance(value, bytes) else value
                for name, value in zip(answer.columns, row, strict=True)
            }
            for row in answer.rows
        ]
        return tables.json_text(rows)
    shown = [
        {name: f"{len(v)} bytes" if isinstance(v, bytes) else v for name, v in zip(answer.columns, row, strict=True)}
        for row in answer.rows
    ]
    return tables.table(shown)
