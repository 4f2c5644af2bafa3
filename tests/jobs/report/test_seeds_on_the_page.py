"""A sweep of several seeds on its page: which seed is shown, what tells models apart, and how sure that is."""

from math import comb
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from scipy import stats

from robustq.jobs.commands.queue_actions import log_text, status_text
from robustq.jobs.report.page.images import Grid
from robustq.jobs.report.page.page_model import Page
from robustq.jobs.report.page.plotly import line_style
from robustq.jobs.report.page.render import render_page, render_sections
from robustq.jobs.report.page.sentences import p_text
from robustq.jobs.store.connection import Store
from robustq.jobs.store.schema import check_result, job, result
from tests.helpers.fake_results import add_result, add_sweep, outcome
from tests.helpers.fake_sweep import distrust, fill
from tests.helpers.html_reading import Elements, page_of, there

SEEDS = (0, 1, 2)
MODELS = {"weak": 0.1, "strong": 1.0}
EPS = 0.1


@pytest.fixture
def page(made_up: Store) -> Page:
    fill(made_up, MODELS, seeds=SEEDS, radii=(0.1, 0.2))
    with made_up.begin() as db:
        running = sa.select(sa.func.max(job.c.id)).where(job.c.attack == "pgd").scalar_subquery()
        db.execute(sa.update(job).where(job.c.id == running).values(state="running", started_at=0.0))
    return page_of(made_up, 1)


def test_what_is_of_one_seed_names_it(page: Page):
    """Classes, confusions, outcome bars, pictures, and the job that runs."""
    shown = {f"{model}, seed 0" for model in MODELS}
    (bars,) = page.attacks.breakers
    assert {name for trace in bars.data for name in trace["y"]} == shown
    assert {row[0].text for row in there(page.classes.by_class).rows} == shown
    assert {one.model for one in page.classes.confusions} == shown
    titles = {grid.title.split(" under ")[0] for grid in page.pictures.grids if isinstance(grid, Grid)}
    assert titles == shown
    running = there(page.progress.running)
    place = {column.label: i for i, column in enumerate(running.columns)}
    (row,) = running.rows
    assert (row[place["model"]].text, row[place["seed"]].text) == ("strong", "2")
    text = Elements(render_page(page, render_sections(page))).text
    assert "strong, seed 0: confusion, clean and at Linf 0.1" in text


def test_one_seed_needs_no_name(made_up: Store):
    page = page_of(made_up, fill(made_up, MODELS, radii=(0.1,), images=0))
    assert {row[0].text for row in there(page.classes.by_class).rows} == set(MODELS)


def test_each_seed_has_its_colour(page: Page):
    """Six trainings of two models, no two lines alike."""
    for chart in page.training:
        styles = [(trace["line"]["color"], trace["line"]["dash"]) for trace in chart.data]
        assert len(set(styles)) == len(styles) == 6
        assert [trace["line"]["color"] for trace in chart.data] == [line_style(i)[0] for i in range(6)]
        assert [trace["name"] for trace in chart.data] == [f"{m}, seed {s}" for m in MODELS for s in SEEDS]


def test_status_and_logs_name_model_and_seed(page: Page, made_up: Store):
    with made_up.begin() as db:
        number = db.execute(sa.select(job.c.id).where(job.c.state == "running")).scalar_one()
        db.execute(sa.update(job).where(job.c.id == number - 3).values(state="failed", error_class="E"))
    lines = status_text(made_up, None, as_json=False).splitlines()
    heads = [line.split() for line in lines if line.startswith(("id ", " id "))]
    assert len(heads) == 2 and all({"model", "seed", "eps"} <= set(head) for head in heads)
    for title in ("running:", "failed:"):
        row = dict(zip(lines[lines.index(title) + 1].split(), lines[lines.index(title) + 3].split(), strict=False))
        assert (row["model"], row["seed"]) == ("strong", "2")
    assert log_text(made_up, number, as_json=False).startswith(f"job {number}  eval  strong, seed 2  running  key ")


