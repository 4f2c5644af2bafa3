"""Questions to the results, against slow obvious twins over the same rows."""

import statistics as python_statistics
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa
from scipy import stats

from robustlib.settings import TrainSettings
from robustq.jobs.errors import SpecError, StoreError
from robustq.jobs.results.aggregate import CONTEST, OVER_SEEDS
from robustq.jobs.results.api import results
from robustq.jobs.results.columns import RESULT_COLUMNS
from robustq.jobs.results.export import schema
from robustq.jobs.results.filters import Filters, make_filters
from robustq.jobs.results.questions import answer, make_question
from robustq.jobs.results.rows import chosen_rows, result_rows
from robustq.jobs.specs import AttackSpec, ModelSpec, SurrogateSpec
from robustq.jobs.store.connection import open_store
from robustq.jobs.store.schema import sweep, sweep_job
from robustq.jobs.store.sweeps import find_sweep
from tests.helpers.fake_results import MODELS, add_result, add_sweep, fill, of_attack, outcome

sqlite = pytest.mark.parametrize("asked_store", ["sqlite"], indirect=True)


LEFT_OUT = "20 results of earlier versions of a study are left out"


@sqlite
def test_groups_are_means_over_seeds(asked_store):
    told = []
    with asked_store.begin() as db:
        rows = [*result_rows(db, find_sweep(db, "demo")), *result_rows(db, find_sweep(db, "other"))]
        found = answer(db, make_question(Filters(), group="model,attack,eps"), told.append)
    assert told == [LEFT_OUT]
    assert len(found) == 21
    for group in found:
        mine = [r for r in rows if all(r[name] == group[name] for name in ("model", "attack", "eps"))]
        values = [row["robust_accuracy"] for row in mine]
        assert (group["seeds"], group["rows"]) == (len(mine), len(mine))
        assert group["robust_accuracy"] == pytest.approx(python_statistics.mean(values))
        if len(mine) == 1:
            assert group["robust_accuracy_se"] is group["robust_accuracy_low"] is None
            continue
        assert group["robust_accuracy_se"] == pytest.approx(stats.sem(values))
        wanted = [np.mean(values)] * 2
        if stats.sem(values) > 0:
            ends = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
            wanted = np.clip(ends, 0, 1)
        assert (group["robust_accuracy_low"], group["robust_accuracy_high"]) == pytest.approx(wanted)
        assert group["clean_accuracy_se"] == pytest.approx(stats.sem([row["clean_accuracy"] for row in mine]))


@sqlite
def test_rows_of_one_seed_count_once_and_that_is_told(asked_store):
    told = []
    with asked_store.begin() as db:
        rows = chosen_rows(db, make_filters(None, {"model": "plain", "attack": "pgd"}))
        (group,) = answer(
            db, make_question(make_filters("demo", {"model": "plain", "attack": "pgd"}), group="model"), told.append
        )
    assert (group["seeds"], group["rows"]) == (2, 4)
    by_seed = [np.mean([row["robust_accuracy"] for row in rows if row["seed"] == seed]) for seed in (1, 2)]
    assert group["robust_accuracy_se"] == pytest.approx(stats.sem(by_seed))
    assert told == ["1 group holds several rows of a seed, which were averaged: --over-seeds keeps apart what differs"]


@sqlite
def test_versions_of_a_study_are_not_averaged(asked_store):
    """Trained longer under the same name: the last version counts, which is the one that was asked for last."""
    with asked_store.begin() as db:
        short, long = (add_sweep(db, "study") for _ in range(2))
        for sweep_id, accuracy in ((short, 0.2), (long, 0.6)):
            add_result(db, sweep_id, "net", "pgd", recipe="pgd(steps=10)", clean_accuracy=accuracy)
        told = []
        (group,) = answer(db, make_question(make_filters(None, {"model": "net"}), over_seeds=True), told.append)
        assert (group["clean_accuracy"], group["seeds"], group["rows"]) == (0.6, 1, 1)
        assert told == ["1 result of earlier versions of a study is left out"]
        db.execute(sa.update(sweep).where(sweep.c.id == short).values(created_at=1.0))  # submitted again
        (group,) = answer(db, make_question(make_filters("stud*", {"model": "net"}), over_seeds=True))
        assert group["clean_accuracy"] == 0.2


