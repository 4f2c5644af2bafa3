"""Filters choose what a slow obvious twin chooses, on both databases."""

import fnmatch
import inspect
import math
import random
from types import UnionType
from typing import get_args, get_origin, get_type_hints

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from robustq.jobs.commands.results import results as command
from robustq.jobs.errors import SpecError
from robustq.jobs.results.api import results
from robustq.jobs.results.columns import FILTER_COLUMNS, RESULT_COLUMNS, ResultRow, as_json
from robustq.jobs.results.filters import Filters, make_filters
from robustq.jobs.results.rows import chosen_rows, result_rows
from robustq.jobs.store.connection import Store, open_store
from tests.helpers.fake_results import MODELS, fill

both = pytest.mark.parametrize(
    "asked_store", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True
)


def close(a, b) -> bool:
    return a is not None and math.isclose(a, b, rel_tol=1e-6)


FILTERS = [
    ({}, [], lambda row: True),
    ({"model": "plain"}, [], lambda row: row["model"] == "plain"),
    ({"model": "b-*"}, [], lambda row: fnmatch.fnmatchcase(row["model"], "b-*")),
    ({"model": ["?-pgd", "plain"]}, [], lambda row: row["model"] in ("b-pgd", "B-pgd", "plain")),
    ({"model": "odd%_[x]|'\""}, [], lambda row: row["model"] == MODELS[-1]),
    ({"model": "odd%_[x*"}, [], lambda row: row["model"] == MODELS[-1]),
    ({"model": "o_d*"}, [], lambda row: False),
    ({"attack": ("pgd", "deepfool"), "seed": 1}, [], lambda row: row["attack"] in ("pgd", "deepfool") and row["seed"] == 1),
    ({"eps": "8/255"}, [], lambda row: close(row["eps"], 8 / 255)),
    ({"eps": 8 / 255}, [], lambda row: close(row["eps"], 8 / 255)),
    ({"eps": "0.03137255"}, [], lambda row: close(row["eps"], 8 / 255)),
    ({"eps": "null"}, [], lambda row: row["eps"] is None),
    ({"eps": ["null", 0.5]}, [], lambda row: row["eps"] in (None, 0.5)),
    ({"norm": "null"}, [], lambda row: row["norm"] is None),
    ({"defence": "pgd", "arch": "lenet5", "dataset": "digits"}, [], lambda row: row["defence"] == "pgd"),
    ({}, ["eps!=8/255"], lambda row: not close(row["eps"], 8 / 255)),
    ({}, ["model!=b-*"], lambda row: not row["model"].startswith("b-")),
    ({}, ["norm!=Linf"], lambda row: row["norm"] != "Linf"),
    ({}, ["norm!=null"], lambda row: row["norm"] is not None),
    ({}, ["eps!=null", "seed>0"], lambda row: row["eps"] is not None and row["seed"] > 0),
    ({}, ["robust_accuracy<0.5"], lambda row: row["robust_accuracy"] < 0.5 * (1 - 1e-6)),
    ({}, ["robust_accuracy>=0.5"], lambda row: row["robust_accuracy"] >= 0.5 * (1 - 1e-6)),
    ({}, ["robust_accuracy <= 0.5", "n=40"], lambda row: row["robust_accuracy"] <= 0.5 * (1 + 1e-6)),
    ({}, ["distance_median>0.05"], lambda row: (row["distance_median"] or 0) > 0.05),
    ({}, ["device=cuda*"], lambda row: row["device"].startswith("cuda")),
    ({}, ["versions.kernel=3"], lambda row: row["versions"]["kernel"] == "3"),
    ({}, ["versions.torch=null"], lambda row: "torch" not in row["versions"]),
    ({}, ['versions=*"kernel": "2"*'], lambda row: row["versions"]["kernel"] == "2"),
    ({}, ["recorded_at>=2027-01-15T08:00:30"], lambda row: row["recorded_at"] >= 1.8e9 + 30),
    ({}, ["recorded_at=1800000030.0"], lambda row: row["job_id"] == 30),
    ({}, ["job_id=7"], lambda row: row["job_id"] == 7),
]  # fmt: skip


@pytest.mark.slow
@both
def test_filters_choose_what_their_twin_chooses(asked_store):
    with asked_store.begin() as db:
        rows = result_rows(db)
        assert len(rows) == 61
        for named, where, wanted in FILTERS:
            found = chosen_rows(db, make_filters(None, named, where))
            assert found == [row for row in rows if wanted(row)], (named, where)
        with pytest.raises(AssertionError):  # the comparison itself can fail
            assert chosen_rows(db, make_filters(None, {"model": "plain"})) == rows


@both
def test_rows_are_those_of_the_view_and_of_their_type(asked_store):
    """A job of several sweeps is a row of the latest; every value is what `ResultRow` says of its column."""
    latest = "SELECT max(sweep_id) FROM sweep_job WHERE job_id = r.job_id"
    asked = f"SELECT * FROM v_results r WHERE sweep_id = ({latest}) ORDER BY sweep_id, job_id"
    with asked_store.begin() as db:
        rows = result_rows(db)
        slow = [
            dict(row) | {"versions": as_json(row["versions"]), "why": None}
            for row in db.execute(sa.text(asked)).mappings()
        ]
        assert [{**row, "sweep_id": one["sweep_id"]} for row, one in zip(rows, slow, strict=True)] == slow
        assert [row["job_id"] for row in result_rows(db, 1)] == [
            one for (one,) in db.execute(sa.text("SELECT job_id FROM v_results WHERE sweep_id = 1 ORDER BY job_id"))
        ]
    for name, kind in get_type_hints(ResultRow).items():
        kinds = get_args(kind) if isinstance(kind, UnionType) else (get_origin(kind) or kind,)
        assert {type(row[name]) for row in rows} <= set(kinds), name


