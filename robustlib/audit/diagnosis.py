"""The diagnosis of an inflated number: its causes, from what the checks found and which attacks succeeded."""

from collections.abc import Mapping, Sequence

from robustlib.audit.session import Trial
from robustlib.checks.thresholds import FAIL, PASS, CheckResult


def name_cause(results: Sequence[CheckResult], trials: Sequence[Trial], traits: Mapping[str, bool]) -> str | None:
    """The cause, the most certain first; None where nothing failed.

    traits: labels_only (answers are one-hot), only_answers (a callable or a server gives them), margin_gradient (the
    margin of the answers has a gradient that is not zero), finer (in float64 there is one).
    """
    by = {result.name: result for result in results}

    def bad(name: str, least: str = FAIL) -> bool:
        result = by.get(name)
        return result is not None and (result.verdict == FAIL or (least != FAIL and result.verdict != PASS))

    failed = [result for result in results if result.verdict == FAIL]
    if not failed:
        return None
    for check, cause in (
        ("chance", "untrained"),
        ("eval-mode", "training-mode"),
        ("test-time", "test-time"),  # before what it looks like: chance, or the other images of a batch
        ("randomness", "randomness"),
        ("batch-independence", "batch-dependence"),
    ):
        if bad(check):
            return cause
    if bad("gradient"):
        behind = "only-answers" if traits["only_answers"] else "missing-gradient"
        return "labels-only" if traits["labels_only"] else behind
    if bad("logits"):
        return "labels-only" if traits["labels_only"] else "probabilities"
    if bad("zero-gradient"):
        return "saturation" if traits["margin_gradient"] or traits["finer"] else "non-differentiable"
    if bad("backward-pass", "warn"):
        return "wrong-gradient"
    return "shattered-gradient" if shattered(by, trials) else "weak-attack"


def shattered(by: Mapping[str, CheckResult], trials: Sequence[Trial]) -> bool:
    """Whether the gradients mislead: they do not promise what comes, or what worked did without them."""
    if any(name in by and by[name].verdict != PASS for name in ("slope", "loss-landscape")):
        return True
    broke = {trial.remedy: trial.broke for trial in trials}
    without = sum(n for remedy, n in broke.items() if remedy not in ("standard", "margin", "naive"))
    return without > sum(broke.get(remedy, 0) for remedy in ("standard", "margin"))
