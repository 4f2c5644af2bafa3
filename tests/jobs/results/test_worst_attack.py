"""The worst case over attacks is the same number in the table, on the page, in JSON and in exports."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from robustq import cli
from robustq.jobs.report.page.cache import PageCache
from robustq.jobs.report.page.ranking import standings
from robustq.jobs.report.page.sweep_data import gather
from robustq.jobs.results.columns import ResultRow
from robustq.jobs.results.rows import result_rows
from robustq.jobs.results.worst_attack import attacked_by_radius, worst_case_of
from robustq.jobs.store.connection import Store
from robustq.jobs.store.schema import example_blob, job, result
from tests.helpers.fake_results import add_result, add_sweep
from tests.helpers.fake_sweep import RADII, accuracy, fill
from tests.helpers.html_reading import page_of, there

MODELS = {"weak": 0.1, "middling": 0.3, "strong": 1.0}
# The slow count over single images, by radius and model.
RIGHT = {(eps, model): accuracy(strength, eps, "worst-case", 50) for model, strength in MODELS.items() for eps in RADII}


def printed(store: Store, *words: str) -> str:
    ran = CliRunner().invoke(cli.main, ["--store", store.url, "results", *words])
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def in_summary(store: Store) -> dict[tuple[float, str], str]:
    """What the table of models says, in percent."""
    _, head, _, *lines = printed(store, "--summary").splitlines()
    assert [word for word in head.split() if word != "Linf"] == ["model", "clean", *map(str, RADII)]
    return {(eps, line.split()[0]): text for line in lines for eps, text in zip(RADII, line.split()[2:], strict=True)}


def on_page(store: Store) -> dict[tuple[float | None, str], float | None]:
    """What the leaderboard says."""
    table = there(page_of(store, 1).leaderboard)
    place = {column.label: i for i, column in enumerate(table.columns)}
    return {(row[place["eps"]].order, row[0].text): row[place["robust %"]].order for row in table.rows}


@pytest.mark.slow
def test_table_page_json_and_exports_say_the_same(made_up: Store, tmp_path: Path):
    fill(made_up, MODELS)
    assert in_summary(made_up) == {place: f"{100 * value:.1f}" for place, value in RIGHT.items()}
    assert on_page(made_up) == pytest.approx(RIGHT)
    asked = ["--attack", "worst-case"]
    rows = json.loads(printed(made_up, *asked, "--json"))
    assert {(row["eps"], row["model"]): row["robust_accuracy"] for row in rows} == pytest.approx(RIGHT)
    rows = csv.DictReader(printed(made_up, *asked, "--format", "csv").splitlines())
    assert {(float(row["eps"]), row["model"]): float(row["robust_accuracy"]) for row in rows} == pytest.approx(RIGHT)
    (pivot,) = [row for row in json.loads(printed(made_up, *asked, "--pivot", "--json")) if row["model"] == "strong"]
    assert [pivot[f"worst-case Linf {eps}"] for eps in RADII] == pytest.approx([RIGHT[eps, "strong"] for eps in RADII])
    path = tmp_path / "rows.parquet"
    ran = CliRunner().invoke(cli.main, ["--store", made_up.url, "export", *asked, str(path)])
    assert ran.exit_code == 0, ran.output
    rows = pq.read_table(path).to_pylist()
    assert {(row["eps"], row["model"]): row["robust_accuracy"] for row in rows} == pytest.approx(RIGHT)


@pytest.mark.slow
def test_while_no_worst_case_is_computed_the_lowest_attack_stands_for_it(made_up: Store):
    fill(made_up, MODELS)
    with made_up.begin() as db:
        ids = db.execute(sa.select(job.c.id).where(job.c.attack == "worst-case")).scalars().all()
        for table in (result, example_blob):
            db.execute(sa.delete(table).where(table.c.job_id.in_(ids)))
    # PGD uses most of a radius, so that it alone breaks what all attacks together do.
    assert in_summary(made_up) == {place: f"{100 * value:.1f}" for place, value in RIGHT.items()}
    assert on_page(made_up) == pytest.approx(RIGHT)


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "trusted"), [("pgd", False), ("fgsm", True)])
def test_a_worst_case_without_a_verdict_is_trusted_as_its_attacks(made_up: Store, attack, trusted):
    """As in stores of before there were checks; PGD is the lowest, so that what becomes of FGSM is no matter."""
    fill(made_up, {"strong": 1.0}, radii=(0.2,))
    with made_up.begin() as db:
        for name, verdict in (("worst-case", None), (attack, "fail")):
            of_attack = sa.select(job.c.id).where(job.c.attack == name)
            db.execute(sa.update(result).where(result.c.job_id.in_(of_attack)).values(verdict=verdict))
        (case,) = map(worst_case_of, attacked_by_radius(result_rows(db)).values())
        sweep = gather(db, 1, PageCache())
    assert (case.verdict != "fail") == trusted
    (standing,) = standings(sweep.rows, sweep.checks)
    assert standing.trusted == trusted
    assert ("not trusted" in printed(made_up, "--summary")) != trusted


def row(attack: str, seed: int, robust: float, verdict: str | None = "pass") -> ResultRow:
    return {
        "sweep": "s", "model": "m", "arch": None, "defence": None, "dataset": "d", "attack": attack, "norm": "Linf",
        "eps": 0.1, "seed": seed, "recipe": attack, "n": 10, "clean_accuracy": 1.0, "clean_accuracy_low": 1.0,
        "clean_accuracy_high": 1.0, "robust_accuracy": robust, "robust_accuracy_low": robust,
        "robust_accuracy_high": robust, "any_draw_accuracy": robust, "verdict": verdict, "why": None, "distance_median": None,
        "distance_median_low": None, "distance_median_high": None, "distance_mean": None, "queries": None,
        "queries_most": None, "seconds": 1.0, "device": "cpu", "versions": {}, "recorded_at": 0.0, "key": "",
        "job_id": seed,
    }  # fmt: skip


def test_seeds_are_averaged_each_by_its_own_worst_case():
    rows = [
        row("pgd", 0, 0.5),
        row("fgsm", 0, 0.75),
        row("worst-case", 0, 0.25),
        row("pgd", 1, 0.5),
        row("certify", 1, 0),
    ]
    ((place, here),) = attacked_by_radius(rows).items()
    assert place == ("Linf", 0.1, "m") and all(one["attack"] != "certify" for one in here)
    case = worst_case_of(here)
    assert case.accuracy == (0.25 + 0.5) / 2
    assert [(one["attack"], one["seed"]) for one in case.rows] == [("worst-case", 0), ("pgd", 1)]
    assert case.verdict == "pass"
    assert worst_case_of([*here, row("pgd", 2, 0.4, "warn"), row("fgsm", 2, 0.6, "fail")]).verdict == "warn"


@pytest.mark.parametrize(("attack", "norm"), [("clean", None), ("deepfool", "L2")])
def test_a_summary_without_radii_has_the_clean_accuracy(made_up: Store, attack: str, norm: str | None):
    with made_up.begin() as db:
        add_result(db, add_sweep(db, "s"), "a", attack, None, norm=norm, clean_accuracy=0.875)
    _, *lines = printed(made_up, "--summary").splitlines()
    assert [line.split() for line in lines] == [["model", "clean"], ["-----", "-----"], ["a", "87.5"]]
