"""What failed a check is called robust by no table, wins no contest and fills no cell."""

import pytest
import sqlalchemy as sa

from robustq.jobs.commands.terminal_rows import shown_comparisons, shown_groups, shown_summary
from robustq.jobs.results.columns import ResultRow
from robustq.jobs.results.compare import compare
from robustq.jobs.results.filters import Filters
from robustq.jobs.results.questions import answer, make_question
from robustq.jobs.results.rows import chosen_rows
from robustq.jobs.store.schema import result
from robustq.jobs.text.numbers import percent
from robustq.jobs.text.tables import Row
from tests.helpers.fake_results import MODELS

pytestmark = pytest.mark.parametrize("asked_store", ["sqlite"], indirect=True)
DEMO = Filters("demo")


@pytest.fixture
def broken(asked_store) -> ResultRow:
    """The best of the PGD evaluations at L-inf 0.5, which has failed a check now; what else was checked passed."""
    with asked_store.begin() as db:
        rows = [r for r in chosen_rows(db, DEMO) if (r["attack"], r["eps"]) == ("pgd", 0.5)]
        top = max(rows, key=lambda row: row["robust_accuracy"])
        db.execute(sa.update(result).values(verdict="pass"))
        db.execute(sa.update(result).where(result.c.job_id == top["job_id"]).values(verdict="fail"))
    return top


def asked(store, told: list[str] | None = None, **options) -> list[Row]:
    with store.begin() as db:
        return answer(db, make_question(DEMO, **options), (told if told is not None else []).append)


def test_a_group_has_the_worst_verdict_of_its_rows(asked_store, broken):
    groups = asked(asked_store, over_seeds=True)
    failed = [g for g in groups if g["verdict"] == "fail"]
    assert [(g["model"], g["attack"], g["eps"]) for g in failed] == [(broken["model"], "pgd", 0.5)]
    assert {g["verdict"] for g in groups} == {"pass", "fail"}
    said = f"not trusted ({percent(failed[0]['robust_accuracy'])})"
    shown = [line for line in shown_groups(groups) if line["robust %"].startswith("not")]
    assert [(line["robust %"], line["robust 95 %"]) for line in shown] == [(said, "")]


@pytest.mark.slow
def test_a_pivot_leaves_its_cell_empty(asked_store, broken):
    told: list[str] = []
    lines = {line["model"]: line for line in asked(asked_store, told, pivot=True)}
    empty = {(model, column) for model in lines for column, value in lines[model].items() if value is None}
    assert empty == {(broken["model"], "pgd Linf 0.5")}
    assert told == ["1 cell is empty because a check failed there; without --pivot their numbers are shown"]


def test_it_is_not_the_best(asked_store, broken):
    told: list[str] = []
    best = [r for r in asked(asked_store, told, best="robust_accuracy") if (r["attack"], r["eps"]) == ("pgd", 0.5)]
    with asked_store.begin() as db:
        rows = [r for r in chosen_rows(db, DEMO) if (r["attack"], r["eps"]) == ("pgd", 0.5)]
    others = [row["robust_accuracy"] for row in rows if row["job_id"] != broken["job_id"]]
    assert {row["robust_accuracy"] for row in best} == {max(others)}
    assert broken["job_id"] not in {row["job_id"] for row in best}
    assert told == ["1 row is left out because a check failed there"]
    assert broken["job_id"] in {row["job_id"] for row in asked(asked_store)}


def test_without_a_worst_case_a_summary_takes_each_seeds_lowest_attack(asked_store):
    """A seed whose worst case is computed has that."""
    with asked_store.begin() as db:
        rows = [row for row in chosen_rows(db, DEMO) if row["model"] == MODELS[0] and row["eps"] == 8 / 255]
        assert {row["attack"] for row in rows} == {"pgd", "apgd-ce"}
        lowest = [min(r["robust_accuracy"] for r in rows if r["seed"] == seed) for seed in {r["seed"] for r in rows}]
        (line,) = shown_summary(rows)
        assert line["Linf 8/255"] == percent(sum(lowest) / len(lowest))
        case: ResultRow = {**rows[0], "attack": "worst-case", "robust_accuracy": 0.01}
        own = min(r["robust_accuracy"] for r in rows if r["seed"] == case["seed"])
        (line,) = shown_summary([*rows, case])
        assert line["Linf 8/255"] == percent((sum(lowest) - own + 0.01) / len(lowest))


def test_a_summary_and_a_comparison_say_so(asked_store, broken):
    with asked_store.begin() as db:
        rows = chosen_rows(db, DEMO)
        other = next(model for model in MODELS if model != broken["model"])
        compared = compare(db, DEMO, (other, broken["model"]))
    cells = {(line["model"], name): text for line in shown_summary(rows) for name, text in line.items()}
    said = {place for place, text in cells.items() if text.startswith("not trusted (")}
    assert said == {(broken["model"], "Linf 0.5")}
    said = {
        (line["attack"], line["eps"], line["seed"])
        for line in shown_comparisons(compared)
        if line["second %"].startswith("not trusted (")
    }
    assert said == {("pgd", "0.5", broken["seed"])}
    assert not any(line["first %"].startswith("not") for line in shown_comparisons(compared))
