"""Numbers in tables: each reader can tell what a number is, how sure it is, and why it is none."""

import csv
import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from scipy import stats
from statsmodels.stats.multitest import multipletests

from robustlib.checks.thresholds import LIMITS
from robustlib.metrics import wilson
from robustq import cli
from robustq.jobs.commands.audit_text import audit_page
from robustq.jobs.store import example_outcomes
from robustq.jobs.store.connection import Store
from robustq.jobs.store.schema import audit, check_result, job, job_dep, result
from robustq.jobs.verification.diff import equal
from tests.helpers.fake_results import add_result, add_sweep, outcome

EPS = 8 / 255


def printed(store: Store, *words: str) -> str:
    ran = CliRunner().invoke(cli.main, ["--store", store.url, "results", *words])
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def rows(store: Store, *words: str) -> list[dict]:
    return json.loads(printed(store, *words, "--json"))


def robust(right: int, n: int = 40) -> dict[str, np.ndarray]:
    """Outcomes in which the first images are robust, and all are classified correctly at first."""
    columns = outcome(0, n=n)
    success = np.arange(n) >= right
    return columns | {
        "success": success,
        "distance": np.where(success, 0.01 * (1 + np.arange(n) % 7), np.nan).astype(np.float32),
        "broken_by": np.where(success, "pgd", ""),
        "clean_correct": np.ones(n, np.float32),
        "adversarial_correct": (~success).astype(np.float32),
        "adversarial_survived": ~success,
    }


def add_check(db, job_id: int, name: str, value: float | None, verdict: str, note: str = "what was found") -> None:
    limit = LIMITS[name]
    threshold = limit.warn if limit.fail is None else limit.fail
    values = {"value": value, "threshold": threshold, "verdict": verdict, "note": note, "examples": []}
    db.execute(sa.insert(check_result).values(job_id=job_id, name=name, **values))


def test_plus_minus_is_named_and_the_interval_has_both_sources(made_up: Store):
    """Three seeds on 40 images, by hand; of one seed the interval is Wilson's."""
    right = (20, 24, 28)
    with made_up.begin() as db:
        sweep_id = add_sweep(db, "s")
        for seed, n in enumerate(right):
            add_result(db, sweep_id, "net", "pgd", EPS, seed, columns=robust(n))
        add_result(db, sweep_id, "one", "pgd", EPS, 0, columns=robust(30))
    found = {row["model"]: row for row in rows(made_up, "--over-seeds")}
    values = np.array(right) / 40
    net = found["net"]
    assert net["robust_accuracy_sd"] == pytest.approx(values.std(ddof=1))
    assert net["robust_accuracy_se"] == pytest.approx(stats.sem(values))
    student = stats.t.ppf(0.975, 2) * stats.sem(values)
    ends = wilson(24, 40)
    wanted = (0.6 - np.hypot(0.6 - ends[0], student), 0.6 + np.hypot(ends[1] - 0.6, student))
    assert (net["robust_accuracy_total_low"], net["robust_accuracy_total_high"]) == pytest.approx(wanted)
    one = found["one"]
    assert one["robust_accuracy_sd"] is None
    assert (one["robust_accuracy_total_low"], one["robust_accuracy_total_high"]) == pytest.approx(wilson(30, 40))
    table = printed(made_up, "--over-seeds")
    assert "60.0 ± 10.0" in table and f"[{100 * wanted[0]:.1f}, {100 * wanted[1]:.1f}]" in table
    note = "± is the standard deviation over seeds (n - 1); robust 95 % is an interval for both seeds and images"
    assert note in table.splitlines()[-1]
    for form in ("markdown", "latex"):
        assert note in printed(made_up, "--over-seeds", "--format", form).replace("\\%", "%")
    assert "±" not in printed(made_up, "--over-seeds", "--model", "one")


def test_a_median_distance_has_the_interval_of_its_order_statistics(made_up: Store):
    columns = robust(5, n=25)
    with made_up.begin() as db:
        add_result(db, add_sweep(db, "s"), "net", "deepfool", None, columns=columns)
    distances = columns["distance"][columns["success"]].astype(float)
    wanted = stats.quantile_test(distances, q=np.median(distances), p=0.5).confidence_interval(0.95)
    (row,) = rows(made_up)
    assert row["distance_median"] == np.median(distances)
    assert (row["distance_median_low"], row["distance_median_high"]) == (wanted.low, wanted.high)
    assert f"{np.median(distances):.4g} [{wanted.low:.4g}, {wanted.high:.4g}]" in printed(made_up)


