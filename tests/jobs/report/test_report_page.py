"""The page on a made-up sweep whose numbers are known."""

import re
from dataclasses import fields

import numpy as np
import pytest
from sqlalchemy import func, insert, select, update

from robustq.jobs.queue import drivers
from robustq.jobs.report.page.html_table import Cell, Column, Line, Table, body_html
from robustq.jobs.report.page.images import Grid
from robustq.jobs.report.page.page_model import Page
from robustq.jobs.report.page.render import SECTIONS
from robustq.jobs.specs import AttackSpec
from robustq.jobs.store.schema import attempt, job, job_artifact, sweep
from tests.helpers.fake_results import add_result, of_attack
from tests.helpers.fake_sweep import ATTACKS, RADII, accuracy, columns, distrust, fill
from tests.helpers.html_reading import Elements, page_of, report, there

MODELS = {"weak": 0.1, "middling": 0.3, "strong": 1.0}
IMAGES = job_artifact.c.role == "images"


@pytest.mark.slow
def test_the_answer_is_the_best_model_at_the_middle_radius(made_up):
    fill(made_up, MODELS)
    text = Elements(report(made_up)).text
    expected = 100 * accuracy(1.0, 0.1, "worst-case", 50)
    assert f"strong is the most robust model at Linf 0.1: {expected:.1f} %" in text
    # 41 and 33 of the same 50 images, 8 in the first alone: 2 / 2^8, though the intervals [69, 90] and [52, 78] meet.
    assert f"Next comes middling with {100 * accuracy(0.3, 0.1, 'worst-case', 50):.1f} % [52.2, 77.6]" in text
    test = "McNemar's exact test on the same 50 images, Holm's correction for 2 comparisons"
    assert f"it is told apart from it: p = 0.0078 ({test})." in text


@pytest.mark.slow
def test_a_customary_radius_comes_before_the_middle_one(made_up):
    fill(made_up, MODELS, radii=(4 / 255, 8 / 255, 0.1, 0.2))
    assert "strong is the most robust model at Linf 8/255" in Elements(report(made_up)).text


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("eps", RADII)
def test_the_leaderboard_has_every_model_and_radius(made_up, name, eps):
    table = there(page_of(made_up, fill(made_up, MODELS)).leaderboard)
    place = {column.label: i for i, column in enumerate(table.columns)}
    row = next(r for r in table.rows if r[0].text == name and r[place["eps"]].order == eps)
    assert row[place["robust %"]].order == pytest.approx(accuracy(MODELS[name], eps, "worst-case", 50))
    assert row[place["clean %"]].order == pytest.approx(0.9)
    lowest = [a for a in ATTACKS if accuracy(MODELS[name], eps, a, 50) == accuracy(MODELS[name], eps, "worst-case", 50)]
    assert row[place["rests on"]].text == ", ".join(lowest)


@pytest.mark.slow
def test_what_failed_its_checks_is_nowhere_robust(made_up):
    fill(made_up, MODELS | {"masked": 3.0})
    with made_up.begin() as db:
        distrust(db, "masked", "90 % of the images have no gradient")
    page = report(made_up)
    text = Elements(page).text
    number = f"{100 * accuracy(3.0, 0.1, 'worst-case', 50):.1f}"
    assert number != f"{100 * accuracy(1.0, 0.1, 'worst-case', 50):.1f}"
    assert "strong is the most robust model at Linf 0.1" in text
    assert (
        "Not trusted masked at Linf 0.05, Linf 0.1 and Linf 0.2: zero-gradient: 90 % of the images have no gradient"
        in text
    )
    found = page_of(made_up, 1)
    cells = [row for row in there(found.leaderboard).rows if row[0].text == "masked"]
    assert [cell.text for row in cells for cell in row if "not trusted" in cell.text] == [
        "not trusted",
        "✗ not trusted",
    ] * 3
    drawn = [*found.curves, *found.tradeoff, *found.attacks.breakers]
    assert drawn
    for chart in drawn:
        assert all(trace["name"] != "masked" and "masked" not in trace.get("y", ()) for trace in chart.data)
        assert "masked" not in chart.alt
    for table in (found.attacks.by_attack, found.repeat.rows):
        rows = [row for row in there(table).rows if row[0].text == "masked"]
        assert rows and not [cell.text for row in rows for cell in row if cell.text.startswith(number)]
    assert all(row[0].text != "masked" for row in there(found.classes.by_class).rows)


