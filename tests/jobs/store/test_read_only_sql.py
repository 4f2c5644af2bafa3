"""A user's SELECT can do nothing but read: no write, no other file, no hang, no flood, and never a traceback."""

import json
import sqlite3
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustq.jobs.errors import SpecError, StoreError
from robustq.jobs.store.read_only_sql import Answer, answer_text, ask


@pytest.fixture
def url(sqlite_store, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'results.db'}"


def test_reads_tables_and_views(url: str):
    answer = ask(url, "SELECT kind, count(*) AS n FROM job GROUP BY kind ORDER BY kind")
    assert answer == Answer(["kind", "n"], [("eval", 4), ("train", 2), ("worst", 2)], whole=True)
    assert ask(url, "SELECT count(*) FROM v_results").rows == [(0,)]
    assert ask(url, "WITH RECURSIVE t(x) AS (VALUES(1) UNION ALL SELECT x+1 FROM t LIMIT 5) SELECT sum(x) FROM t").rows
    assert ask(url, "VALUES (1, 'a'), (2, NULL)").rows == [(1, "a"), (2, None)]


def test_more_rows_than_asked_for_are_named_so(url: str):
    answer = ask(url, "SELECT id FROM job ORDER BY id", limit=3)
    assert answer.rows == [(1,), (2,), (3,)] and not answer.whole
    assert ask(url, "SELECT id FROM job", limit=8).whole


def test_text_and_json():
    answer = Answer(["a", "b"], [(1, b"\x00\xff"), (None, "x")], whole=True)
    assert json.loads(answer_text(answer, as_json=True)) == [{"a": 1, "b": "00ff"}, {"a": None, "b": "x"}]
    assert "2 bytes" in answer_text(answer, as_json=False)


WRITES = [
    "DELETE FROM job",
    "UPDATE job SET state='done'",
    "INSERT INTO event (at, kind) VALUES (1, 'x')",
    "DROP TABLE job",
    "CREATE TABLE t (x)",
    "CREATE TEMP TABLE t AS SELECT 1",
    "ATTACH '{folder}/new.db' AS other",
    "ATTACH 'file:{folder}/results.db?mode=rwc' AS other",
    "DETACH main",
    "VACUUM INTO '{folder}/copy.db'",
    "VACUUM",
    "PRAGMA query_only=OFF",
    "PRAGMA journal_mode=DELETE",
    "PRAGMA writable_schema=1",
    "BEGIN IMMEDIATE",
    "REINDEX",
    "ANALYZE",
    "WITH t AS (SELECT 1) DELETE FROM job WHERE id IN t",
    "SELECT load_extension('x')",
    "EXPLAIN DELETE FROM job",
    "",
    "-- nothing",
]


def files(folder: Path) -> dict[str, bytes]:
    """All but SQLite's shared memory, in which readers note that they read."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-shm")}


@pytest.mark.parametrize("statement", WRITES)
def test_nothing_but_reading(statement: str, url: str, tmp_path: Path):
    before = files(tmp_path)
    with pytest.raises(
        SpecError, match=r"^(expected one SELECT, got a statement that does something else|the statement)"
    ):
        ask(url, statement.format(folder=tmp_path))
    assert files(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement, message",
    [
        ("SELEC 1", r'^the statement is wrong: near "SELEC": syntax error$'),
        ("SELECT x FROM job", r"^the statement is wrong: no such column: x$"),
        ("SELECT modle FROM job", r"^the statement is wrong: no such column: modle: did you mean 'model'\?$"),
        (
            "SELECT * FROM v_result",
            r"^the statement is wrong: no such table: v_result, there are: artifact, .*, v_checks, v_explanations, v_results: "
            r"did you mean 'v_results'\?$",
        ),
        ("SELECT 1; SELECT 2", r"^expected one statement, got several"),
        ("SELECT ?", r"^the statement is wrong: "),
        ("SELECT randomblob(900000000)", r"^the answer does not fit into memory"),
        (
            "WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM t) SELECT count(*) FROM t",
            r"^the statement took",
        ),
        (
            "WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM t) SELECT randomblob(60000000) FROM t",
            r"^the answer does not fit into memory",
        ),
        (
            "WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM t) SELECT zeroblob(50000000) FROM t ORDER BY 1",
            r"^the (answer does not fit into memory|statement took)",
        ),
    ],
)
def test_what_is_wrong_or_too_much_is_one_line(statement: str, message: str, url: str):
    start = time.monotonic()
    with pytest.raises(SpecError, match=message):
        ask(url, statement, seconds=0.5)
    assert time.monotonic() - start < 30  # not for ever: half a second, or until memory is used up on a busy machine


def test_what_is_no_store_is_not_asked(tmp_path: Path):
    with pytest.raises(StoreError, match=r"^store postgresql\+psycopg://localhost:1/x: its server cannot be used"):
        ask("postgresql+psycopg://localhost:1/x", "SELECT 1")
    with sqlite3.connect(tmp_path / "other.db") as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(StoreError, match="is no robustq store"):
        ask(str(tmp_path / "other.db"), "SELECT x FROM t")


PIECES = (
    "SELECT FROM WHERE job result v_results example_blob event * id key spec data 1 0 -1 1e308 NULL 'x' x'00' , ( ) = < "
    "ORDER BY GROUP LIMIT OFFSET UNION ALL EXCEPT JOIN ON LEFT CROSS WITH RECURSIVE t AS VALUES count( sum( max( hex( "
    "zeroblob( randomblob( printf( json_each( group_concat( replace( DELETE UPDATE INSERT INTO SET DROP TABLE ATTACH "
    'PRAGMA table_info( VACUUM BEGIN COMMIT ; -- /* */ " ` [ ] || ~ CASE WHEN END EXISTS IN LIKE GLOB REGEXP MATCH '
    "COLLATE CAST( sqlite_master pragma_table_info( 'main' 10000000 999999999"
)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    statement=st.one_of(st.lists(st.sampled_from(PIECES.split(" ")), max_size=14).map(" ".join), st.text(max_size=60))
)
def test_no_statement_writes_hangs_or_raises_anything_else(statement: str, url: str, tmp_path: Path):
    path = tmp_path / "results.db"
    before = path.read_bytes()
    start = time.monotonic()
    try:
        ask(url, statement, seconds=0.2)
    except SpecError as error:
        assert "\n" not in str(error) or "\n" in statement
    assert time.monotonic() - start < 3
    assert path.read_bytes() == before
