"""The diagnosis of an inflated number: its causes, from what the checks found and which attacks succeeded."""

from collections.abc import Mapping, Sequence

from robustlib.audit.session import Trial
from robustlib.checks.thresholds import FAIL, PASS, Finding


def name_cause(findings: Sequence[Finding], trials: Sequence[Trial], traits: Mapping[str, bool]) -> str | None:
    """The cause, the most certain first; None where nothing failed.

    traits: labels_only (answers are one-hot), only_answers (a callable or a server gives them), margin_gradient (the
    margin of the answers has a gradient that is not zero), finer (in float64 there is one).
    """
    by = {finding.name: finding for finding in findings}

    def bad(name: str, least: str = FAIL) -> bool:
        finding = by.get(name)
        return finding is not None and (finding.verdict == FAIL or (least != FAIL and finding.verdict != PASS))

    withholding = [finding for finding in findings if finding.verdict == FAIL]
    if not withholding:
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


def shattered(by: Mapping[str, Finding], trials: Sequence[Trial]) -> bool:
    """Whether the gradients mislead: they do not promise what comes, or what worked did without them."""
    if any(name in by and by[name].verdict != PASS for name in ("slope", "loss-landscape")):
        return True
    broke = {trial.remedy: trial.broke for trial in trials}
    without = sum(n for remedy, n in broke.items() if remedy not in ("standard", "margin", "naive"))
    return without > sum(broke.get(remedy, 0) for remedy in ("standard", "margin"))
