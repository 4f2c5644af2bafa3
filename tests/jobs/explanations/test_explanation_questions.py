"""Questions to stored explanations: tables, filters, exports, and two models compared."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from scipy import stats

from robustlib.settings import EXPLANATION_MEASURES, EXPLANATION_SANITY
from robustq import cli
from robustq.jobs.errors import SpecError
from robustq.jobs.results.explanations.api import explanations
from robustq.jobs.results.explanations.compare import compare
from robustq.jobs.results.explanations.export import EXAMPLE_TYPES, ROW_TYPES
from robustq.jobs.results.explanations.rows import explanation_rows
from robustq.jobs.results.explanations.stability import pivot
from robustq.jobs.results.filters import Filters
from robustq.jobs.specs import AttackSpec
from robustq.jobs.statistics.explanation_means import steadier
from robustq.jobs.store.connection import Store
from robustq.jobs.store.explanations.measures import measures_of
from robustq.jobs.store.schema import job
from tests.helpers.fake_explanations import AGAINST, add_explanation, made_up_measures, params_of
from tests.helpers.fake_results import add_result, add_sweep

MEANS = {
    "plain": {"noise": 0.6, "pgd": 0.3, "explanation-attack": 0.4},
    "robust": {"noise": 0.6, "pgd": 0.5, "explanation-attack": 0.55},
}


@pytest.fixture
def two_models(made_up: Store) -> Store:
    """Two models with two seeds each, and an attack; the maps of a second method hardly change with the weights."""
    with made_up.begin() as db:
        sweep = add_sweep(db, "two")
        for place, (model, means) in enumerate(MEANS.items()):
            add_result(db, sweep, model, "pgd")
            for seed in (0, 1):
                add_explanation(db, sweep, model, made_up_measures(10 * place + seed, means), seed=seed)
        add_explanation(db, sweep, "plain", made_up_measures(3, MEANS["plain"], alike=0.95), method="saliency")
    return made_up


def robustq(store: Store, *words: str) -> Result:
    found = CliRunner().invoke(cli.main, ["--store", store.url, *words])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


@pytest.mark.slow
def test_the_two_tables_stand_one_below_the_other(two_models: Store):
    text = robustq(two_models, "results").output
    accuracies, _, explanations = text.partition("\n\n")
    assert "explain" not in accuracies and accuracies.count("\n") == 3
    head, _, *lines = explanations.splitlines()
    assert head.split()[-6:] == ["clean", "noise", "pgd", "explanation-attack", "checks", "why"]
    top = [line for line in lines if " top-k " in line and " near " not in line]
    assert len(top) == 5 and re.search(r"plain +grad-cam +Linf +8/255 +0 +40 +top-k +0\.59\d \[", top[0])
    assert sum(" kept  " in line for line in lines) == 5
    assert re.search(r"kept +40 +40 +20 +40", explanations)
    assert "[1] random-weights 0.95 > 0.8" in lines and "not trusted (" in top[4] and "fail" in top[4]
    assert "explain" not in robustq(two_models, "results", "--attack", "pgd").output
    only = robustq(two_models, "results", "--attack", "explain").output
    assert only.startswith("sweep") and "measure" in only.splitlines()[0]


def test_rows_are_filtered_by_their_own_columns(two_models: Store):
    words = ("results", "--explanations", "--json", "--where", "method=grad*", "--where", "against!=clean")
    rows = json.loads(robustq(two_models, *words, "--where", "top_intersection<0.45", "--model", "plain").output)
    assert {(row["model"], row["against"]) for row in rows} == {("plain", "pgd"), ("plain", "explanation-attack")}
    wrong = robustq(two_models, "results", "--explanations", "--where", "metod=lime")
    assert wrong.exit_code == 2 and "there is no column 'metod'" in wrong.output and "'method'" in wrong.output
    other = robustq(two_models, "results", "--explanations", "--over-seeds")
    assert other.exit_code == 2 and other.output == (
        "robustq: --explanations goes with filters, --pivot and --compare: leave out the other options\n"
    )


def test_a_pivot_has_means_over_seeds_and_nothing_that_is_not_trusted(two_models: Store):
    with two_models.begin() as db:
        rows = explanation_rows(db)
        lines = {(line["model"], line["method"]): line for line in pivot(rows)}
    for model in MEANS:
        for against in AGAINST[1:]:
            own = [r for r in rows if (r["model"], r["method"], r["against"]) == (model, "grad-cam", against)]
            values = [row["top_intersection"] for row in own]
            assert lines[model, "grad-cam"][f"{against} Linf 8/255"] == pytest.approx(np.mean(values))  # pyright: ignore
    failed = lines["plain", "saliency"]
    assert failed["noise Linf 8/255"] is None and failed["why"] == "random-weights 0.95 > 0.8"


def test_a_pivot_trusts_no_mean_of_the_seeds_that_passed_alone(two_models: Store):
    """As a pivot of accuracies does: who leaves out the seed that failed has another mean."""
    with two_models.begin() as db:
        add_explanation(db, 1, "robust", made_up_measures(4, MEANS["robust"], alike=0.95), seed=2)
        lines = {line["model"]: line for line in pivot(explanation_rows(db)) if line["method"] == "grad-cam"}
    assert lines["plain"]["noise Linf 8/255"] is not None and lines["robust"]["noise Linf 8/255"] is None
    assert lines["robust"]["why"] == "random-weights 0.95 > 0.8"


def test_two_models_are_compared_on_the_same_images(two_models: Store):
    """Each image's mean over the seeds, by scipy's signed-rank test; Holm's correction over the three rows."""
    with two_models.begin() as db:
        rows: list[Any] = list(compare(db, Filters(), ("plain", "robust")))
        jobs = {
            (row["model"], row["seed"]): row["job_id"] for row in explanation_rows(db) if row["method"] == "grad-cam"
        }
        of = {place: measures_of(db, number) for place, number in jobs.items()}
    assert [row["against"] for row in rows] == list(AGAINST[1:])
    for row in rows:
        one, other = (
            np.mean(
                [of[model, seed]["top_intersection"][of[model, seed]["against"] == row["against"]] for seed in (0, 1)],
                0,
            )
            for model in MEANS
        )
        expected: Any = stats.wilcoxon(other - one, zero_method="pratt")
        assert row["p"] == pytest.approx(expected.pvalue) and (row["n"], row["seeds"]) == (40, 2)
        low, high = stats.t.interval(0.95, 39, (other - one).mean(), stats.sem(other - one))
        found = [row[name] for name in ("first_mean", "second_mean", "difference", "difference_low", "difference_high")]
        assert found == pytest.approx([one.mean(), other.mean(), (other - one).mean(), low, high])
    ordered = sorted(row["p"] for row in rows)
    assert min(row["p_holm"] for row in rows) == pytest.approx(3 * ordered[0])
    assert rows[0]["p"] > 0.01 > rows[1]["p_holm"]  # noise does the same to both, PGD does not
    text = robustq(two_models, "results", "--explanations", "--compare", "plain", "robust").output
    assert "Wilcoxon's signed-rank test" in text and text.count("grad-cam") == 3