@pytest.mark.slow
def test_nothing_is_called_best_where_all_failed(made_up):
    fill(made_up, {"masked": 5.0})
    with made_up.begin() as db:
        distrust(db, "masked", "no gradient")
    text = Elements(report(made_up)).text
    assert "No model can be called robust at Linf 0.1" in text
    assert "the most robust model at" not in text


@pytest.mark.slow
def test_a_worst_case_stands_while_one_of_its_parts_is_trusted(made_up):
    """FGSM may be misled; what PGD broke is broken."""
    fill(made_up, MODELS)
    with made_up.begin() as db:
        distrust(db, "strong", "fgsm was misled", attack="fgsm")
    found = page_of(made_up, 1)
    assert found.verdict.distrusted == []
    assert [row[0].text for row in there(found.checks.found).rows] == ["✗ not trusted"] * 3
    assert {
        cell.text for row in there(found.attacks.by_attack).rows if row[0].text == "strong" for cell in row[3:4]
    } == {"not trusted"}


@pytest.mark.slow
def test_an_unchecked_sweep_says_so(made_up):
    fill(made_up, MODELS, verdict=None)
    text = Elements(report(made_up)).text
    assert "Nothing was checked of strong, middling and weak at Linf 0.1" in text


def test_two_recipes_of_an_attack_share_no_number(made_up):
    """PGD of 10 steps as everywhere, and of 100 at two of the radii."""
    sweep_id = fill(made_up, {"one": 1.0})
    with made_up.begin() as db:
        for eps in RADII[:2]:
            more = {"robust_accuracy": 0.25, "verdict": "pass", "extra": {"mode": "float32"}}
            more |= of_attack(AttackSpec(name="pgd", norm="Linf", eps=eps, params={"steps": 100}))
            add_result(db, sweep_id, "one", "pgd", eps, columns=columns(1.0, eps, "pgd", 50), **more)
    found = page_of(made_up, sweep_id)
    table = there(found.attacks.by_attack)
    place = {column.label: i for i, column in enumerate(table.columns)}
    assert [row[place["pgd steps=100"]].order for row in table.rows] == [0.25, 0.25, -2.0]
    wanted = [accuracy(1.0, eps, "pgd", 50) for eps in RADII]
    assert [row[place["pgd steps=10"]].order for row in table.rows] == pytest.approx(wanted)
    assert {"pgd steps=10, Linf", "pgd steps=100, Linf", "fgsm, Linf"} <= {chart.title for chart in found.curves}


def test_costs_count_a_curve_once(made_up):
    """Three radii of PGD were one search, and each row tells what all cost; the other attacks searched thrice."""
    found = there(page_of(made_up, fill(made_up, {"one": 1.0})).cost)
    row = {column.label: cell.order for column, cell in zip(found.columns, found.rows[0], strict=True)}
    assert row["images forward"] == 100 * 50 * (1 + 3 + 3)
    assert row["images forward and back"] == 40 * 50 * (1 + 3 + 3)
    assert row["queries"] == 3 * 50 * 7
    assert row["training seconds"] == 6.0
    assert row["attack seconds, CPU"] == 12.0


@pytest.mark.slow
def test_seeds_are_averaged_and_their_intervals_joined(made_up):
    found = there(page_of(made_up, fill(made_up, MODELS, seeds=(0, 1, 2))).leaderboard)
    row = next(row for row in found.rows if row[0].text == "strong")
    assert row[-1].text == "3"