def test_queries_are_stored_for_a_radius_and_for_the_search(made_up: Store):
    """Of a joint search: the attack took 30 at this radius at most, and more on the way there."""
    n = 40
    own = np.where(np.arange(n) % 4 == 0, 0, 30)
    with made_up.begin() as db:
        columns = robust(10) | {"queries": own + 25, "radius_queries": own}
        add_result(db, add_sweep(db, "s"), "net", "square", EPS, columns=columns)
        add_result(db, 1, "net", "pgd", EPS, columns=robust(12))
    found = {row["attack"]: row for row in rows(made_up)}
    assert (found["square"]["queries"], found["square"]["queries_most"]) == (int((own + 25).sum()), 30)
    assert found["pgd"]["queries"] is found["pgd"]["queries_most"] is None
    head, _, *lines = printed(made_up).splitlines()
    assert "queries" in head and "most an image" in head
    assert any(str(int((own + 25).sum())) in line and " 30 " in line for line in lines)


def test_the_most_of_an_image_is_not_known_of_a_part(made_up: Store):
    """As where an evaluation goes on after an upgrade, half of its images counted by the earlier version."""
    queries = np.full(40, 50)
    with made_up.begin() as db:
        columns = robust(10) | {"queries": queries, "radius_queries": np.where(np.arange(40) < 20, -1, 30)}
        add_result(db, add_sweep(db, "s"), "net", "square", EPS, columns=columns)
    (row,) = rows(made_up)
    assert (row["queries"], row["queries_most"]) == (2000, None)


@pytest.fixture
def reasons(made_up: Store) -> Store:
    """Rows that fail and warn for reasons of their own, of a worst case's parts and of an audit."""
    with made_up.begin() as db:
        sweep_id = add_sweep(db, "s")
        ids = [
            add_result(db, sweep_id, "net", attack, EPS, seed, columns=robust(20), verdict=verdict)
            for attack, seed, verdict in (
                ("pgd", 0, "fail"),
                ("pgd", 1, "fail"),
                ("fgsm", 0, "warn"),
                ("cw", 0, "pass"),
            )
        ]
        for id_ in ids[:2]:
            add_check(db, id_, "zero-gradient", 0.9, "fail")
        add_check(db, ids[2], "zero-gradient", 0.02, "warn")
        add_check(db, ids[2], "eight-bit", 0.50004, "warn")
        add_check(db, ids[3], "noise", 0.0, "pass")
        worst = add_result(
            db, sweep_id, "net", "worst-case", EPS, columns=robust(20), verdict="fail", kind="worst", spec={"kind": "worst"}
        )  # fmt: skip
        db.execute(sa.insert(job_dep).values(job_id=worst, needs_id=ids[0]))
        told = {"audit": {"verdict": "fail", "cause": "masked-gradients"}}
        held = add_result(db, sweep_id, "other", "pgd", EPS, columns=robust(20), verdict="pass", subject="a" * 64)
        auditing = add_result(
            db, sweep_id, "other", "audit", EPS, columns=robust(1), verdict="fail", extra=told, subject="b" * 64
        )
        add_check(db, auditing, "adaptive-gap", 0.4, "fail")
        values = {"subject": "a" * 64, "norm": "Linf", "eps": EPS, "robust_accuracy": 0.025, "verdict": "fail"}
        db.execute(sa.insert(audit).values(job_id=auditing, **values))
        assert held
    return made_up


ZERO = "zero-gradient 0.9 > 0.25"
WARNED = "eight-bit 0.50004 > 0.5; zero-gradient 0.02 > 0.01"


@pytest.mark.slow
def test_every_format_says_why_and_each_reason_once(reasons: Store):
    found = {(row["model"], row["attack"], row["seed"]): row["why"] for row in rows(reasons)}
    assert found == {
        ("net", "pgd", 0): ZERO,
        ("net", "pgd", 1): ZERO,
        ("net", "fgsm", 0): WARNED,
        ("net", "cw", 0): None,
        ("net", "worst-case", 0): ZERO,
        ("net", "worst-case", 1): ZERO,  # of one attack
        ("other", "pgd", 0): "the audit of job 7 left 2.5 %, cause masked-gradients",
        ("other", "worst-case", 0): "the audit of job 7 left 2.5 %, cause masked-gradients",
        ("other", "audit", 0): "adaptive-gap 0.4 > 0.2",
    }
    read = csv.DictReader(io.StringIO(printed(reasons, "--format", "csv")))
    assert [row["why"] for row in read] == [row["why"] or "" for row in rows(reasons)]
    for form in ("table", "markdown", "latex"):
        text = printed(reasons, "--model", "net", "--attack", "pgd", "--attack", "fgsm", "--format", form)
        plain = text.replace("\\", "").replace("&gt;", ">").replace("textgreater{}", ">")
        assert plain.count(f"[1] {ZERO}") == 1 and plain.count("[2] eight-bit 0.50004 > 0.5") == 1
        assert plain.count(ZERO) == 1 and plain.count("[3] zero-gradient 0.02 > 0.01") == 1
        assert plain.count("[1]") == 3 and plain.count("[2, 3]") == 1  # two rows and the note; one row
    groups = {row["attack"]: row["why"] for row in rows(reasons, "--over-seeds", "--model", "net", "--seed", "0")}
    assert groups == {"pgd": ZERO, "fgsm": WARNED, "cw": None, "worst-case": ZERO}
    pivot = printed(reasons, "--pivot", "--model", "net", "--attack", "pgd")
    assert pivot.splitlines()[-1] == f"[1] fail: {ZERO} (everywhere)"
    pivot = printed(reasons, "--pivot", "--model", "net", "--attack", "pgd", "--attack", "cw")
    assert pivot.splitlines()[-1] == f"[1] fail: {ZERO} (pgd Linf 8/255)"
    assert printed(reasons, "--summary").count(ZERO) == 1
    (compared,) = rows(reasons, "--compare", "1", "3")
    assert (compared["first_why"], compared["second_why"]) == (ZERO, WARNED)