def robust(right: np.ndarray) -> dict[str, np.ndarray]:
    n = len(right)
    return outcome(0, n=n) | {
        "success": ~right,
        "distance": np.where(right, np.nan, 0.01).astype(np.float32),
        "broken_by": np.where(right, "", "pgd"),
        "clean_prediction": np.arange(n) % 10,
        "adversarial_prediction": np.where(right, np.arange(n) % 10, (np.arange(n) + 1) % 10),
        "clean_correct": np.ones(n, np.float32),
        "adversarial_correct": right.astype(np.float32),
    }


def compared(page: Page) -> dict[str, dict[str, str]]:
    table = there(page.verdict.compared)
    labels = [column.label for column in table.columns]
    return {row[0].text: dict(zip(labels, (cell.text for cell in row), strict=True)) for row in table.rows}


def test_models_are_told_apart_by_mcnemars_test_with_holms_correction(made_up: Store):
    """Of 100 images: 60 against 55 of the same 60, which the intervals would not tell apart; 59 others by turns."""
    place = np.arange(100)
    right = {"best": place < 60, "inside": place < 52, "turns": (place >= 5) & (place < 63)}
    with made_up.begin() as db:
        sweep_id = add_sweep(db, "s")
        for model, one in right.items():
            add_result(db, sweep_id, model, "pgd", EPS, columns=robust(one), verdict="pass")
    page = page_of(made_up, sweep_id)
    inside, turns = 2 / 2**8, 2 * sum(comb(8, k) for k in range(4)) / 2**8
    found = compared(page)
    assert {name: (row["p"], row["p_holm"], row["told apart"]) for name, row in found.items()} == {
        "inside": (f"{inside:.2g}", f"{2 * inside:.2g}", "yes"),
        "turns": (f"{turns:.2g}", f"{turns:.2g}", "no"),
    }
    assert (found["turns"]["right in the best alone"], found["turns"]["in the other alone"]) == ("5", "3")
    assert found["inside"]["difference"].startswith("-8.0 [")
    (answer,) = page.verdict.answers
    assert f"do not tell it apart from turns (58.0 %): p = {turns:.2g} (McNemar's exact test" in answer.apart
    (best,) = there(page.verdict.best).rows
    assert "turns" in [cell.text for cell in best] and answer.price.endswith("and none of the others has more.")


def test_a_model_that_has_more_on_clean_images_is_named(made_up: Store):
    """By three images of 100: 0.25 by McNemar's test, so that it is not told apart."""
    place = np.arange(100)
    with made_up.begin() as db:
        sweep_id = add_sweep(db, "s")
        for model, right, clean in (("best", 60, 90), ("clean", 20, 93)):
            columns = robust(place < right) | {"clean_correct": (place < clean).astype(np.float32)}
            add_result(db, sweep_id, model, "pgd", EPS, columns=columns, verdict="pass")
    (answer,) = page_of(made_up, sweep_id).verdict.answers
    why = "not told apart from it: p = 0.25, McNemar's exact test on the same 100 images"
    assert answer.price == f"On clean images it has 90.0 %, where clean has 93.0 % ({why})."


def test_a_p_value_on_clean_images_says_that_it_is_corrected(made_up: Store):
    """Eight images of 100 against two others: 2 / 2^8, twice that by Holm's correction."""
    place = np.arange(100)
    with made_up.begin() as db:
        sweep_id = add_sweep(db, "s")
        for model, right, clean in (("best", 60, 90), ("clean", 20, 98), ("other", 20, 90)):
            columns = robust(place < right) | {"clean_correct": (place < clean).astype(np.float32)}
            add_result(db, sweep_id, model, "pgd", EPS, columns=columns, verdict="pass")
    (answer,) = page_of(made_up, sweep_id).verdict.answers
    test = "McNemar's exact test on the same 100 images, Holm's correction for 2 comparisons"
    assert answer.price.endswith(f"clean has 98.0 % (told apart: p = {4 / 2**8:.2g}, {test}).")


