"""An audit's result as a page of text."""

from collections.abc import Sequence

from robustlib.audit.explanations import CAUSES, REMEDIES
from robustlib.metrics import wilson
from robustlib.number_text import counted, distinct
from robustq.jobs.reasons.reasons import limit_of
from robustq.jobs.results.audits import AuditFound, Trial, audit_headline
from robustq.jobs.results.columns import Check
from robustq.jobs.text.numbers import eps_text


def audit_page(found: AuditFound) -> str:
    """One page: what was claimed, what was tried, what breaks it, what to mend in the evaluation."""
    n, norm, eps = found["n"], found["norm"], eps_text(found["eps"])
    head = f"Audit of {found['model']}: {norm}, eps {eps}, {counted(n, 'image')}"
    parts = [head, "=" * len(head), "", audit_headline(found), "", "What was claimed"]
    parts.append(f"  Clean accuracy {share_text(found['clean_accuracy'], n)}.")
    naive = f"finds robust accuracy {share_text(found['naive_robust_accuracy'], n)}"
    if not any(trial["remedy"] == "naive" for trial in found["tried"]):
        naive = "finds no gradient, and no adversarial example"
    parts.append(f"  A naive evaluation (PGD, cross-entropy) {naive}.")
    parts += ["", "What was tried, each on the images that the ones before left robust"]
    parts += [f"  {line}" for line in trial_lines(found["tried"])]
    if found["left_out"]:
        parts += ["", "What was left out", *[f"  {left['attack']}: {left['why']}." for left in found["left_out"]]]
    parts += ["", "What breaks it"]
    parts.append(f"  The lowest of all: robust accuracy {share_text(found['adaptive_robust_accuracy'], n)}.")
    if found["cause"] is not None:
        why, mend = CAUSES[found["cause"]]
        parts += [f"  Cause: {found['cause']}. {why}", "", "What to mend", f"  {mend}"]
    bad = [check for check in found["checks"] if check["verdict"] != "pass"]
    parts += ["", f"Checks: {len(found['checks'])}, of which {len(bad)} did not pass"]
    for check in bad:
        parts.append(f"  {check['verdict']:4}  {check['name']}{beside_limit(check)}: {check['note']}")
        if check["examples"]:
            parts.append(f"        images {', '.join(map(str, check['examples'][:10]))}")
    return "\n".join(parts)


def beside_limit(check: Check) -> str:
    """A check's value and the limit that it is beyond, where it has a value."""
    limit = limit_of(check)
    if check["value"] is None or limit is None:
        return ""
    value, most = distinct((check["value"], limit))
    return f" {value} (at most {most})"


def share_text(accuracy: float, n: int) -> str:
    low, high = wilson(accuracy * n, n)
    return f"{100 * accuracy:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def trial_lines(trials: Sequence[Trial]) -> list[str]:
    width = max((len(trial["attack"]) for trial in trials), default=0)
    return [
        f"{trial['attack']:{width}}  broke {trial['broke']} of {trial['attacked']}, leaving "
        f"{100 * trial['robust_accuracy']:.1f} %"
        + (f"  ({REMEDIES[trial['remedy']]})" if trial["broke"] and trial["remedy"] in REMEDIES else "")
        for trial in trials
    ]