def test_an_audit_that_found_no_less_is_no_reason(reasons: Store):
    """It takes no trust from a row at its radius that is hardly better, and a failed part is then the reason."""
    with reasons.begin() as db:
        values = {"subject": "a" * 64, "norm": "Linf", "eps": EPS, "robust_accuracy": 0.49, "verdict": "fail"}
        extra = {"audit": {"verdict": "fail", "cause": "other"}}
        again = add_result(db, 1, "other", "audit", EPS, 1, columns=robust(1), verdict="fail", extra=extra)
        db.execute(sa.insert(audit).values(job_id=again, **values))
        db.execute(sa.update(job).where(job.c.attack == "worst-case").values(subject="c" * 64))
        of_worst = values | {"subject": "c" * 64, "robust_accuracy": 0.5}
        last = add_result(db, 1, "net", "audit", EPS, columns=robust(1), verdict="fail", extra=extra)
        db.execute(sa.insert(audit).values(job_id=last, **of_worst))
    found = {(row["model"], row["attack"], row["seed"]): row["why"] for row in rows(reasons)}
    assert found["other", "pgd", 0] == "the audit of job 7 left 2.5 %, cause masked-gradients"
    assert found["net", "worst-case", 0] == ZERO


def test_why_is_no_condition(made_up: Store):
    ran = CliRunner().invoke(cli.main, ["--store", made_up.url, "results", "--where", "why=zero*"])
    assert (ran.exit_code, ran.stderr.count("\n")) == (2, 1) and "verdict=fail" in ran.stderr


def test_a_row_whose_checks_are_gone_says_that(made_up: Store):
    with made_up.begin() as db:
        add_result(db, add_sweep(db, "s"), "net", "pgd", EPS, verdict="fail")
    assert [row["why"] for row in rows(made_up)] == ["its checks were not kept"]


def test_an_audit_prints_values_beyond_the_limits_that_they_passed():
    """A warning stands beside the limit of warnings; a check without a value beside none."""
    check: Any = {"threshold": 0.25, "note": "n", "examples": []}
    audit: Any = (
        {
            "verdict": "fail", "cause": None, "naive_robust_accuracy": 0.5, "adaptive_robust_accuracy": 0.4998,
            "model": "m", "norm": "Linf", "eps": 0.1, "seed": 0, "n": 1000, "clean_accuracy": 0.9, "seconds": 1.0,
            "tried": [], "left_out": [], "job_id": 1,
            "checks": [
                check | {"name": "zero-gradient", "value": 0.2500001, "verdict": "fail"},
                check | {"name": "zero-gradient", "value": 0.0100001, "verdict": "warn"},
                check | {"name": "chance", "value": None, "verdict": "warn"},
            ],
        }
    )  # fmt: skip
    found = audit_page(audit)
    assert "FAIL: 50.00 % is no robust accuracy; at most 49.98 % is. Failed: zero-gradient." in found
    assert "  fail  zero-gradient 0.2500001 (at most 0.25): n" in found
    assert "  warn  zero-gradient 0.0100001 (at most 0.01): n" in found
    assert "  warn  chance: n" in found