@sqlite
def test_a_study_keeps_the_seeds_that_it_shares(asked_store):
    """One of three seeds is also in a later study: means of the first have three, wherever they are asked for."""
    with asked_store.begin() as db:
        first, later = add_sweep(db, "first"), add_sweep(db, "later")
        ids = [add_result(db, first, "net", "pgd", seed=seed, robust_accuracy=seed / 10) for seed in (0, 1, 2)]
        db.execute(sa.insert(sweep_job).values(sweep_id=later, job_id=ids[2], model="net"))
        asked = make_filters(None, {"model": "net"})
        groups = {row["sweep"]: row for row in answer(db, make_question(asked, over_seeds=True))}
        assert {name: (row["seeds"], row["robust_accuracy"]) for name, row in groups.items()} == {
            "first": (3, pytest.approx(0.1)), "later": (1, 0.2),
        }  # fmt: skip
        lines = {line["sweep"]: line["pgd Linf 8/255"] for line in answer(db, make_question(asked, pivot=True))}
        assert lines == {"first": pytest.approx(0.1), "later": 0.2}
        told = []
        (group,) = answer(db, make_question(asked, group="model"), told.append)
        assert (group["seeds"], group["rows"]) == (3, 3)  # a job counts once
        assert told == []


@sqlite
def test_over_seeds_keeps_apart_all_but_seeds(asked_store):
    with asked_store.begin() as db:
        rows = result_rows(db)
        found = answer(db, make_question(Filters("demo"), over_seeds=True))
    assert {tuple(group[name] for name in OVER_SEEDS) for group in found} == {
        tuple(row[name] for name in OVER_SEEDS) for row in rows if row["seed"] in (1, 2)
    }
    assert {group["seeds"] for group in found} == {2}


@sqlite
def test_a_pivot_has_the_mean_of_each_model_under_each_attack(asked_store):
    with asked_store.begin() as db:
        rows = chosen_rows(db, Filters("demo"))
        found = answer(db, make_question(Filters("demo"), pivot=True))
    assert [line["model"] for line in found] == list(MODELS)
    assert list(found[0]) == ["model", "pgd Linf 8/255", "pgd Linf 0.5", "apgd-ce Linf 8/255", "deepfool Linf"]
    for line in found:
        mine = [
            r["robust_accuracy"] for r in rows if (r["model"], r["attack"], r["eps"]) == (line["model"], "pgd", 0.5)
        ]
        assert line["pgd Linf 0.5"] == pytest.approx(np.mean(mine))


SOURCES = [
    SurrogateSpec(model=ModelSpec(arch=arch), settings=TrainSettings(objective=objective))
    for arch, objective in (("convnet3", "pgd"), ("lenet5", "standard"))
]


def attack(name: str, params: dict[str, Any], **given: Any) -> AttackSpec:
    return AttackSpec(name=name, norm="Linf", eps=8 / 255, params=params, **given)


@sqlite
def test_no_cell_averages_two_recipes(asked_store):
    """Of one seed, radius and model: PGD of 10 steps and of 100, and images from two networks."""
    with asked_store.begin() as db:
        sweep_id = find_sweep(db, "demo")
        assert sweep_id is not None
        asked = make_filters("demo", {"model": "lone"})
        for spec, accuracy in (
            (attack("pgd", {"loss": "ce", "steps": 10}), 0.5),
            (attack("pgd", {"loss": "ce", "steps": 100}, curve=(0.01, 8 / 255)), 0.3),
            (attack("transfer", {"steps": 10}, surrogate=SOURCES[0]), 0.6),
            (attack("transfer", {"steps": 10}, surrogate=SOURCES[1]), 0.8),
            (attack("fgsm", {"loss": "ce"}), 0.9),
        ):
            add_result(db, sweep_id, "lone", spec.name, robust_accuracy=accuracy, **of_attack(spec))
        told = []
        (line,) = answer(db, make_question(asked, pivot=True), told.append)
        best = answer(db, make_question(asked, best="robust_accuracy"))
        groups = answer(db, make_question(asked, best="robust_accuracy", over_seeds=True))
    assert line == {
        "model": "lone",
        "pgd steps=10 Linf 8/255": 0.5,
        "pgd steps=100 Linf 8/255": 0.3,
        f"transfer from {SOURCES[0].words} Linf 8/255": 0.6,
        f"transfer from {SOURCES[1].words} Linf 8/255": 0.8,
        "fgsm Linf 8/255": 0.9,
    }
    assert told == []
    for rows in (best, groups):
        assert sorted(row["robust_accuracy"] for row in rows) == [0.3, 0.5, 0.6, 0.8, 0.9]  # weak PGD wins no contest


