"""The clean accuracy of a randomised model is one number, wherever it is shown, though each evaluation draws anew."""

import json
import re
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from robustq import cli
from robustq.jobs.results.filters import Filters
from robustq.jobs.results.worst_attack import clean_row
from robustq.jobs.store.connection import Store
from robustq.jobs.store.schema import job, result, sweep_job
from robustq.jobs.trackers.runs import runs_of
from tests.helpers.fake_results import add_result
from tests.helpers.fake_sweep import columns, digits, fill
from tests.helpers.html_reading import page_of, there

MODELS = {"noisy": 1.0, "plain": 0.3}
DRAWN = {("noisy", 0): 0.81, ("noisy", 1): 0.83, ("plain", 0): 0.85, ("plain", 1): 0.87}  # of the evaluations `clean`
EARLIEST = {place: share - 0.2 for place, share in DRAWN.items()}  # of the first one of each model and seed


def printed(store: Store, *words: str) -> str:
    ran = CliRunner().invoke(cli.main, ["--store", store.url, "results", *words])
    assert ran.exit_code == 0, ran.output
    return ran.stdout


@pytest.fixture
def noisy(made_up: Store) -> Store:
    """Each evaluation has a clean accuracy of its own, and that of `clean` two."""
    sweep_id = fill(made_up, MODELS, seeds=(0, 1), radii=(0.1,), epochs=1, images=0)
    with made_up.begin() as db:
        for (model, seed), share in DRAWN.items():
            seen = columns(MODELS[model], 0.1, "clean", 50)
            more = {"norm": None, "spec": {"kind": "eval", "data": digits(), "model": {}}, "verdict": "pass"}
            values: dict[str, Any] = more | {"clean_accuracy": share, "robust_accuracy": share + 0.05}
            add_result(db, sweep_id, model, "clean", None, seed, columns=seen, **values)
        attacks = sa.select(job.c.id).where(job.c.attack.not_in(("clean", "")))
        for id_ in db.execute(attacks).scalars().all():
            db.execute(sa.update(result).where(result.c.job_id == id_).values(clean_accuracy=id_ / 1000))
        for (model, seed), share in EARLIEST.items():
            first = sa.select(sa.func.min(job.c.id)).where(
                job.c.attack.not_in(("clean", "")) & (job.c.seed == seed) & job.c.id.in_(ids_of(model))
            )
            id_ = db.execute(first).scalar_one()
            db.execute(sa.update(result).where(result.c.job_id == id_).values(clean_accuracy=share))
    return made_up


def ids_of(model: str) -> sa.Select[tuple[int]]:
    return sa.select(sweep_job.c.job_id).where(sweep_job.c.model == model)


def everywhere(store: Store, *words: str) -> list[dict[str, str]]:
    """Each model's clean accuracy in percent: the summary's, the paper's, the page's, the trackers'."""
    summary = {line.split()[0]: line.split()[1] for line in printed(store, "--summary").splitlines()[3:]}
    latex = printed(store, "--over-seeds", "--pivot", "--format", "latex", *words)
    paper = {m: there(re.search(rf"^{m} & \$?(?:\\textbf\{{)?([\d.]+)", latex, re.M))[1] for m in MODELS}
    table = there(page_of(store, 1).leaderboard)
    place = [column.label for column in table.columns].index("clean %")
    page = {line[0].text: line[place].text.split()[0] for line in table.rows}
    with store.begin() as db:
        runs = runs_of(db, Filters())
    seeds = {m: [run.metrics["clean_accuracy"] for run in runs if run.model == m] for m in MODELS}
    return [summary, paper, page, {m: f"{100 * sum(found) / 2:.1f}" for m, found in seeds.items()}]


def test_it_is_that_of_the_evaluation_clean_everywhere(noisy: Store):
    right = {"noisy": "82.0", "plain": "86.0"}
    assert everywhere(noisy) == [right] * 4
    pivot = json.loads(printed(noisy, "--pivot", "--json"))
    assert {line["model"]: f"{100 * line['clean']:.1f}" for line in pivot} == right
    spread = json.loads(printed(noisy, "--pivot", "--over-seeds", "--json"))
    assert [line["clean sd"] for line in spread] == pytest.approx([0.02 / 2**0.5] * 2)


@pytest.mark.slow
def test_without_one_it_is_that_of_the_earliest_everywhere(noisy: Store):
    with noisy.begin() as db:
        clean = sa.select(job.c.id).where(job.c.attack == "clean")
        db.execute(sa.delete(result).where(result.c.job_id.in_(clean)))
    assert everywhere(noisy) == [{"noisy": "62.0", "plain": "66.0"}] * 4


def test_more_images_count_more_and_worst_cases_and_certificates_least():
    def row(attack: str, n: int, job_id: int) -> dict[str, object]:
        return {"attack": attack, "n": n, "job_id": job_id}

    worst, certified = row("worst-case", 100, 1), row("certify", 100, 2)
    few, many, later = row("pgd", 10, 3), row("fgsm", 20, 4), row("pgd", 20, 5)
    rows = [worst, certified, few, later, many, row("clean", 5, 6)]
    order = []
    while rows:
        order.append(clean_row(rows))
        rows.remove(order[-1])
    assert [one["job_id"] for one in order] == [6, 4, 5, 3, 1, 2]