def test_every_filter_column_is_an_option_and_an_argument():
    assert set(FILTER_COLUMNS) <= set(RESULT_COLUMNS)
    assert {f"--{name}" for name in FILTER_COLUMNS} <= {option for p in command.params for option in p.opts}
    assert list(inspect.signature(results).parameters)[2 : 2 + len(FILTER_COLUMNS)] == list(FILTER_COLUMNS)


def plan_of(store: Store, filters: Filters) -> list[str]:
    """How SQLite goes about the statement that `chosen_rows` makes."""
    made = []
    with store.begin() as db:
        event.listen(db, "before_cursor_execute", lambda *call: made.append(call[2:4]))
        chosen_rows(db, filters)
        statement, values = made[-1]
        return [row[3] for row in db.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sweep", "named", "found_by"),
    [
        (None, {"model": "plain", "attack": "pgd", "eps": "8/255", "seed": 1}, " (attack=? AND eps>? AND eps<?)"),
        (None, {"model": "b-*", "attack": "pgd"}, " (attack=?)"),
        ("demo", {"attack": "pgd", "eps": "8/255"}, " (attack=? AND eps>? AND eps<?)"),
        (None, {"eps": "8/255"}, ""),
        (None, {}, ""),
    ],
)
def test_jobs_are_found_in_an_index_that_has_all_that_is_told_of_them(tmp_path, sweep, named, found_by):
    """A column of jobs that v_results has and the index lacks would send SQLite to the rows, specs and all."""
    store = open_store(str(tmp_path / "r.db"), create=True, write=True)
    fill(store)
    plan = plan_of(store, make_filters(sweep, named))
    assert any(f" j USING COVERING INDEX job_asked{found_by}" in line for line in plan), plan
    store.engine.dispose()


@pytest.mark.postgres
def test_a_server_has_no_such_index(postgres):
    """Its rows are short: it keeps specs beside the table."""
    store = open_store(postgres, create=True, write=True)
    with store.begin() as db:
        indexes = {index["name"] for index in sa.inspect(db).get_indexes("job")}
    assert "job_state" in indexes and "job_asked" not in indexes
    store.engine.dispose()


@both
def test_a_sweep_is_the_latest_of_its_name_and_a_pattern_all_that_fit(asked_store):
    with asked_store.begin() as db:
        sweeps = {name: chosen_rows(db, Filters(name)) for name in ("demo", "other", "d*", "*", None)}
        assert {row["seed"] for row in sweeps["demo"]} == {1, 2}
        assert [row["attack"] for row in sweeps["other"]] == ["clean"]
        assert len(sweeps["demo"]) == len(sweeps["d*"]) == 40
        # Seed 0 is only in a sweep that a later one of its name stands for.
        assert len(sweeps["*"]) == 41 and len(sweeps[None]) == 61
        assert chosen_rows(db, Filters(1)) == result_rows(db, 1)
        for name in ("none", "x*"):
            with pytest.raises(SpecError, match=r"there is no sweep .*, the store has: demo, other"):
                chosen_rows(db, Filters(name))


WRONG = [
    (["modell=x"], r"there is no column 'modell', expected one of: sweep, model, "),
    (["robust_accuracy"], "--where: expected a condition such as robust_accuracy<0.5 or device=cuda\\*, got 'robust_"),
    (["eps=wide"], "eps: expected a number such as 8/255 or null, got 'wide'"),
    (["eps=8/0"], "eps: expected a number such as 8/255 or null, got '8/0'"),
    (["eps=nan"], "eps: expected a number"),
    (["recorded_at<yesterday"], "recorded_at: expected a time such as 2026-11-24T12:30, got 'yesterday'"),
    (["model<b"], "model is text: expected model=VALUE or model!=VALUE, got <"),
    (["model.x=b"], "expected a column, got 'model.x': only versions has parts, such as versions.x"),
    (["eps<null"], "eps: expected = or != before null, got <"),
]


@pytest.mark.parametrize(("where", "line"), WRONG, ids=lambda value: str(value)[:30])
def test_a_condition_that_cannot_be_meant_is_refused(where, line):
    with pytest.raises(SpecError, match=line):
        make_filters(None, {}, where)


@pytest.mark.slow
def test_random_conditions_on_numbers_agree_with_python(tmp_path):
    store = open_store(str(tmp_path / "r.db"), create=True, write=True)
    fill(store)
    chance = random.Random(0)
    compare = {"<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b}
    with store.begin() as db:
        rows = result_rows(db)
        for _ in range(100):
            column = chance.choice(["clean_accuracy", "robust_accuracy_low", "seconds", "n", "seed", "distance_mean"])
            sign, value = chance.choice(list(compare)), chance.choice(rows)[column] or 0.1
            value = value if column in ("n", "seed") else float(f"{value * chance.choice([0.9, 1.1]):.5f}")
            wanted = [r for r in rows if r[column] is not None and compare[sign](r[column], value)]
            assert chosen_rows(db, make_filters(None, {}, [f"{column}{sign}{value}"])) == wanted
    store.engine.dispose()
