"""The page's pictures: an adversarial image where one was kept, plain factors, room for titles, little paper."""

import numpy as np
import pytest
import safetensors.numpy

from robustlib.datasets import load
from robustq.jobs.report.page.images import Grid
from robustq.jobs.report.page.plotly import axis
from robustq.jobs.report.page.render import asset, render_page, render_sections
from robustq.jobs.store.connection import Store
from robustq.jobs.text.numbers import times
from tests.helpers.fake_results import add_result, add_sweep, outcome
from tests.helpers.fake_sweep import digits, fill, keep
from tests.helpers.html_reading import Elements, page_of, report

KEPT = 3


def attacked(
    store: Store, db, sweep_id: int, attack: str, eps: float, seed: int, misled: int | None, shift: float
) -> None:
    """An evaluation that keeps three pictures, of which it misled that one, and none else."""
    y = np.asarray(load.load("digits", "test").y[:20])
    success = np.arange(20) == misled
    columns = outcome(0, n=20) | {
        "label": y,
        "clean_prediction": y,
        "adversarial_prediction": np.where(success, (y + 1) % 10, y),
        "success": success,
        "broken_by": np.where(success, attack, ""),
        "distance": np.where(success, eps, np.nan).astype(np.float32),
        "clean_correct": np.ones(20, np.float32),
        "adversarial_correct": (~success).astype(np.float32),
        "adversarial_survived": ~success,
    }
    spec = {"kind": "eval", "data": digits(), "model": {}, "images": KEPT}
    id_ = add_result(db, sweep_id, "net", attack, eps, seed, columns=columns, spec=spec, verdict="pass")
    clean = load.load("digits", "test").x[:KEPT].astype(np.float32) / 255
    keep(db, store.artifacts, id_, "images", safetensors.numpy.save({"x_adv": np.clip(clean + shift, 0, 1)}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("misled", "expected"),
    [
        ({}, "net, seed 0 under square, Linf, eps 0.1"),  # none anywhere: the middle radius of the first seed
        ({("square", 0.1, 0): 2}, "net, seed 0 under square, Linf, eps 0.1"),
        ({("square", 0.2, 0): 1, ("pgd", 0.1, 0): 0}, "net, seed 0 under square, Linf, eps 0.2"),
        ({("square", 0.1, 1): 1}, "net, seed 1 under square, Linf, eps 0.1"),
        ({("pgd", 0.1, 1): 0}, "net, seed 1 under pgd, Linf, eps 0.1"),
        ({("square", 0.2, 0): 7}, "net, seed 0 under square, Linf, eps 0.1"),  # beyond what is kept
    ],
)
def test_pictures_show_an_adversarial_image_where_one_was_kept(made_up: Store, misled: dict, expected: str):
    with made_up.begin() as db:
        sweep_id = add_sweep(db, "s")
        for seed in (0, 1):
            for attack in ("pgd", "square"):
                for eps in (0.1, 0.2):
                    attacked(made_up, db, sweep_id, attack, eps, seed, misled.get((attack, eps, seed)), eps)
    page = page_of(made_up, sweep_id)
    (grid,) = page.pictures.grids
    assert isinstance(grid, Grid) and grid.title == expected
    none = "No attack that kept pictures misled one of these images."
    shown = any(place < KEPT for place in misled.values())
    assert any(image.misled for image in grid.images) == shown
    assert (none in Elements(render_page(page, render_sections(page))).text) == (not shown)


def test_an_attack_that_changed_nothing_is_not_magnified(made_up: Store):
    with made_up.begin() as db:
        sweep_id = add_sweep(db, "s")
        attacked(made_up, db, sweep_id, "pgd", 0.1, 0, None, 0.0)
    page = page_of(made_up, sweep_id)
    (grid,) = page.pictures.grids
    assert isinstance(grid, Grid) and grid.magnified is None
    text = Elements(html := report(made_up, "s")).text
    assert "The attacked images are the clean ones: the attack left them as they are." in text
    assert "magnified 5e" not in html and 'alt="Difference between the two, none"' in html


@pytest.mark.parametrize(
    ("factor", "words"), [(5.0, "5"), (12.345, "12.3"), (999.9, "1 000"), (1234.5, "1 230"), (5e5, "500 000")]
)
def test_factors_have_no_power_of_ten(factor: float, words: str):
    assert times(factor) == words


def test_titles_of_axes_keep_their_distance_from_the_ticks(made_up: Store):
    """Plotly makes room for a title beside the ticks where it has a distance and margins follow."""
    page = page_of(made_up, fill(made_up, {"a": 1.0}, images=0))
    for chart in (*page.curves, *page.tradeoff, *page.attacks.breakers, *page.queries, *page.training):
        for name in ("xaxis", "yaxis"):
            given = chart.layout[name]
            assert given["automargin"] and given["title"]["standoff"] == axis("")["title"]["standoff"] > 0


def test_on_paper_charts_stand_side_by_side_and_what_is_folded_is_left_out():
    """Three charts beside each other fit between the margins of A4: 703 pixels of CSS, less two gaps of 10."""
    style = asset("page.css").partition("@media print")[2]
    assert (
        ".pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(58mm, 1fr)); gap: .3rem .8rem; }"
        in style
    )
    assert "details:not([open]) { display: none; }" in style
    script = asset("chart.js")
    width = int(script.partition("const paper = ")[2].partition(";")[0])
    assert 3 * width + 20 <= 703 and width >= 58 / 25.4 * 96
    assert '!["all-rows", "study"].includes(d.id)' in script
