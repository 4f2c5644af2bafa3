"""What changed in explanations between two stores: equal to the bit, within the interval of the changes, or beyond."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from scipy import stats

from robustq.cli import main
from robustq.jobs.results.filters import Filters
from robustq.jobs.specs import AttackSpec
from robustq.jobs.store.connection import Store, open_store
from robustq.jobs.store.schema import example_blob
from robustq.jobs.verification.diff import Side
from robustq.jobs.verification.diff_explanations import ExplanationChange, diff_explanations
from tests.helpers.fake_explanations import AGAINST, add_explanation, made_up_measures, params_of
from tests.helpers.fake_results import add_result, add_sweep, outcome

MEANS = {"noise": 0.7, "pgd": 0.5, "explanation-attack": 0.3}
Stores = tuple[Store, Store]


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    old, new = (open_store(str(tmp_path / f"{name}.db"), create=True, write=True) for name in ("old", "new"))
    yield old, new
    for store in (old, new):
        store.engine.dispose()


def put(stores: Stores, model: str, before: dict | None, after: dict | None, **values: Any) -> None:
    for store, columns in zip(stores, (before, after), strict=True):
        if columns is not None:
            with store.begin() as db:
                add_explanation(db, add_sweep(db, "s"), model, columns, **values)


def changes(stores: Stores) -> dict[tuple[str, str], ExplanationChange]:
    with stores[0].begin() as old, stores[1].begin() as new:
        rows = diff_explanations(Side(old, Filters()), Side(new, Filters()))
    return {(row["model"], row["against"]): row for row in rows}


def moved(columns: dict[str, np.ndarray], measure: str, against: str, by: np.ndarray) -> dict[str, np.ndarray]:
    """The same but for one measure under one thing that was done."""
    values = columns[measure].copy()
    values[columns["against"] == against] += by
    return columns | {measure: values}


def robustq(stores: Stores, *words: str) -> Result:
    return CliRunner().invoke(main, ["diff", *words, *(store.url for store in stores)])


@pytest.mark.slow
def test_each_explanation_is_judged_by_the_changes_of_its_images(stores: Stores):
    base, draw = made_up_measures(1, MEANS), np.random.default_rng(0)
    shift = draw.normal(-0.1, 0.02, 40)
    one_bit = np.where(np.arange(40) == 7, 1e-12, 0.0)
    put(stores, "same", base, base)
    put(stores, "bit", base, moved(base, "spearman", "noise", one_bit))
    put(stores, "lower", base, moved(base, "top_intersection", "pgd", shift))
    put(stores, "hair", base, moved(base, "ssim", "pgd", np.full(40, 5e-4)))
    put(stores, "gone", base, None)
    found = changes(stores)
    told = {place: row["change"] for place, row in found.items() if row["change"] != "same"}
    expected = {("bit", "noise"): "within", ("lower", "pgd"): "changed", ("hair", "pgd"): "within"}
    assert told == expected | {("gone", against): "only old" for against in AGAINST}
    assert found["bit", "noise"]["images_that_differ"] == 1 and found["same", "pgd"]["images_that_differ"] == 0
    row = found["lower", "pgd"]
    low, high = stats.t.interval(0.95, 39, shift.mean(), stats.sem(shift))
    assert (row["moved"], row["images_that_differ"], row["examples"]) == ("top_intersection", 40, 40)
    assert [row["difference"], row["difference_low"], row["difference_high"]] == pytest.approx(
        [shift.mean(), low, high]
    )


def test_another_class_of_an_image_is_a_difference(stores: Stores):
    base = made_up_measures(1, MEANS)
    other = base["prediction"].copy()
    other[(base["index"] == 3) & (base["against"] == "pgd")] += 1
    put(stores, "m", base, base | {"prediction": other})
    found = changes(stores)
    row = found["m", "pgd"]
    assert (row["change"], row["images_that_differ"]) == ("within", 1)
    assert {found["m", name]["change"] for name in ("clean", "noise")} == {"same"}


@pytest.mark.slow
def test_without_the_images_the_rows_own_intervals_must_not_meet(stores: Stores):
    base = made_up_measures(1, MEANS)
    put(stores, "same", base, base)
    put(stores, "some", base, moved(base, "ssim", "pgd", np.full(40, 0.01)))
    put(stores, "far", base, moved(base, "ssim", "pgd", np.full(40, 0.3)))
    with stores[1].begin() as db:
        db.execute(sa.delete(example_blob))
    found = changes(stores)
    assert {name: found[name, "pgd"]["change"] for name in ("same", "some", "far")} == {
        "same": "same", "some": "within", "far": "changed",
    }  # fmt: skip
    assert found["far", "pgd"]["moved"] == "ssim" and found["far", "pgd"]["images_that_differ"] is None


def test_other_examples_are_another_explanation(stores: Stores):
    put(stores, "m", made_up_measures(1, MEANS, n=30), made_up_measures(1, MEANS, n=40))
    with stores[0].begin() as old, stores[1].begin() as new:
        rows = diff_explanations(Side(old, Filters()), Side(new, Filters()))
    assert [(row["change"], row["examples"]) for row in rows] == [("only old", 30)] * 4 + [("only new", 40)] * 4


@pytest.mark.slow
def test_the_table_has_both_and_exits_with_1_where_one_changed(stores: Stores):
    base = made_up_measures(1, MEANS)
    put(stores, "m", base, moved(base, "top_intersection", "pgd", np.full(40, -0.1)))
    alone = robustq(stores)
    assert alone.exit_code == 1 and "results" not in alone.stderr.splitlines()[0]
    for store in stores:
        with store.begin() as db:
            add_result(db, 1, "m", "pgd", columns=outcome(1, n=40))
    done = robustq(stores)
    told = ["1 is the same", "explanations: 1 changed beyond its interval, 3 are the same"]
    assert done.stderr.splitlines() == [*told, "robustq: 1 explanation changed beyond its interval"]
    assert done.stdout.splitlines()[2].split()[:4] == ["changed", "digits", "m", "grad-cam"]
    assert re.search(r" pgd +0\.\d\d\d > 0\.\d\d\d +\[-0\.100, -0\.100\] +40 +top-k", done.stdout)
    assert "nothing to show" not in done.stdout  # of the results, above the table
    assert CliRunner().invoke(main, ["diff", *[stores[0].url] * 2]).stdout == "nothing to show\n"
    rows = json.loads(robustq(stores, "--explanations", "--json").stdout)
    assert [row["change"] for row in rows] == ["changed", "same", "same", "same"]
    assert [row["change"] for row in json.loads(robustq(stores, "--json").stdout)] == ["same"]
    only = robustq(stores, "--attack", "pgd")
    assert (only.exit_code, only.stderr) == (0, "1 is the same\n")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["json", "csv", "markdown"])
def test_a_form_without_explanations_ends_by_what_it_prints(stores: Stores, form: str):
    base = made_up_measures(1, MEANS)
    put(stores, "m", base, moved(base, "top_intersection", "pgd", np.full(40, -0.1)))
    alone = robustq(stores, "--format", form)
    said = "robustq: neither side has a result that the options leave, but explanations: add --explanations"
    assert (alone.exit_code, alone.stdout, alone.stderr.splitlines()) == (2, "", [said])
    for store in stores:
        with store.begin() as db:
            add_result(db, 1, "m", "pgd", columns=outcome(1, n=40))
    done = robustq(stores, "--format", form)
    told = "explanations: 1 changed beyond its interval, 3 are the same; --explanations prints them"
    assert (done.exit_code, done.stderr.splitlines()) == (0, ["1 is the same", told])
    asked = robustq(stores, "--explanations", "--format", form)
    assert asked.exit_code == 1 and "grad-cam" in asked.stdout


def test_a_condition_of_the_other_rows_names_the_option(stores: Stores):
    asked = robustq(stores, "--where", "against=noise")
    said = "robustq: results have no column 'against', but explanations do: --explanations asks for them\n"
    assert (asked.exit_code, asked.stderr) == (2, said)
    asked = robustq(stores, "--explanations", "--where", "robust_accuracy<0.5")
    said = "robustq: explanations have no column 'robust_accuracy', but results do: leave --explanations out\n"
    assert (asked.exit_code, asked.stderr) == (2, said)
    assert "there is no column 'agains'" in robustq(stores, "--where", "agains=noise").stderr


@pytest.mark.slow
def test_two_of_one_method_are_told_apart_by_their_options(stores: Stores):
    """Each has a line of its own, and which is which only its options say."""
    base = made_up_measures(1, MEANS)
    lower = moved(base, "top_intersection", "pgd", np.full(40, -0.1))
    for steps in (5, 20):
        params = params_of("integrated-gradients") | {"options": {"steps": steps}}
        spec = AttackSpec(name="explain", norm="Linf", eps=8 / 255, params=params)
        put(stores, "m", base, lower, method="integrated-gradients", recipe=spec.recipe)
    lines = [line for line in robustq(stores).stdout.splitlines() if line.startswith("changed")]
    assert len(lines) == 2 and "integrated-gradients(steps=5)" in lines[0]
    assert "integrated-gradients(steps=20)" in lines[1]