@pytest.mark.slow
def test_what_cannot_be_compared_is_said(two_models: Store):
    with two_models.begin() as db:
        with pytest.raises(SpecError, match="no explanation is of model 'plane': did you mean 'plain'"):
            compare(db, Filters(), ("plane", "robust"))
        with pytest.raises(SpecError, match=r"nothing .* done to images is called 'nois', .*: did you mean 'noise'"):
            compare(db, Filters(), ("pgd", "nois"))
        sweep = add_sweep(db, "other")
        add_explanation(db, sweep, "far", made_up_measures(0, MEANS["plain"]), method="lime")
        with pytest.raises(SpecError, match="'plain' and 'far' have no explanation with the same method"):
            compare(db, Filters(), ("plain", "far"))
        for place, model in enumerate(("left", "right")):  # one explains the even images, the other the odd ones
            columns = made_up_measures(place, MEANS["plain"])
            wrong = (columns["against"] == "clean") & (columns["index"] % 2 == place)
            columns["prediction"][wrong] = (columns["label"][wrong] + 1) % 10
            add_explanation(db, sweep, model, columns)
        with pytest.raises(SpecError, match="explained on both sides and have the same labels, got none: with target"):
            compare(db, Filters(), ("left", "right"))
        for place, model in enumerate(("left", "right")):  # and both the same ones in another way
            add_explanation(db, sweep, model, made_up_measures(place, MEANS[list(MEANS)[place]]), method="lime")
    found = robustq(two_models, "results", "--explanations", "--compare", "left", "right", "--json")
    rows = {(row["method"], row["against"]): row for row in json.loads(found.output)}
    assert len(rows) == 6 and (rows["lime", "pgd"]["n"], rows["lime", "pgd"]["left_out"]) == (40, None)
    told = rows["grad-cam", "pgd"]
    assert told["n"] == 0 and "explained on both sides and have the same labels, got none" in told["left_out"]
    numbers = ("first_mean", "second_mean", "difference", "difference_low", "difference_high", "p", "p_holm")
    assert all(told[name] is None for name in numbers)
    tested = sorted(row["p"] for row in rows.values() if row["p"] is not None)
    assert len(tested) == 3 and rows["lime", "pgd"]["p_holm"] == pytest.approx(3 * tested[0])
    text = robustq(two_models, "results", "--explanations", "--compare", "left", "right").output
    assert text.count("[1]") == 4 and "[1] expected images that were explained on both sides" in text