@pytest.mark.slow
@sqlite
def test_the_best_of_each_contest(asked_store):
    with asked_store.begin() as db:
        rows = result_rows(db)
        found = answer(db, make_question(Filters(), best="robust_accuracy"))
        quickest = answer(db, make_question(make_filters(None, {"attack": "pgd"}), best="seconds"))
        over = answer(db, make_question(Filters("demo"), group="model,attack"))
        groups = answer(db, make_question(Filters("demo"), group="model,attack", best="robust_accuracy"))
    contests = {tuple(row[name] for name in CONTEST) for row in rows}
    assert len(contests) == 5
    for contest in contests:
        mine = [row for row in rows if tuple(row[name] for name in CONTEST) == contest]
        top = max(row["robust_accuracy"] for row in mine)
        wanted = [row["job_id"] for row in mine if row["robust_accuracy"] == top]
        assert [row["job_id"] for row in found if tuple(row[name] for name in CONTEST) == contest] == wanted
    assert [row["seconds"] for row in quickest] == [1.5, 4.5]  # the first of each radius
    assert {group["attack"] for group in groups} == {"apgd-ce", "deepfool", "pgd"}
    means = {(g["model"], g["attack"]): g["robust_accuracy"] for g in over}
    wanted = [place for place, mean in means.items() if mean == max(m for (_, a), m in means.items() if a == place[1])]
    assert {(group["model"], group["attack"]) for group in groups} == set(wanted) and len(wanted) < 15


@sqlite
def test_a_name_that_no_result_has_is_told(asked_store):
    told = []
    with asked_store.begin() as db:
        assert (
            answer(
                db, make_question(make_filters("demo", {"model": ["nosuch", "none*"], "attack": "pgd"})), told.append
            )
            == []
        )
        assert told == [f"no result has model nosuch or none*, there are: {', '.join(sorted(MODELS))}"]
        assert answer(db, make_question(make_filters(None, {"norm": "linf"}), pivot=True), told.append) == []
        assert told[1] == "no result has norm linf, there are: Linf: did you mean 'Linf'?"
        assert (
            answer(db, make_question(make_filters(None, {"model": "plain"}, ["robust_accuracy>2"])), told.append) == []
        )
    assert len(told) == 2  # each name is there


@sqlite
def test_sorting_by_several_columns_with_nulls_last(asked_store):
    with asked_store.begin() as db:
        for sort in (["-eps", "model"], ["eps", "-seed"], ["versions", "-robust_accuracy"]):
            found = answer(db, make_question(Filters(), sort=sort))
            nulls = [row["eps"] is None for row in found]
            if "eps" in sort[0]:
                assert nulls == sorted(nulls)
                eps = [row["eps"] for row in found if row["eps"] is not None]
                assert eps == sorted(eps, reverse=sort[0] == "-eps")
            for left, right in pairwise(found):
                if sort == ["-eps", "model"] and left["eps"] == right["eps"]:
                    assert left["model"] <= right["model"]
                if sort[1] == "-robust_accuracy" and left["versions"] == right["versions"]:
                    assert left["robust_accuracy"] >= right["robust_accuracy"]


MISTAKES = [
    ({"group": "model", "over_seeds": True}, "expected --group or --over-seeds, got both"),
    ({"group": "model", "pivot": True}, "expected one of --group"),
    ({"group": "colour"}, "there is no column 'colour'"),
    ({"sort": "-colour"}, "there is no column 'colour'"),
    ({"group": "model", "sort": "attack"}, "there is no column 'attack', expected one of: model, clean_accuracy"),
    ({"best": "model"}, "--best: expected a column of numbers such as robust_accuracy, got 'model'"),
    ({"best": "seconds", "pivot": True}, "--best chooses among rows or groups"),
    ({"compare": ["a"]}, "--compare: expected two models or two numbers of jobs, got 1"),
]


