"""Why a model is not to be trusted at a radius: what its own audits found, and no others; and how p is told."""

from typing import Any

import pytest

from robustq.jobs.report.page.ranking import standings
from robustq.jobs.report.page.sentences import p_sign


def test_a_small_p_value_is_said_to_be_smaller_and_not_to_be_below():
    assert [p_sign(p) for p in (0.23, 0.0499, 7.6e-5, 0.0)] == ["= 0.23", "= 0.0499", "< 0.0001", "< 0.0001"]


def row(attack: str, eps: float, robust: float, verdict: str | None, seed: int = 0, **more: Any) -> Any:
    accuracies = {f"{name}_accuracy{end}": 1.0 for name in ("clean", "robust") for end in ("", "_low", "_high")}
    return accuracies | {
        "model": "m", "name": "m", "label": attack, "attack": attack, "norm": "Linf", "eps": eps, "seed": seed, "n": 100,
        "robust_accuracy": robust, "verdict": verdict, "job_id": 1, "extra": {},
    } | more  # fmt: skip


def audit(eps: float, robust: float, verdict: str, cause: str, seed: int = 0) -> Any:
    return row("audit", eps, robust, verdict, seed, extra={"audit": {"verdict": verdict, "cause": cause}}, job_id=9)


def causes(*rows: Any) -> dict[float, str]:
    return {s.eps: s.cause for s in standings(rows, [])}


def test_a_failed_audit_is_the_cause_where_it_takes_the_trust():
    """As in v_results: not from a larger radius at which the number is hardly above what it found."""
    rows = [row("pgd", eps, robust, "fail") for eps, robust in ((0.05, 0.3), (0.2, 0.21), (0.3, 0.9))]
    failed = [audit(0.1, 0.2, "fail", "masked-gradients"), audit(0.25, 0.25, "fail", "test-time")]
    found = causes(*rows, *failed)
    assert found[0.05] == "audit: masked-gradients; audit: test-time"
    assert found[0.2] == "audit: test-time"  # 0.21 at 0.2 is no more than 0.2 at 0.1 with what chance adds
    assert found[0.3] == "audit: masked-gradients; audit: test-time"


def test_an_audit_of_another_seed_is_no_cause():
    rows = [row("pgd", 0.1, 0.3, "fail", 0), row("pgd", 0.1, 0.3, "pass", 1)]
    found = causes(*rows, audit(0.2, 0.1, "fail", "test-time", 2))
    assert found[0.1] == "an audit of this model and data found more than these attacks did"


@pytest.mark.parametrize(("eps", "cause"), [(0.1, "audit: weak-attack"), (0.2, "audit: steps")])
def test_a_warning_is_that_of_the_audit_at_its_radius(eps: float, cause: str):
    rows = [
        row("worst-case", eps, 0.2, "warn"),
        audit(0.1, 0.3, "warn", "weak-attack"),
        audit(0.2, 0.3, "warn", "steps"),
    ]
    assert causes(*rows)[eps] == cause