def test_who_asks_for_explanations_of_an_attack_is_told_how(two_models: Store):
    told = robustq(two_models, "results", "--explanations", "--attack", "pgd").stderr
    assert "what was done to images is asked by --where against=pgd" in told


def test_equal_images_give_no_p_value_of_a_difference():
    values = np.array([0.1, 0.2, np.nan, 0.4])
    found = steadier(values, values)
    assert (found.n, found.difference, found.p) == (3, 0.0, 1.0)
    assert steadier(values, values + 0.1).p == pytest.approx(0.25)  # of three images that all rise
    with pytest.raises(ValueError, match="at least one image of both"):
        steadier(values, np.full(4, np.nan))


@pytest.mark.slow
def test_exports_have_the_columns_of_the_documentation(two_models: Store, tmp_path: Path):
    text = (Path(__file__).parents[3] / "docs" / "schema.md").read_text()
    for heading, types in (("One row a thing", ROW_TYPES), ("One row an image", EXAMPLE_TYPES)):
        section = text.partition(f"## {heading}")[2].partition("\n## ")[0]
        told = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", section, re.MULTILINE))
        assert told == {name: str(kind) for name, (kind, _) in types.items()}
    files = [tmp_path / name for name in ("rows.arrow", "rows.csv", "images.parquet")]
    for path in files:
        more = ["--per-example"] if path.stem == "images" else []
        assert robustq(two_models, "export", "--explanations", *more, str(path)).exit_code == 0
    with two_models.begin() as db:
        rows = explanation_rows(db)
        first = measures_of(db, rows[0]["job_id"])
    table = pa.ipc.open_file(str(files[0])).read_all()
    assert table.column("top_intersection").to_pylist() == [row["top_intersection"] for row in rows]
    assert table.column("against").to_pylist() == [row["against"] for row in rows]
    found = list(csv.DictReader(io.StringIO(files[1].read_text())))
    assert [row["kept"] for row in found] == [str(row["kept"]) for row in rows]
    images = pq.read_table(files[2]).to_pylist()
    assert len(images) == 5 * 160 and images[0]["method"] == "grad-cam"
    assert [row["ssim"] for row in images[:160]] == [None if np.isnan(v) else v for v in first["ssim"].tolist()]
    wrong = robustq(two_models, "export", "--explanations", "--partition", "model", str(tmp_path / "f"))
    assert wrong.exit_code == 2 and "--partition has no effect with --explanations" in wrong.output


def test_an_attack_is_compared_with_noise_on_each_model(two_models: Store):
    pair = ("noise", "explanation-attack")
    with two_models.begin() as db:
        rows = {(row["model"], row["method"]): row for row in compare(db, Filters(), pair)}
        jobs = [r["job_id"] for r in explanation_rows(db) if r["model"] == "robust" and r["against"] == "noise"]
        seeds = [measures_of(db, number) for number in jobs]
    assert set(rows) == {("plain", "grad-cam"), ("plain", "saliency"), ("robust", "grad-cam")}
    one, other = (np.mean([c["top_intersection"][c["against"] == name] for c in seeds], 0) for name in pair)
    expected: Any = stats.wilcoxon(other - one, zero_method="pratt")
    row = rows["robust", "grad-cam"]
    assert (row["first"], row["second"], row["against"], row["n"], row["seeds"]) == (*pair, None, 40, 2)
    assert row["p"] == pytest.approx(expected.pvalue) and row["difference"] == pytest.approx((other - one).mean())
    text = robustq(two_models, "results", "--explanations", "--compare", *pair).output
    assert "not trusted" in text and text.splitlines()[0].split()[:3] == ["first", "second", "model"]


@pytest.mark.slow
def test_an_explanation_that_failed_has_no_test_and_holm_counts_none(two_models: Store):
    """Of the three explanations one failed its checks: the correction is for two tests."""
    with two_models.begin() as db:
        found: list[Any] = list(compare(db, Filters(), ("noise", "explanation-attack")))
    rows = {(row["model"], row["method"]): row for row in found}
    failed = rows.pop(("plain", "saliency"))
    assert failed["second_verdict"] == "fail" and failed["first_mean"] > failed["second_mean"]
    assert failed["p"] is None and failed["p_holm"] is None and failed["left_out"] is None
    small, large = sorted(rows.values(), key=lambda row: row["p"])
    assert small["p_holm"] == pytest.approx(2 * small["p"])
    assert large["p_holm"] == pytest.approx(max(2 * small["p"], large["p"]))
    text = robustq(two_models, "results", "--explanations", "--compare", "noise", "explanation-attack").output
    (line,) = [line for line in text.splitlines() if "saliency" in line]
    assert "not trusted (" in line and "e-" not in line and "[1]" in line and "+" not in line