@pytest.mark.parametrize(("shape", "line"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_question_that_cannot_be_meant_is_refused(shape, line):
    with pytest.raises(SpecError, match=line):
        make_question(Filters(), **shape)


@sqlite
def test_a_comparison_pairs_the_same_examples_under_the_same_attack(asked_store):
    with asked_store.begin() as db:
        rows = {(row["model"], row["attack"], row["eps"], row["seed"]): row for row in result_rows(db)}
        found = answer(db, make_question(Filters(), compare=("plain", "b-pgd")))
        assert len(found) == 12
        for line in found:
            one, other = (rows[line[end], line["attack"], line["eps"], line["seed"]] for end in ("first", "second"))
            assert (line["first_job_id"], line["second_job_id"]) == (one["job_id"], other["job_id"])
            right = [1 - outcome(row["job_id"])["success"] for row in (one, other)]
            assert line["only_first"] == sum((right[0] == 1) & (right[1] == 0))
            assert line["only_second"] == sum((right[1] == 1) & (right[0] == 0))
            assert line["difference"] == pytest.approx(other["robust_accuracy"] - one["robust_accuracy"])
            wanted = stats.binomtest(line["only_first"], line["only_first"] + line["only_second"]).pvalue
            assert line["p_exact"] == pytest.approx(wanted)
        (jobs,) = answer(db, make_question(Filters(), compare=(1, 4)))
        assert (jobs["first"], jobs["second"], jobs["eps"]) == ("plain, 8/255", "plain, 0.5", None)
        with pytest.raises(SpecError, match="no result is of model 'none'"):
            answer(db, make_question(Filters(), compare=("plain", "none")))
        with pytest.raises(SpecError, match="have no attack with the same parameters and seed"):
            narrow = make_filters(None, {}, ["job_id!=61", "seed=0"])
            add_result(db, 1, "lonely", "square", 0.1)
            answer(db, make_question(narrow, compare=("plain", "lonely")))


@sqlite
def test_examples_in_common_only_and_never_other_images(asked_store):
    with asked_store.begin() as db:
        whole = outcome(3, n=40)
        part = {name: values[10:30][::-1] for name, values in outcome(4, n=40).items()}
        moved = whole | {"label": (whole["label"] + 1) % 10}
        a, b, c = (
            add_result(db, 3, name, "pgd", columns=columns)
            for name, columns in (("a", whole), ("c", part), ("d", moved))
        )
        (line,) = answer(db, make_question(Filters(), compare=(a, b)))
        assert line["n"] == 20
        assert line["first_accuracy"] == pytest.approx(1 - whole["success"][10:30].mean())
        right = 1 - whole["success"][10:30], 1 - outcome(4, n=40)["success"][10:30]
        assert line["only_first"] == sum((right[0] == 1) & (right[1] == 0))
        with pytest.raises(SpecError, match="expected evaluations of the same examples, got different ones"):
            answer(db, make_question(Filters(), compare=(a, c)))


@pytest.mark.slow
@sqlite
def test_the_python_call_gives_the_rows_as_a_table(asked_store):
    url = asked_store.url
    table = results(url)
    assert isinstance(table, pa.Table)
    assert table.schema.equals(schema(), check_metadata=True)
    with asked_store.begin() as db:
        rows = result_rows(db)
    assert table.num_rows == len(rows)
    for name in set(RESULT_COLUMNS) - {"versions", "recorded_at"}:
        assert table.column(name).to_pylist() == [row[name] for row in rows], name
    few = results(url, model="b-*", attack="pgd", eps=8 / 255, seed=[0, 1], where="robust_accuracy>=0")
    assert {(row["model"], row["seed"]) for row in few.to_pylist()} == {(m, s) for m in MODELS[1:3] for s in (0, 1)}
    groups = results(url, group=["model", "eps"], sort="-robust_accuracy")
    assert groups.column_names[:2] == ["model", "eps"] and groups.schema.field("seeds").type == pa.int64()
    values = groups.column("robust_accuracy").to_pylist()
    assert values == sorted(values, reverse=True)
    assert results(url, compare=("plain", "b-pgd")).num_rows == 12
    assert results(url, pivot=True, sweep="demo").column_names[0] == "model"
    empty = results(url, model="none")
    assert empty.num_rows == 0 and empty.schema.equals(table.schema)
    assert results(url, model="none", over_seeds=True).column_names[-1] == "verdict"
    with pytest.raises(StoreError, match="there is no store"):
        results(url + "x")


@pytest.mark.slow
def test_reading_while_a_sweep_writes_leaves_the_store_as_it_is(tmp_path):
    writer = open_store(str(tmp_path / "r.db"), create=True, write=True)
    fill(writer)
    with writer.begin() as db:
        add_result(db, 1, "late", "pgd")
        seen = results(str(tmp_path / "r.db"))  # the writer's transaction is open
        with (
            pytest.raises(StoreError, match=r"opened for reading|cannot be written"),
            open_store(str(tmp_path / "r.db")).begin() as other,
        ):
            other.execute(sa.delete(sweep_job))
    assert seen.num_rows == 61
    assert results(str(tmp_path / "r.db")).num_rows == 62
    writer.engine.dispose()
