"""The charts of a grid's settings, on a sweep whose numbers are known."""

import pytest

from tests.helpers.fake_sweep import accuracy, distrust, fill
from tests.helpers.html_reading import Elements, page_of, report, there

GRID = {"b[steps=10,eps=4/255]": 0.3, "b[steps=2,eps=4/255]": 0.1, "b[steps=2,eps=8/255]": 0.5, "plain": 0.2}


def percent(model: str):
    return pytest.approx(100 * accuracy(GRID[model], 0.1, "worst-case", 50), abs=0.006)


@pytest.mark.slow
def test_each_setting_has_a_line_for_what_else_is_the_same(made_up):
    page = page_of(made_up, fill(made_up, GRID))
    steps, eps = (chart for chart in page.curves if chart.name.startswith("setting-"))
    assert [trace["name"] for trace in steps.data] == ["b[eps=4/255]", "b[eps=8/255]"]
    assert steps.data[0]["x"] == [2, 10]
    assert steps.data[0]["y"] == [percent("b[steps=2,eps=4/255]"), percent("b[steps=10,eps=4/255]")]
    assert steps.data[1]["x"] == [2] and steps.data[1]["y"] == [percent("b[steps=2,eps=8/255]")]
    assert [trace["name"] for trace in eps.data] == ["b[steps=2]", "b[steps=10]"]  # by value, not as texts
    assert eps.data[0]["x"] == [4 / 255, 8 / 255]
    cells = [[cell.text for cell in row] for row in there(steps.table).rows]
    assert [row[:2] for row in cells] == [["b[eps=4/255]", "2"], ["b[eps=4/255]", "10"], ["b[eps=8/255]", "2"]]
    assert "By steps, worst case Linf 0.1" in Elements(report(made_up)).text


@pytest.mark.slow
def test_what_is_not_trusted_is_named_and_left_out(made_up):
    sweep = fill(made_up, GRID)
    with made_up.begin() as db:
        distrust(db, "b[steps=2,eps=4/255]", "no gradient")
    (steps,) = [chart for chart in page_of(made_up, sweep).curves if chart.name.startswith("setting-steps")]
    assert steps.data[0]["x"] == [10]
    assert steps.note == "Left out where it is not trusted: b[steps=2,eps=4/255]."


@pytest.mark.slow
def test_a_study_without_a_grid_has_none(made_up):
    page = page_of(made_up, fill(made_up, {"weak": 0.1, "odd[name]": 0.3}))
    assert not [chart for chart in page.curves if chart.name.startswith("setting-")]