def test_means_that_rounding_tells_apart_are_equal(made_up: Store):
    """(0.80 + 0.84) / 2 is more than 0.82 for a computer, and by nothing."""
    place = np.arange(100)
    with made_up.begin() as db:
        sweep_id = add_sweep(db, "s")
        for model, right, counts in (("best", 60, (82, 82)), ("clean", 20, (80, 84))):
            for seed, clean in enumerate(counts):
                columns = robust(place < right) | {"clean_correct": (place < clean).astype(np.float32)}
                add_result(db, sweep_id, model, "pgd", EPS, seed, columns=columns, verdict="pass")
    (answer,) = page_of(made_up, sweep_id).verdict.answers
    assert answer.price == "On clean images it has 82.0 %, and none of the others has more."


@pytest.mark.parametrize(
    "p, text", [(0.25, "0.25"), (0.05, "0.05"), (0.04996, "0.04996"), (0.0502, "0.0502"), (9e-5, "below 0.0001")]
)
def test_a_p_value_shows_on_which_side_of_the_level_it_is(p: float, text: str):
    assert p_text(p) == text


def test_other_images_are_compared_unpaired(made_up: Store):
    place = np.arange(100)
    with made_up.begin() as db:
        sweep_id = add_sweep(db, "s")
        add_result(db, sweep_id, "best", "pgd", EPS, columns=robust(place < 60), verdict="pass")
        add_result(
            db, sweep_id, "other", "pgd", EPS, columns=robust(place < 50) | {"index": place + 100}, verdict="pass"
        )
        add_result(db, sweep_id, "lost", "pgd", EPS, columns=robust(place < 52), verdict="pass", outcomes=False)
    found = compared(page_of(made_up, sweep_id))
    wanted = {name: stats.fisher_exact([[60, 40], [n, 100 - n]])[1] for name, n in (("other", 50), ("lost", 52))}
    assert {name: row["p"] for name, row in found.items()} == {name: f"{p:.2g}" for name, p in wanted.items()}
    assert {row["test"] for row in found.values()} == {"Fisher's exact test, of images that are not the same"}


def test_the_leaderboard_names_the_spread_over_seeds(made_up: Store):
    place = np.arange(50)
    with made_up.begin() as db:
        sweep_id = add_sweep(db, "s")
        for seed, n in enumerate((20, 25, 33)):
            add_result(db, sweep_id, "net", "pgd", EPS, seed, columns=robust(place < n), verdict="pass")
            add_result(db, sweep_id, "other", "pgd", EPS, seed, columns=robust(place < n - 3), verdict="pass")
    page = page_of(made_up, sweep_id)
    table = there(page.leaderboard)
    labels = [column.label for column in table.columns]
    row = dict(zip(labels, (cell.text for cell in table.rows[0]), strict=True))
    assert row["SD over seeds"] == f"{100 * np.std([0.4, 0.5, 0.66], ddof=1):.1f}"
    # The same images and as large a spread of the seeds as between the models.
    assert compared(page)["other"]["told apart"] == "no"
    assert compared(page)["other"]["test"] == "t-test over 3 and 3 seeds and the same 50 images"


@pytest.mark.slow
def test_reasons_stand_once_below_a_table(made_up: Store):
    sweep_id = fill(made_up, MODELS | {"masked": 3.0}, radii=(0.1, 0.2), images=0)
    with made_up.begin() as db:
        distrust(db, "masked", "90 % of the images have no gradient")
    page = page_of(made_up, sweep_id)
    table = there(page.leaderboard)
    labels = [column.label for column in table.columns]
    marks = {row[0].text: row[labels.index("why")].text for row in table.rows}
    assert marks == {"masked": "[1]", "weak": "", "strong": ""}
    assert list(table.notes) == ["[1] zero-gradient: 90 % of the images have no gradient"]
    attacks = there(page.attacks.by_attack)
    assert list(attacks.notes) == ["[1] zero-gradient 0.9 > 0.25"]
    rows = there(page.repeat.rows)
    why = [column.label for column in rows.columns].index("why")
    assert {row[why].text for row in rows.rows if row[0].text == "masked"} == {"zero-gradient 0.9 > 0.25"}
    html = render_page(page, render_sections(page))
    assert html.count('<p class="note">[1] zero-gradient: 90 % of the images have no gradient</p>') == 1


