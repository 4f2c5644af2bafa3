"""What changed between two stores: by the paired outcomes where there are any, else by the rows' own intervals."""

import numpy as np
import pytest
from click.testing import CliRunner

from robustlib.metrics import summarise
from robustq.cli import main
from robustq.jobs.results.filters import Filters, make_filters
from robustq.jobs.statistics.significance import mcnemar_exact, score_interval
from robustq.jobs.store.connection import open_store
from robustq.jobs.verification.diff import Side, changes_text, diff, of_version
from tests.helpers.fake_results import add_result, add_sweep, outcome

N = 400


def flipped(columns, which):
    """The outcome with these examples standing instead of fallen, or fallen instead of standing."""
    success = columns["success"].copy()
    success[which] = ~success[which]
    return columns | {
        "success": success,
        "adversarial_correct": 1 - success.astype(np.float32),
        "adversarial_survived": ~success,
        "distance": np.where(success, np.nan_to_num(columns["distance"], nan=0.05), np.nan).astype(np.float32),
        "broken_by": np.where(success, np.where(columns["broken_by"] == "clean", "clean", "pgd"), ""),
    }


@pytest.fixture
def stores(tmp_path):
    opened = [open_store(str(tmp_path / f"{name}.db"), create=True, write=True) for name in ("old", "new")]
    yield opened
    for store in opened:
        store.engine.dispose()


def changes(stores, filters=None):
    filters = filters or Filters()
    with stores[0].begin() as old, stores[1].begin() as new:
        return {(row["model"], row["eps"]): row for row in diff(Side(old, filters), Side(new, filters))}


def put(stores, model, before, after, **values):
    for store, columns in zip(stores, (before, after), strict=True):
        if columns is not None:
            with store.begin() as db:
                add_result(db, add_sweep(db, "s"), model, "pgd", columns=columns, **values)


def test_each_row_is_judged_by_its_paired_interval(stores):
    base = outcome(1, n=N)
    standing = np.flatnonzero(~base["success"])
    put(stores, "same", base, base)
    put(stores, "few", base, flipped(base, standing[:3]))
    put(stores, "many", base, flipped(base, standing[:8]))
    put(stores, "gone", base, None)
    put(stores, "fresh", None, base)
    found = changes(stores)
    assert {model: row["change"] for (model, _), row in found.items()} == {
        "same": "same", "few": "within", "many": "changed", "gone": "only old", "fresh": "only new",
    }  # fmt: skip
    many = found["many", 8 / 255]
    assert many["difference"] == pytest.approx(-8 / N)
    assert (many["difference_low"], many["difference_high"]) == pytest.approx(score_interval(8, 0, N))
    assert many["p_exact"] == pytest.approx(mcnemar_exact(8, 0))
    # Unpaired, eight of 400 examples are well within the rows' own intervals.
    assert many["new_robust_accuracy"] is not None and many["old_robust_accuracy"] is not None
    assert many["new_robust_accuracy"] > many["old_robust_accuracy"] - 0.05
    assert next(iter(found))[0] == "many" and list(found)[-1][0] == "same"
    assert changes_text(list(found.values())) == (
        "1 changed beyond its interval, 1 differs within it, 1 is the same, 1 is only in the old, 1 is only in the new"
    )


def test_other_outcomes_behind_the_same_numbers_are_no_same(stores):
    base = outcome(1, n=N)
    one, other = np.flatnonzero(~base["success"])[:1], np.flatnonzero(base["broken_by"] == "pgd")[:1]
    put(stores, "swapped", base, flipped(base, np.concatenate([one, other])), distance_median=0.0, distance_mean=0.0)
    put(stores, "stored otherwise", base, base)
    found = changes(stores)
    assert found["swapped", 8 / 255]["change"] == "within"
    assert found["swapped", 8 / 255]["difference"] == 0


def test_without_outcomes_the_rows_own_intervals_must_not_meet(stores):
    base = outcome(1, n=N)
    standing = np.flatnonzero(~base["success"])
    put(stores, "some", base, flipped(base, standing[:8]), outcomes=False)
    put(stores, "most", base, flipped(base, standing[:100]), outcomes=False)
    put(stores, "same", base, base, outcomes=False)
    assert {m: row["change"] for (m, _), row in changes(stores).items()} == {
        "some": "within", "most": "changed", "same": "same",
    }  # fmt: skip
    one, other = summarise(base), summarise(flipped(base, standing[:100]))
    assert other["robust_accuracy_high"] < one["robust_accuracy_low"]


def test_other_images_under_the_same_name_are_not_paired(stores):
    base = outcome(1, n=N)
    moved = flipped(base, np.flatnonzero(~base["success"])[:8]) | {"label": (base["label"] + 1) % 10}
    put(stores, "m", base, moved)
    (row,) = changes(stores).values()
    assert (row["change"], row["p_exact"]) == ("within", None)


@pytest.mark.parametrize(("eps", "change"), [(None, "changed"), (8 / 255, "within")])
def test_distances_count_where_there_is_no_radius(stores, eps, change):
    base = outcome(1, n=N)
    farther = base | {"distance": (base["distance"] * 1.01).astype(np.float32)}
    put(stores, "m", base, farther, eps=eps)
    put(stores, "hair", base, base | {"distance": (base["distance"] * 1.0001).astype(np.float32)}, eps=eps)
    assert {m: row["change"] for (m, _), row in changes(stores).items()} == {"m": change, "hair": "within"}


def test_a_clean_accuracy_that_fell_counts_too(stores):
    base = outcome(1, n=N)
    worse = base | {"clean_correct": np.where(np.arange(N) < 20, 0, base["clean_correct"]).astype(np.float32)}
    put(stores, "m", base, worse)
    (row,) = changes(stores).values()
    assert (row["change"], row["difference"]) == ("changed", 0)


def test_two_versions_in_one_store_and_the_latest_of_equal_rows(stores):
    base = outcome(1, n=N)
    store, filters = stores[0], make_filters(None, {"model": "m"})
    with store.begin() as db:
        sweep_id = add_sweep(db, "s")
        for kernel, columns in (("3", outcome(2, n=N)), ("3", base), ("4", base)):
            add_result(db, sweep_id, "m", "pgd", columns=columns, versions={"kernel": kernel})
        add_result(db, sweep_id, "other", "pgd", versions={"kernel": "4"})
        sides = [Side(db, of_version(filters, "kernel", kernel)) for kernel in ("3", "4")]
        (row,) = diff(*sides)
        assert (row["change"], row["old_job_id"], row["new_job_id"]) == ("same", 2, 3)
        assert diff(*(Side(db, of_version(filters, "kernel", kernel)) for kernel in ("7", "8"))) == []
    none = CliRunner().invoke(main, ["--store", store.url, "diff", "--versions", "kernel", "7", "8"])
    assert (none.exit_code, "neither side has a result that the options leave" in none.stderr) == (2, True)
