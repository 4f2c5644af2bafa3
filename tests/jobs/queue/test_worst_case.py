"""The worst case: an example stands at a radius only where every evaluation that bears on it left it standing."""

import numpy as np
import sqlalchemy as sa

from robustlib import VERSION
from robustlib.metrics import summarise
from robustq.jobs.queue import driver_jobs, drivers
from robustq.jobs.queue.worst_case import worst_case
from robustq.jobs.specs import WorstSpec
from robustq.jobs.store import example_outcomes
from robustq.jobs.store.schema import job, job_dep, result
from tests.helpers.fake_results import add_result, add_sweep, outcome

NAN = np.nan


def table(success, distance, broken_by, label=(0, 0, 0, 0)):
    """Four examples, of which the last is misclassified as it is."""
    success = np.array(success)
    clean_correct = np.array([1, 1, 1, 0], np.float32)
    return example_outcomes.to_table(
        {
            "index": np.arange(4),
            "label": np.array(label),
            "clean_prediction": np.array([0, 0, 0, 5]),
            "adversarial_prediction": np.where(success, [1, 2, 3, 5], 0),
            "success": success,
            "distance": np.array(distance, np.float32),
            "broken_by": np.array(broken_by),
            "clean_correct": clean_correct,
            "adversarial_correct": np.where(success, 0, 1).astype(np.float32),
            "adversarial_survived": ~success,
            "queries": np.full(4, -1),
        }
    )


FGSM = table([True, False, False, True], [0.1, NAN, NAN, 0], ["fgsm", "", "", "clean"])
PGD = table([True, True, False, True], [0.1, 0.1, NAN, 0], ["pgd", "pgd", "", "clean"])
NEAREST = table([True, True, True, True], [0.05, 0.3, 0.02, 0], ["deepfool", "deepfool", "deepfool", "clean"])


def test_any_attack_that_breaks_an_example_counts():
    columns = worst_case([FGSM, PGD], 0.1)
    assert columns["success"].tolist() == [True, True, False, True]
    assert columns["broken_by"].tolist() == ["fgsm", "pgd", "", "clean"]  # the first of equals
    assert summarise(columns)["robust_accuracy"] == 0.25
    assert summarise(columns)["clean_accuracy"] == 0.75


def test_a_minimum_norm_attack_counts_where_it_came_within_the_radius():
    columns = worst_case([FGSM, PGD, NEAREST], 0.1)
    assert columns["broken_by"].tolist() == ["fgsm", "pgd", "deepfool", "clean"]
    far = worst_case([NEAREST], 0.1)
    assert far["success"].tolist() == [True, False, True, True]
    assert far["adversarial_prediction"].tolist() == [1, 0, 3, 5]
    np.testing.assert_array_equal(far["distance"], np.array([0.05, NAN, 0.02, 0], np.float32))
    # At radius 0 all that is wrong is what is wrong without an attack.
    assert summarise(worst_case([FGSM, PGD, NEAREST], 0.0))["robust_accuracy"] == 0.75


def test_distances_are_those_of_images_that_needed_an_attack():
    row = summarise(worst_case([NEAREST], 1.0))
    assert row["distance_median"] == np.float32(0.05)


def test_other_examples_are_refused():
    shifted = example_outcomes.to_columns(PGD) | {"index": np.arange(1, 5)}
    try:
        worst_case([FGSM, example_outcomes.to_table(shifted)], 0.1)
    except ValueError as error:
        assert str(error) == "expected evaluations of the same examples"
    else:
        raise AssertionError("evaluations of different examples were merged")


def test_blobs_come_back_as_they_went():
    again = example_outcomes.decode(example_outcomes.encode(PGD))
    assert again.equals(PGD)
    columns = example_outcomes.to_columns(again)
    assert columns["broken_by"].tolist() == ["pgd", "pgd", "", "clean"]
    assert again.column("broken_by").to_pylist() == ["pgd", "pgd", None, "clean"]
    assert again.column("distance").null_count == 1
    assert example_outcomes.to_table(columns).equals(PGD)


def test_a_worst_case_names_all_that_its_parts_were_made_with(made_up):
    """Of parts that ran on two machines, under two versions of torch."""
    parts = [
        {"device": "cpu: one", "versions": {"torch": "2.14", "kernel": "6", "robustq": "0"}},
        {"device": "cpu: two", "versions": {"torch": "2.15", "kernel": "6", "robustq": "0"}},
        {"device": "cpu: one", "versions": {"torch": "2.14", "kernel": "6", "robustq": "0"}},
    ]
    with made_up.begin() as db:
        sweep_id = add_sweep(db, "s")
        columns = outcome(0) | {"queries": np.full(len(outcome(0)["index"]), 7)}
        evals = [add_result(db, sweep_id, "a", "pgd", 0.1, columns=columns, **made) for made in parts]
        keys = [db.execute(sa.select(job.c.key).where(job.c.id == id_)).scalar_one() for id_ in evals]
        spec = WorstSpec(evals=tuple(sorted(keys)), norm="Linf", eps=0.1)
        values = {"kind": "worst", "spec": spec.model_dump(mode="json"), "key": spec.key(), "bundle_key": "w"}
        values |= {"attack": "worst-case", "norm": "Linf", "eps": 0.1, "seed": 0, "state": "queued", "created_at": 0.0}
        (id_,) = db.execute(sa.insert(job).values(**values).returning(job.c.id)).scalars()
        db.execute(sa.insert(job_dep), [{"job_id": id_, "needs_id": needs} for needs in evals])
        drivers.register(db, "one", "here", 1, 0.0, "0")
        driver_jobs.settle_all(db, "one", None)
        row = db.execute(sa.select(result).where(result.c.job_id == id_)).one()
    assert set(row.device.split("; ")) == {"cpu: one", "cpu: two"}
    assert set(row.versions["torch"].split("; ")) == {"2.14", "2.15"}
    assert (row.versions["kernel"], row.versions["robustq"]) == ("6", VERSION)
    assert row.queries is row.queries_most is None  # of which the parts have theirs
