"""A user's own SELECT on the store: nothing that it says can write, wait for ever or fill the memory.

Opening a file read-only is not enough, since ATTACH opens it again for writing. So SQLite asks `allowed` about every
step of a statement before it runs, and limits bound its time, its memory and its values. A server gets the statement as
a cursor's, which takes one SELECT and nothing else, in a transaction that only reads; what functions may do there its
role's grants decide.
"""

import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from robustlib.names import did_you_mean
from robustlib.number_text import counted, in_seconds
from robustq.jobs.errors import SpecError, StoreError
from robustq.jobs.store.connection import Store, connect_store
from robustq.jobs.store.database.engines import BUSY_SECONDS
from robustq.jobs.store.database.error_words import in_words
from robustq.jobs.store.database.sqlite_files import open_reading
from robustq.jobs.store.database.store_url import parse_url
from robustq.jobs.store.schema_check import schema_version
from robustq.jobs.text import tables
from robustq.jobs.text.safe_text import address

VALUE_BYTES = 64 * 2**20  # the longest text or blob, and the longest row
HEAP_BYTES = 512 * 2**20
RESULT_BYTES = 256 * 2**20  # of all rows together
CHECK_EVERY = 20_000  # instructions of SQLite's between looks at the clock: some milliseconds
ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
SERVER_ROWS = 100  # that a server is asked for at once
NO_SELECT = "expected one SELECT, got a statement that does something else: nothing was changed"
SEVERAL = "expected one statement, got several: ask for them one after the other"
TOO_LARGE = "the answer does not fit into memory: ask for fewer rows or columns"
# PostgreSQL's codes: a write in a transaction that only reads, what no cursor can hold, what the role may not do; and
# the classes of errors that a statement makes itself.
FORBIDDEN_THERE = ("25001", "25006", "0A000", "42501")
WRONG = ("42", "22", "21", "54")
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
    store = connect_store(url)
    with store.begin() as db:
        schema_version(db, address(url))
    path = parse_url(url)[1]
    if path is None:
        return ask_server(url, store, statement, limit, seconds)
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


def ask_server(url: str, store: Store, statement: str, limit: int, seconds: float) -> Answer:
    """The same of PostgreSQL."""
    import psycopg

    end = time.monotonic() + seconds
    try:
        with store.engine.connect() as db:
            set_timeout(db, end)
            # In binary form, since the server then takes one statement at a time.
            cursor = cast(Any, db.connection.cursor())
            cursor.execute(f"DECLARE asked NO SCROLL CURSOR FOR {statement}", binary=True)
            return fetch(ServerRows(db, cursor, end), limit)
    except DBAPIError as error:  # of the connection itself
        raise explain_server(url, statement, error.orig or error, seconds) from error
    except (psycopg.Error, MemoryError, ValueError) as error:  # the last of letters that no server takes
        raise explain_server(url, statement, error, seconds) from error
    finally:
        store.engine.dispose()


def set_timeout(db: sa.Connection, end: float) -> None:
    """Milliseconds that the next statement may take."""
    db.exec_driver_sql(f"SET LOCAL statement_timeout = {max(1, round(1000 * (end - time.monotonic())))}")


class ServerRows:
    """A server's cursor as SQLite's: the rows of its answer, some at a time, and their columns."""

    def __init__(self, db: sa.Connection, cursor: Any, end: float):
        self.db, self.cursor, self.end = db, cursor, end
        self.next()

    def next(self) -> None:
        set_timeout(self.db, self.end)
        self.cursor.execute(f"FETCH {SERVER_ROWS} FROM asked")
        self.rows, self.description = self.cursor.fetchall(), self.cursor.description

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        while self.rows:
            yield from (tuple(map(plain_value, row)) for row in self.rows)
            self.next()


def plain_value(value: Any) -> Any:
    """A value as SQLite has them: numbers, texts and bytes; JSON as it is."""
    if isinstance(value, Decimal):
        return float(value)
    return value if isinstance(value, int | float | str | bytes | dict | list | None) else str(value)


def sqlstate(error: BaseException) -> str | None:
    """PostgreSQL's code of an error; None for one that is not the server's."""
    return getattr(error, "sqlstate", None)


def explain_server(url: str, statement: str, error: BaseException, seconds: float) -> Exception:
    text, code = " ".join(str(error).split("\n")[0].split()), sqlstate(error)
    first = statement.lstrip(" \t\n(").partition(" ")[0].split("\n")[0].lower()
    if "multiple commands" in text:
        return SpecError(SEVERAL)
    if code in FORBIDDEN_THERE or (code == "42601" and first not in ("select", "with", "values", "table")):
        return SpecError(NO_SELECT)
    if code == "57014":
        return SpecError(too_long(seconds))
    if isinstance(error, MemoryError):
        return SpecError(TOO_LARGE)
    if isinstance(error, ValueError):
        return SpecError(f"the statement is wrong: {text}")
    if code is None or not code.startswith(WRONG):
        return in_words(address(url), text) or StoreError(f"store {address(url)}: {text}")
    return SpecError(f"the statement is wrong: {text}{names_there(url, text)}")


def names_there(url: str, text: str) -> str:
    """What a statement could have named instead of what is not there, by the words of SQLite or PostgreSQL."""
    if found := re.search(r'^no such table: (?:\w+\.)?(.+)|relation "([^"]+)" does not exist', text):
        known = sorted(columns_by_table(url))
        name = (found[1] or found[2]).rpartition(".")[2]
        return f", there are: {', '.join(known)}{did_you_mean(name, known)}"
    if found := re.search(r'^no such column: (.+)|column "?([^" ]+)"? does not exist', text):
        known = dict.fromkeys(name for names in columns_by_table(url).values() for name in names)
        name = (found[1] or found[2]).rpartition(".")[2]
        return did_you_mean(name, known)
    return ""


def columns_by_table(url: str) -> dict[str, list[str]]:
    """The store's tables and views, the views first, each with its columns."""
    store = connect_store(url)
    try:
        with store.begin() as db:
            there = sa.inspect(db)
            names = [*there.get_view_names(), *there.get_table_names()]
            return {name: [column["name"] for column in there.get_columns(name)] for name in names}
    finally:
        store.engine.dispose()


def allowed(action: int, first: str | None, second: str | None, database: str | None, by: str | None) -> int:
    """SQLite's question before each step of a statement: reading is allowed, and nothing else is."""
    if action == sqlite3.SQLITE_FUNCTION and second in FORBIDDEN:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK if action in ALLOWED else sqlite3.SQLITE_DENY


def fetch(cursor: sqlite3.Cursor | ServerRows, limit: int) -> Answer:
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
        return SpecError(NO_SELECT)
    if "interrupted" in text:
        return SpecError(too_long(seconds))
    if isinstance(error, MemoryError) or "too big" in text or "out of memory" in text:
        return SpecError(TOO_LARGE)
    if "one statement at a time" in text:
        return SpecError(SEVERAL)
    return SpecError(f"the statement is wrong: {text or type(error).__name__}{names_there(url, text)}")


def too_long(seconds: float) -> str:
    return f"the statement took more than {in_seconds(seconds)}: narrow it down, or raise --seconds"


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
        {
            name: counted(len(v), "byte") if isinstance(v, bytes) else v
            for name, v in zip(answer.columns, row, strict=True)
        }
        for row in answer.rows
    ]
    return tables.table(shown)
