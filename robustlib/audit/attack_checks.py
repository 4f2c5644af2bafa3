"""Checks of an audit that attack: other radii, more steps, no limit at all, other draws."""

import math
from functools import partial
from itertools import pairwise

from torch import Tensor

from robustlib.attacks.apgd import apgd
from robustlib.attacks.pgd import pgd
from robustlib.audit import attack_plan
from robustlib.audit.attack_plan import Target, attacking
from robustlib.audit.session import AttackSession
from robustlib.checks.thresholds import CheckResult, check_result
from robustlib.inference.expectation import Expectation
from robustlib.metrics import wilson
from robustlib.number_text import counted, fractions
from robustlib.outcome import score

FEW = 50  # images on which a plateau is looked for: it costs forty passes a step


def other_radii(target: Target, session: AttackSession, naive: Tensor) -> CheckResult:
    """The naive attack at half and at twice the radius: a sound one succeeds no less as the radius grows."""
    accuracies = []
    for factor in (0.5, 1.0, 2.0):
        share = naive
        if factor != 1.0:
            run_attack = attack_plan.naive_attack(target, session.norm, session.eps * factor)
            share = session.share(run_attack(session.x, session.y, session.draws), session.y)
        accuracies.append(share.mean().item())
    rises = [after - before - session.chance(naive) for before, after in pairwise(accuracies)]
    words = ", ".join(fractions(accuracies))
    return check_result("accuracy-rises-with-eps", max(0.0, *rises), f"at half, once and twice the radius: {words}")


def convergence(target: Target, session: AttackSession, naive: Tensor) -> CheckResult:
    """Twice the steps of the naive attack on the images that it left robust."""
    rows = (naive > 0.5).nonzero().flatten()
    if len(rows) == 0:
        return check_result("convergence", None, "no image is robust")
    run_attack = attack_plan.naive_attack(target, session.norm, session.eps, steps=2 * attack_plan.STEPS)
    found = run_attack(session.x[rows], session.y[rows], session.draws[rows])
    broken = session.share(found, session.y[rows]) <= 0.5
    return check_result("convergence", broken.sum().item() / len(session.y), examples=rows[broken].tolist())


def without_limit(target: Target, x: Tensor, y: Tensor, given: AttackSession) -> CheckResult:
    """Without a limit every model is broken: if this one is not, the attack has failed."""
    if not target.gradient:
        return check_result("unbounded", None, "the model has no gradient to attack it by")
    dimensions = x[0].numel()
    widest = {"Linf": 1.0, "L2": math.sqrt(dimensions), "L1": float(dimensions)}[given.norm]
    model = Expectation(target.model, target.eot) if target.randomised else target.search
    session = AttackSession(target.exact, x, y, given.draws, norm=given.norm, eps=widest, randomised=target.randomised)
    for loss in ("ce", "margin"):
        far = partial(apgd, norm=given.norm, eps=widest, steps=attack_plan.STEPS, loss=loss)
        session.attempt(loss, "standard", attacking(far, model))
    walk = partial(
        pgd, norm=given.norm, eps=widest, steps=100, step_size=widest / 25, loss="margin", stop_at_success=True,
        random_start=False,
    )  # fmt: skip
    session.attempt("walk", "standard", attacking(walk, model))
    left = (session.correct > 0.5).nonzero().flatten()
    return check_result("unbounded", len(left) / len(y), examples=left.tolist())


def fresh_draws(target: Target, x_adv: Tensor, y: Tensor, accuracy: float, draws: int) -> CheckResult:
    """The reported accuracy on other draws, in units of its interval."""
    low, high = wilson(accuracy * len(y), len(y))
    again = score(target.model, x_adv, y, draws).correct.mean().item()
    return check_result("fresh-draws", abs(accuracy - again) / max((high - low) / 2, 1e-9))


def plateau(target: Target, session: AttackSession, draws: int) -> CheckResult:
    """The gain of more draws a step: if there is one, the expectation was not estimated well enough."""
    rows = (session.share(session.x, session.y) > 0.5).nonzero().flatten()[:FEW]
    accuracies = []
    for often in (target.eot, 4 * target.eot):
        attack = partial(pgd, norm=session.norm, eps=session.eps, steps=20)
        found = attack(Expectation(target.model, often), session.x[rows], session.y[rows], draws=session.draws[rows])
        accuracies.append(score(target.model, found, session.y[rows], draws).correct.mean().item())
    few, many = fractions(accuracies)
    words = f"{few} with {counted(target.eot, 'draw')} a step, {many} with {4 * target.eot}"
    return check_result("plateau", max(0.0, accuracies[0] - accuracies[1]), words)
