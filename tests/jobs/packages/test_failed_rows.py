"""Which failed evaluations a package has to be asked for in spite of: those that a number of its card rests on."""

from typing import Any

import pytest

from robustq.jobs.packages.card import Evaluation, Share
from robustq.jobs.packages.stored_numbers import Stored


def stored_row(job: int, attack: str, robust: float, verdict: str | None, **more: Any) -> Evaluation:
    named = {"kind": "attack", "norm": "Linf", "eps": 0.05, "seed": 0, "checks": [], "job": job, "attack": attack}
    n = more.pop("n", 100)
    share = Share(n=n, accuracy=robust, low=0.0, high=1.0)
    return Evaluation.model_construct(**named | {"robust": share, "verdict": verdict} | more)


@pytest.mark.parametrize(
    ("trusted", "asks"),
    [
        (stored_row(2, "square", 0.3, "pass"), False),
        (stored_row(2, "square", 0.4, "warn"), False),
        (stored_row(2, "square", 0.41, "pass"), True),  # more is left: the failed number would be the card's
        (stored_row(2, "square", 0.3, "fail"), True),
        (stored_row(2, "square", 0.3, None), True),
        (stored_row(2, "square", 0.3, "pass", n=99), True),
        (stored_row(2, "square", 0.3, "pass", eps=0.1), True),
        (stored_row(2, "square", 0.3, "pass", seed=1), True),
        (stored_row(2, "certify", 0.3, "pass", kind="certificate"), True),
    ],
)
def test_a_failed_attack_below_which_a_trusted_one_lies_asks_nothing(trusted: Evaluation, asks: bool):
    """The model's number at the radius is then the trusted one's, and rests on nothing that failed."""
    failed = stored_row(1, "fgsm", 0.4, "fail")
    assert [line[:5] for line in Stored([failed, trusted]).failed if line.startswith("job 1")] == ["job 1"] * asks
    assert [line[:5] for line in Stored([failed, trusted], primary=failed).failed][:1] == ["job 1"]  # attacked again


def test_a_failed_audit_and_a_failed_clean_evaluation_always_ask():
    beside = stored_row(3, "pgd", 0.0, "pass")
    for kind, attack in (("audit", "audit"), ("clean", "clean"), ("certificate", "certify")):
        bad = stored_row(1, attack, 0.4, "fail", kind=kind, eps=None if kind == "clean" else 0.05)
        assert len(Stored([bad, beside]).failed) == 1