@pytest.mark.slow
def test_what_broke_the_images_adds_up(made_up):
    [chart] = page_of(made_up, fill(made_up, MODELS)).attacks.breakers
    for i in range(3):
        assert sum(trace["x"][i] for trace in chart.data) == pytest.approx(100)
    stands = next(trace["x"] for trace in chart.data if trace["name"] == "robust")
    assert stands == pytest.approx([100 * accuracy(s, 0.1, "worst-case", 50) for s in (1.0, 0.3, 0.1)])


@pytest.mark.slow
def test_confusion_matrices_count_each_image_once(made_up):
    best = page_of(made_up, fill(made_up, MODELS)).classes.confusions[0]
    assert best.model == "strong"
    for word, matrix in best.matrices:
        counts = np.array([[int(cell.text or 0) for cell in line] for line in matrix])
        right = 0.9 if word == "clean" else accuracy(1.0, 0.1, "worst-case", 50)
        assert counts.sum() == 50
        assert counts.trace() == pytest.approx(50 * right)


@pytest.mark.slow
def test_classes_are_those_of_the_slow_count(made_up):
    from tests.helpers.fake_sweep import columns

    found = there(page_of(made_up, fill(made_up, MODELS)).classes.by_class)
    seen = columns(1.0, 0.1, "worst-case", 50)
    for k, cell in enumerate(found.rows[0][1:]):
        mine = [right for label, right in zip(seen["label"], seen["adversarial_correct"], strict=True) if label == k]
        assert cell.order == pytest.approx(sum(mine) / len(mine))


def grids_of(page: Page) -> list[Grid]:
    """The pictures of a page that lacks none."""
    grids = [grid for grid in page.pictures.grids if isinstance(grid, Grid)]
    assert grids == page.pictures.grids
    return grids


@pytest.mark.slow
def test_pictures_show_image_and_difference(made_up):
    grids = grids_of(page_of(made_up, fill(made_up, MODELS)))
    assert [grid.title for grid in grids] == [
        f"{model} under square, Linf, eps 0.1" for model in ("strong", "middling", "weak")
    ]
    assert all(len(grid.images) == 4 for grid in grids)
    assert grids[0].magnified == pytest.approx(5.0)  # the difference is 0.1 at most
    page = Elements(report(made_up))
    pictures = [a for tag, a in page.tags if tag == "img"]
    assert len(pictures) == 3 * 4 * 3
    assert all(a["alt"] for a in pictures)


@pytest.mark.slow
def test_rows_of_the_same_images_have_each_their_own_captions(made_up):
    """The made-up images differ by radius alone, so that all models keep the same file of them."""
    grids = grids_of(page_of(made_up, fill(made_up, MODELS)))
    with made_up.begin() as db:
        assert db.execute(select(func.count(job_artifact.c.sha256.distinct())).where(IMAGES)).scalar() == len(RADII)
    for grid in grids:
        model = grid.title.split(" under ")[0]
        fell = columns(MODELS[model], 0.1, "square", 50)["success"][:4]
        assert [image.broken for image in grid.images] == fell.tolist()
    assert len({tuple(image.caption for image in grid.images) for grid in grids}) > 1


@pytest.mark.slow
def test_every_row_says_how_to_repeat_it(made_up):
    """Evaluations run again by their number; a worst case is computed from others, and shown."""
    rows = there(page_of(made_up, fill(made_up, MODELS)).repeat.rows)
    titles = [column.label for column in rows.columns]
    with made_up.begin() as db:
        kinds = {str(id_): kind for id_, kind in db.execute(select(job.c.id, job.c.kind))}
    seen = set()
    for row in rows.rows:
        cells = dict(zip(titles, (cell.text for cell in row), strict=True))
        words = cells["again"].split()
        kind = kinds[words[-1]]
        seen.add(kind)
        assert words[:-1] == (["robustq", "replay", "--job"] if kind == "eval" else ["robustq", "logs"])
        assert cells["versions"] == "kernel 3, numpy 2.4, python 3.12, robustq 0.0.9, torch 2.14"
        assert len(cells["key"]) == 16
    assert seen == {"eval", "worst"}


