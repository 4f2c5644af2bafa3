"""Checks of an audit that attack: other radii, more steps, no limit at all, other draws."""

import math
from functools import partial
from itertools import pairwise

from torch import Tensor

from robustlib.attacks.apgd import apgd
from robustlib.attacks.pgd import pgd
from robustlib.audit import attack_plan
from robustlib.audit.attack_plan import Target, calling
from robustlib.audit.session import Bout
from robustlib.checks.thresholds import Finding, find
from robustlib.inference.expectation import Expectation
from robustlib.metrics import wilson
from robustlib.outcome import score

FEW = 50  # images on which a plateau is looked for: it costs forty passes a step


def other_radii(target: Target, bout: Bout, naive: Tensor) -> Finding:
    """The naive attack at half and at twice the radius: where its success falls as the radius grows, it is none."""
    accuracies = []
    for factor in (0.5, 1.0, 2.0):
        share = naive
        if factor != 1.0:
            strike = attack_plan.naive(target, bout.norm, bout.eps * factor)
            share = bout.share(strike(bout.x, bout.y, bout.draws), bout.y)
        accuracies.append(share.mean().item())
    rises = [after - before - bout.chance(naive) for before, after in pairwise(accuracies)]
    words = ", ".join(f"{accuracy:.3f}" for accuracy in accuracies)
    return find("accuracy-rises-with-eps", max(0.0, *rises), f"at half, once and twice the radius: {words}")


def convergence(target: Target, bout: Bout, naive: Tensor) -> Finding:
    """Twice the steps of the naive attack on what it left."""
    rows = (naive > 0.5).nonzero().flatten()
    if len(rows) == 0:
        return find("convergence", None, "no image stands")
    strike = attack_plan.naive(target, bout.norm, bout.eps, steps=2 * attack_plan.STEPS)
    found = strike(bout.x[rows], bout.y[rows], bout.draws[rows])
    fell = bout.share(found, bout.y[rows]) <= 0.5
    return find("convergence", fell.sum().item() / len(bout.y), examples=rows[fell].tolist())


def without_limit(target: Target, x: Tensor, y: Tensor, given: Bout) -> Finding:
    """Without a limit every model falls: where this one does not, it is the attack that fails."""
    if not target.gradient:
        return find("unbounded", None, "the model has no gradient to attack it by")
    dimensions = x[0].numel()
    widest = {"Linf": 1.0, "L2": math.sqrt(dimensions), "L1": float(dimensions)}[given.norm]
    model = Expectation(target.model, target.eot) if target.randomised else target.search
    bout = Bout(target.exact, x, y, given.draws, norm=given.norm, eps=widest, randomised=target.randomised)
    for loss in ("ce", "margin"):
        far = partial(apgd, norm=given.norm, eps=widest, steps=attack_plan.STEPS, loss=loss)
        bout.attempt(loss, "standard", calling(far, model))
    walk = partial(
        pgd, norm=given.norm, eps=widest, steps=100, step_size=widest / 25, loss="margin", stop_at_success=True,
        random_start=False,
    )  # fmt: skip
    bout.attempt("walk", "standard", calling(walk, model))
    left = (bout.correct > 0.5).nonzero().flatten()
    return find("unbounded", len(left) / len(y), examples=left.tolist())


def fresh_draws(target: Target, x_adv: Tensor, y: Tensor, accuracy: float, draws: int) -> Finding:
    """The reported accuracy on other draws, in units of its interval."""
    low, high = wilson(accuracy * len(y), len(y))
    again = score(target.model, x_adv, y, draws).correct.mean().item()
    return find("fresh-draws", abs(accuracy - again) / max((high - low) / 2, 1e-9))


def plateau(target: Target, bout: Bout, draws: int) -> Finding:
    """Whether more draws a step would break more: then the expectation was not known well enough."""
    rows = (bout.share(bout.x, bout.y) > 0.5).nonzero().flatten()[:FEW]
    accuracies = []
    for often in (target.eot, 4 * target.eot):
        attack = partial(pgd, norm=bout.norm, eps=bout.eps, steps=20)
        found = attack(Expectation(target.model, often), bout.x[rows], bout.y[rows], draws=bout.draws[rows])
        accuracies.append(score(target.model, found, bout.y[rows], draws).correct.mean().item())
    words = f"{accuracies[0]:.3f} with {target.eot} draws a step, {accuracies[1]:.3f} with {4 * target.eot}"
    return find("plateau", max(0.0, accuracies[0] - accuracies[1]), words)