def test_a_value_beside_its_limit_has_digits_enough(made_up: Store):
    sweep_id = fill(made_up, {"one": 1.0}, radii=(0.1,), images=0)
    with made_up.begin() as db:
        id_ = db.execute(sa.select(job.c.id).where(job.c.attack == "pgd")).scalar_one()
        db.execute(sa.update(result).where(result.c.job_id == id_).values(verdict="fail"))
        values = {"value": 0.250004, "threshold": 0.25, "verdict": "fail", "note": "n", "examples": []}
        db.execute(sa.insert(check_result).values(job_id=id_, name="zero-gradient", **values))
    page = page_of(made_up, sweep_id)
    for table, left, right in (
        (page.checks.found, "value", "limit"),
        (page.checks.summary, "largest value", "fails above"),
    ):
        labels = [column.label for column in there(table).columns]
        (row,) = there(table).rows
        assert (row[labels.index(left)].text, row[labels.index(right)].text) == ("0.250004", "0.25")


def test_the_worst_case_has_a_number_also_of_a_single_attack(made_up: Store):
    """At 0.2 two attacks and their worst case, at 0.1 one."""
    place = np.arange(50)
    with made_up.begin() as db:
        sweep_id = add_sweep(db, "s")
        more: Any = {"verdict": "pass"}
        add_result(db, sweep_id, "net", "pgd", 0.1, columns=robust(place < 40), **more)
        add_result(db, sweep_id, "net", "pgd", 0.2, columns=robust(place < 30), **more)
        worst = {"kind": "worst", "spec": {"kind": "worst"}}
        add_result(db, sweep_id, "net", "worst-case", 0.2, columns=robust(place < 25), **more, **worst)
    table = there(page_of(made_up, sweep_id).attacks.by_attack)
    labels = [column.label for column in table.columns]
    found = {row[labels.index("eps")].order: row[labels.index("worst-case")].text for row in table.rows}
    assert found == {0.1: "80.0", 0.2: "50.0"}


@pytest.mark.slow
def test_a_joint_search_says_what_its_queries_are_and_counts_them_once(made_up: Store):
    """200 and 300 queries an image down to 0.2 and to 0.1, of one search: 300 in all, at most 100 of them at 0.1."""
    place = np.arange(50)
    with made_up.begin() as db:
        sweep_id = add_sweep(db, "s")
        joint = {"extra": {"curve_seconds": 3.0, "mode": "float32"}, "verdict": "pass"}
        for eps, queries, own in ((0.2, 200, 200), (0.1, 300, 100)):
            columns = robust(place < 50 - 100 * eps) | {
                "queries": np.full(50, queries), "radius_queries": np.full(50, own),
            }  # fmt: skip
            add_result(db, sweep_id, "net", "square", eps, columns=columns, **joint)
    page = page_of(made_up, sweep_id)
    (chart,) = page.queries
    assert chart.title == "square, Linf 0.1"
    assert "Several radii were one search" in chart.note and "no image took more than 100." in chart.note
    cost = there(page.cost)
    labels = [column.label for column in cost.columns]
    assert cost.rows[0][labels.index("queries")].order == 300 * 50
    rows = there(page.repeat.rows)
    labels = [column.label for column in rows.columns]
    found = {row[labels.index("eps")].order: row for row in rows.rows}
    assert found[0.1][labels.index("queries of the search")].order == 300 * 50
    assert {eps: row[labels.index("most an image here")].order for eps, row in found.items()} == {0.1: 100, 0.2: 200}
