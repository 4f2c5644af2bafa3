"""A user's SELECT on a PostgreSQL store: read, bounded and refused as on a file."""

import time
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from robustq.jobs.errors import SpecError
from robustq.jobs.store.connection import open_store
from robustq.jobs.store.read_only_sql import Answer, answer_text, ask
from robustq.jobs.store.schema import job
from tests.helpers.small_store import filled

pytestmark = pytest.mark.postgres


@pytest.fixture
def url(postgres: str) -> Iterator[str]:
    with filled(postgres):
        yield postgres


def held(url: str) -> list[tuple[int, str]]:
    store = open_store(url)
    with store.begin() as db:
        found = [tuple(row) for row in db.execute(sa.select(job.c.id, job.c.state).order_by(job.c.id))]
    store.engine.dispose()
    return found


def test_the_same_answers_as_a_file(url: str):
    answer = ask(url, "SELECT kind, count(*) AS n FROM job GROUP BY kind ORDER BY kind")
    assert answer == Answer(["kind", "n"], [("eval", 4), ("train", 2), ("worst", 2)], whole=True)
    assert ask(url, "VALUES (1, 'a'), (2, NULL)").rows == [(1, "a"), (2, None)]
    assert ask(url, "SELECT avg(id) FROM job").rows == [(4.5,)]  # a Decimal there
    assert ask(url, "SELECT model, attack FROM v_results") == Answer(["model", "attack"], [], whole=True)
    many = ask(url, "SELECT n FROM generate_series(1, 1000) AS t(n)", limit=250)
    assert many.rows == [(n,) for n in range(1, 251)] and not many.whole
    assert ask(url, "SELECT n FROM generate_series(1, 250) AS t(n)", limit=250).whole
    assert '"key"' in answer_text(ask(url, "SELECT key, spec FROM job LIMIT 1"), as_json=True)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM job",
        "UPDATE job SET state='done'",
        "DROP TABLE job",
        "CREATE TABLE t (x int)",
        "COPY job TO '/tmp/x'",
        "SET transaction_read_only = off",
        "COMMIT",
        "WITH gone AS (DELETE FROM job RETURNING id) SELECT * FROM gone",
        "SELECT * INTO t FROM job",
        "SELECT 1; DELETE FROM job",
        "SELECT 1; COMMIT; DELETE FROM job",
        "SELECT set_config('transaction_read_only', 'off', false)",
        "SELECT * FROM job FOR UPDATE",
        "",
    ],
)
def test_nothing_but_reading(statement: str, url: str):
    before = held(url)
    with pytest.raises(SpecError, match=r"^(expected one S|expected one statement|the statement is wrong)"):
        ask(url, statement)
    assert held(url) == before


@pytest.mark.parametrize(
    "statement, message",
    [
        (
            "SELECT * FROM v_result",
            r"relation \"v_result\" does not exist, there are: artifact, .*, v_results: did you mean 'v_results'\?$",
        ),
        ("SELECT modle FROM v_results", r"column \"modle\" does not exist: did you mean 'model'\?$"),
        ("SELECT 1 / 0", "^the statement is wrong: division by zero$"),
        ("SELECT '\0'", "^the statement is wrong: "),
        ("SELECT '\ud800'", "^the statement is wrong: "),
        ("SELECT '100 %', 1 % 0", "^the statement is wrong: division by zero$"),
        ("SELECT pg_sleep(60)", r"^the statement took more than 0\.5 seconds"),
        ("SELECT repeat('x', 60000000) FROM generate_series(1, 100)", "^(the answer does not fit|the statement took)"),
    ],
)
def test_what_is_wrong_or_too_much_is_one_line(statement: str, message: str, url: str):
    start = time.monotonic()
    with pytest.raises(SpecError, match=message):
        ask(url, statement, seconds=0.5)
    assert time.monotonic() - start < 10
