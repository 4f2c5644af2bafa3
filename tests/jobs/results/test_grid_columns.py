"""Settings of a grid as columns of groups: means by hand over rows that were made up."""

import pytest

from robustq.jobs.errors import SpecError
from robustq.jobs.results.filters import Filters
from robustq.jobs.results.questions import answer, make_question
from tests.helpers.fake_results import add_result, add_sweep

ROBUST = {("b[eps=4/255,steps=2]", 0): 0.25, ("b[eps=4/255,steps=10]", 0): 0.5, ("b[eps=8/255,steps=2]", 0): 0.75,
          ("b[eps=8/255,steps=2]", 1): 0.25, ("plain", 0): 0.125}  # fmt: skip


@pytest.fixture
def grid(made_up):
    with made_up.begin() as db:
        sweep = add_sweep(db, "s")
        for (model, seed), value in ROBUST.items():
            add_result(db, sweep, model, "pgd", seed=seed, robust_accuracy=value)
    return made_up


def asked(store, group: str, **more):
    with store.begin() as db:
        return answer(db, make_question(Filters(), group=group, **more))


def test_a_setting_is_a_column(grid):
    rows = asked(grid, "base,setting.steps,attack", sort="-setting.steps")
    found = [(row["base"], row["setting.steps"], row["robust_accuracy"], row["seeds"]) for row in rows]
    # seed 0 has two rows of steps=2, of which the mean is 0.5; seed 1 has 0.25
    assert found == [("b", 10, 0.5, 1), ("b", 2, 0.375, 2), ("plain", None, 0.125, 1)]


def test_fractions_and_names_are_values_too(grid):
    rows = asked(grid, "setting.eps")
    assert {row["setting.eps"]: row["rows"] for row in rows} == {4 / 255: 2, 8 / 255: 2, None: 1}


def test_a_setting_that_no_model_has_is_told(grid, made_up):
    with pytest.raises(
        SpecError, match=r"no model has the setting 'setting.beta', expected one of: setting.eps, setting.steps"
    ):
        asked(grid, "setting.beta")
    with pytest.raises(SpecError, match="there is no column 'beta'"):
        asked(grid, "beta")