@pytest.mark.slow
def test_a_model_of_which_no_image_was_explained_says_so_in_its_lines(two_models: Store):
    """With the true class as target: a network that is never right has rows, and no image in them."""
    columns = made_up_measures(0, MEANS["plain"])
    never = columns | {"prediction": (columns["label"] + 2) % 10}
    never |= {name: np.full_like(columns[name], np.nan) for name in (*EXPLANATION_MEASURES, *EXPLANATION_SANITY)}
    with two_models.begin() as db:
        sweep = add_sweep(db, "never")
        add_explanation(db, sweep, "never", never)
        add_explanation(db, sweep, "never", columns, method="lime")
        add_explanation(db, sweep, "plain", columns, method="lime")
        rows = {(row["method"], row["against"]): row for row in compare(db, Filters(), ("plain", "never"))}
        assert set(rows) == {(method, against) for method in ("grad-cam", "lime") for against in AGAINST[1:]}
        assert rows["lime", "pgd"]["left_out"] is None and rows["grad-cam", "pgd"]["n"] == 0
        assert "expected images that were explained on both sides" in (rows["grad-cam", "pgd"]["left_out"] or "")
        done = {(row["model"], row["method"]): row for row in compare(db, Filters(), ("noise", "pgd"))}
        assert done["never", "grad-cam"]["left_out"] and done["never", "lime"]["p"] is not None
        with pytest.raises(SpecError, match="no explanation has both clean and noise"):
            compare(db, Filters(), ("clean", "noise"))


def test_compared_explanations_have_their_options(two_models: Store):
    with two_models.begin() as db:
        sweep = add_sweep(db, "steps")
        for steps in (5, 20):
            params = params_of("integrated-gradients") | {"options": {"steps": steps}}
            recipe = AttackSpec(name="explain", norm="Linf", eps=8 / 255, params=params).recipe
            for model, means in MEANS.items():
                columns = made_up_measures(steps, means)
                add_explanation(db, sweep, model, columns, method="integrated-gradients", recipe=recipe)
        rows = compare(db, Filters(), ("plain", "robust"))
    assert len({(row["recipe"], row["against"]) for row in rows}) == len(rows) == 9
    text = robustq(two_models, "results", "--explanations", "--compare", "plain", "robust").output
    assert [text.count(f"integrated-gradients(steps={steps}) ") for steps in (5, 20)] == [3, 3]


def test_the_call_from_python_has_the_same_rows(two_models: Store):
    table = explanations(two_models.url, model="pl*", method="grad-cam", against=["noise", "pgd"], where="seed=1")
    with two_models.begin() as db:
        rows = [r for r in explanation_rows(db) if (r["model"], r["method"], r["seed"]) == ("plain", "grad-cam", 1)]
    assert table.column("ssim").to_pylist() == [row["ssim"] for row in rows[1:3]]
    images = explanations(two_models.url, method="saliency", per_example=True)
    assert (len(images), images.column("method").unique().to_pylist()) == (160, ["saliency"])
    found = explanations(two_models.url, compare=("plain", "robust"))
    assert found.column("against").to_pylist() == list(AGAINST[1:])
    assert explanations(two_models.url, model="none").num_rows == 0
    with pytest.raises(SpecError, match="expected two names to compare"):
        explanations(two_models.url, compare=("plain",))


def test_one_method_with_two_options_is_two_lines(made_up: Store):
    with made_up.begin() as db:
        sweep = add_sweep(db, "s")
        for steps, kept in ((5, 0.4), (50, 0.8)):
            means = {"noise": 0.9, "pgd": 0.3, "explanation-attack": kept}
            recipe = f"integrated-gradients(baseline=0.0, steps={steps}) under noise; share=0.1"
            given: dict[str, Any] = {"method": "integrated-gradients"}
            number = add_explanation(db, sweep, "m", made_up_measures(0, means), **given)
            db.execute(sa.update(job).where(job.c.id == number).values(recipe=recipe))
        lines = pivot(explanation_rows(db))
    assert [(line["method"], round(line["explanation-attack Linf 8/255"], 1)) for line in lines] == [
        ("integrated-gradients(baseline=0.0, steps=5)", 0.4),
        ("integrated-gradients(baseline=0.0, steps=50)", 0.8),
    ]