@pytest.mark.slow
def test_comparisons_of_many_have_holms_p_beside_their_own(made_up: Store):
    with made_up.begin() as db:
        sweep_id = add_sweep(db, "s")
        for seed, (one, other) in enumerate(((30, 20), (30, 25), (30, 28), (30, 30))):
            add_result(db, sweep_id, "a", "pgd", EPS, seed, columns=robust(one))
            add_result(db, sweep_id, "b", "pgd", EPS, seed, columns=robust(other))
    found = rows(made_up, "--compare", "a", "b")
    exact = [row["p_exact"] for row in found]
    assert exact == pytest.approx([stats.binomtest(0, n).pvalue for n in (10, 5, 2)] + [1.0])
    assert [row["p_holm"] for row in found] == pytest.approx(multipletests(exact, method="holm")[1])
    assert "p holm" in printed(made_up, "--compare", "a", "b").splitlines()[0]


def test_the_worst_case_is_a_row_also_of_a_single_attack(made_up: Store, tmp_path):
    """At 0.1 one attack bears on `net`, at 0.2 two, whose worst case is a job; on `other` one attack, in all seeds."""
    with made_up.begin() as db:
        sweep_id = add_sweep(db, "s")
        small = add_result(db, sweep_id, "net", "pgd", 0.1, columns=robust(30))
        add_result(db, sweep_id, "net", "square", 0.2, columns=robust(25))
        add_result(db, sweep_id, "net", "worst-case", 0.2, columns=robust(20), kind="worst", spec={"kind": "worst"})
        for seed in (0, 1):
            add_result(db, sweep_id, "other", "pgd", 0.1, seed, columns=robust(10 + seed))
        planned = add_result(db, sweep_id, "late", "pgd", 0.1, columns=robust(8))
        waiting = add_result(db, sweep_id, "late", "fgsm", 0.1, columns=robust(8))
        db.execute(sa.delete(result).where(result.c.job_id == waiting))  # a second attack that is yet to come
        db.execute(sa.update(job).where(job.c.id == waiting).values(state="queued"))
    asked = ["--attack", "worst-case"]
    found = {(row["model"], row["eps"], row["seed"]): row for row in rows(made_up, *asked)}
    assert set(found) == {("net", 0.1, 0), ("net", 0.2, 0), ("other", 0.1, 0), ("other", 0.1, 1)}
    assert found["net", 0.1, 0]["robust_accuracy"] == 30 / 40 and found["net", 0.1, 0]["job_id"] == small
    assert found["net", 0.1, 0]["recipe"] == "worst of 1, pgd(steps=10)"
    assert found["other", 0.1, 1]["robust_accuracy"] == 11 / 40 and planned
    lines = {line["model"]: line for line in rows(made_up, "--pivot")}
    assert lines["net"]["worst-case Linf 0.1"] == 0.75 and lines["net"]["worst-case Linf 0.2"] == 0.5
    assert lines["other"]["worst-case Linf 0.1"] == pytest.approx(10.5 / 40)
    assert lines["late"]["worst-case Linf 0.1"] is None
    assert list(lines["net"]) == [
        "model", "pgd Linf 0.1", "square Linf 0.2", "worst-case Linf 0.1", "worst-case Linf 0.2",
    ]  # fmt: skip
    (group,) = rows(made_up, *asked, "--model", "other", "--over-seeds")
    assert (group["attack"], group["seeds"]) == ("worst-case", 2)
    assert len(rows(made_up, "--attack", "pgd")) == 4  # where nobody asks, and none stands beside it, there is none
    path = tmp_path / "rows.csv"
    assert CliRunner().invoke(cli.main, ["--store", made_up.url, "export", *asked, str(path)]).exit_code == 0
    assert path.read_text() == printed(made_up, *asked, "--format", "csv")


def test_outcomes_of_before_replay_without_the_queries_of_a_radius():
    """As they were stored: without the column. What both tell must still agree."""
    columns = robust(10) | {"queries": np.arange(40)}
    new = columns | {"radius_queries": np.minimum(np.arange(40), 30)}
    table = example_outcomes.to_table(new).drop_columns(["radius_queries"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    before = example_outcomes.to_columns(example_outcomes.decode(sink.getvalue().to_pybytes()))
    assert (before["radius_queries"] == -1).all() and before["queries"].tolist() == list(range(40))
    after = example_outcomes.to_columns(
        example_outcomes.decode(example_outcomes.encode(example_outcomes.to_table(new)))
    )
    assert equal(before, after) and equal(after, before)
    assert not equal(before, after | {"queries": np.arange(40) + 1})
    assert not equal(after, after | {"radius_queries": np.arange(40)})


def test_figures_have_no_form_without_a_folder(made_up: Store):
    words = ["--store", made_up.url, "report", "--sweep", "s", "--figure-format", "pdf"]
    ran = CliRunner().invoke(cli.main, words)
    assert (ran.exit_code, ran.stderr) == (2, "robustq: --figure-format has no effect without --figures FOLDER\n")