@pytest.mark.slow
def test_accuracy_by_queries_falls_when_they_were_asked(made_up):
    """Square, which asked seven times about every image, at the radius of the answer; no other attack counted."""
    (chart,) = page_of(made_up, fill(made_up, MODELS, seeds=(0, 1))).queries
    assert (chart.title, [trace["name"] for trace in chart.data]) == (
        "square, Linf 0.1",
        ["strong", "middling", "weak"],
    )
    for trace in chart.data:
        stands = 100 * accuracy(MODELS[trace["name"]], 0.1, "square", 50)
        assert dict(zip(trace["x"], trace["y"], strict=True)) == {n: 100 if n < 7 else stands for n in range(1, 8)}
    assert [column.label for column in there(chart.table).columns] == ["model", "% after 1", "% after 3", "% after 7"]
    assert "strong is at 84.0 % after 7 queries" in chart.alt


@pytest.mark.slow
def test_what_is_not_trusted_has_no_line_by_queries(made_up):
    sweep_id = fill(made_up, MODELS)
    with made_up.begin() as db:
        distrust(db, "strong", "masked", attack="square")
    (chart,) = page_of(made_up, sweep_id).queries
    assert [trace["name"] for trace in chart.data] == ["middling", "weak"]
    assert chart.note == "Left out where it is not trusted: strong."


def test_every_section_has_a_part_of_the_page():
    """And the page says nothing besides but what its head has."""
    names = [field.name for field in fields(Page)]
    assert names[:2] == ["sweep", "about"] and names[2:] == list(SECTIONS)


@pytest.mark.parametrize("row", [list, Line])
def test_lines_of_a_table(row):
    """Names stay texts; numbers stand to the right; what a column is sorted by is said where it is not the text."""
    cells = row([Cell("a<b> & 'c'"), Cell("1.5", 1.5), Cell("✗", 0.0, "fail"), Cell("", kind="hash")])
    table = Table("t", "", (Column("a"), Column("b", number=True), Column("c", number=True), Column("d")), [cells])
    expected = (
        '<tr><th scope=row>a&lt;b&gt; &amp; &#39;c&#39;</th><td class="n " data-order="1.5">1.5</td>'
        '<td class="n fail" data-order="0.0">✗</td><td class="hash"></td></tr>\n'
    )
    assert (body_html(table), body_html(table)) == (expected, expected)  # the second time as it was kept


@pytest.mark.slow
def test_a_partial_sweep_says_so_and_what_it_cost(made_up):
    sweep_id = fill(made_up, {"one": 1.0})
    assert "partial" not in Elements(report(made_up)).text and "Device hours" not in Elements(report(made_up)).text
    with made_up.begin() as db:
        some = db.execute(select(job.c.id).where(job.c.kind == "eval").order_by(job.c.id).limit(2)).scalars().all()
        message = "left out of a budget of 2h: expected to take 9 s"
        out = {"state": "cancelled", "error_class": "OverBudget", "error_message": message}
        db.execute(update(job).where(job.c.id == some[0]).values(**out))
        drivers.register(db, "one", "here", 1, 0.0, "0")
        held = {"fence": 1, "driver_id": "one", "started_at": 0.0, "ended_at": 7200.0, "gpus": 0.0, "cpus": 3.0}
        db.execute(insert(attempt).values(job_id=some[1], n=1, gpu_ids="", **held))
        (name,) = db.execute(select(sweep.c.name).where(sweep.c.id == sweep_id)).scalars()
    text = Elements(report(made_up)).text
    total = there(page_of(made_up, sweep_id)).sweep.total
    how = f"robustq retry --sweep {name} queues it"
    assert f"The sweep is partial: 1 of {total} jobs was left out of a budget ({how})" in text
    assert re.search(r"Left out of the budget of 2h: [a-z]+ \S+ \S+ of one\.", text)
    assert "not complete" not in text and "of the estimated work is done" not in text
    assert "Device hours: 6 of CPU cores. Every attempt counts" in text
    with made_up.begin() as db:
        db.execute(update(job).where(job.c.id == some[1]).values(state="queued"))
    assert "1 of the cancelled was left out of a budget." in Elements(report(made_up)).text
