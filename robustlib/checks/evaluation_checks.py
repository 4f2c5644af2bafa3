"""The checks that every evaluation gets: a few passes over a few images."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks.types import AttackFunction
from robustlib.checks.adaptation import Watched, state_of, test_time
from robustlib.checks.idle_attacks import noise_nearer, unmoved
from robustlib.checks.normalisation import normalisation
from robustlib.checks.thresholds import WARN, CheckResult, check_result
from robustlib.inference.gradients import Net, pull
from robustlib.inference.image_rows import Images
from robustlib.inference.predict import predict, verdict
from robustlib.losses import cross_entropy
from robustlib.memory import as_many_as_fit, out_of_memory
from robustlib.metrics import wilson
from robustlib.model_calls import ask
from robustlib.norms import draw_in_ball
from robustlib.outcome import Outcome
from robustlib.rng import Draws

SOME = 64  # images that a model is looked at with
DIFFERENTIATED = 32  # of them by the gradient
MOST = 128  # standing images that a random point is tried on
ROUNDED = 64  # broken images that are rounded
SETS_ITS_MODE = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd, nn.MultiheadAttention)


class Attacked(Protocol):
    """Attacked images by their rows: a tensor, or what has some of them."""

    def __getitem__(self, rows: Tensor, /) -> Tensor: ...


def look_at_model(model: nn.Module, x: Tensor, *, randomised: bool) -> list[CheckResult]:
    """Checks of a model in eval mode. x: images as floats, on its device; the first 64, or as many as memory holds, are
    looked at.

    randomised: its answers change from pass to pass, so that they cannot be compared between batches.
    """
    before, watched = state_of(model), Watched(model)
    logits = as_many_as_fit(lambda n: answers(watched, x[:n]), min(len(x), SOME))
    x = x[: len(logits)]
    found = [eval_mode(model), are_logits(logits)]
    if not randomised:
        found.append(batch_independence(watched, x, logits))
    found += gradients(watched, x[:DIFFERENTIATED], logits[:DIFFERENTIATED].argmax(1))
    return [*found, test_time(watched, x, before, randomised=randomised)]


@torch.no_grad()
def answers(model: Net, x: Tensor) -> Tensor:
    return ask(model, x).float()


def eval_mode(model: nn.Module) -> CheckResult:
    """Whether layers that behave otherwise in training are still in training mode after `model.eval()`."""
    names = [name for name, layer in model.named_modules() if isinstance(layer, SETS_ITS_MODE) and layer.training]
    return check_result("eval-mode", len(names), f"in training mode: {', '.join(names[:5])}" if names else "")


def are_logits(logits: Tensor) -> CheckResult:
    """Rows that sum to 1 and hold nothing below 0 are probabilities: their cross-entropy is one of the wrong thing."""
    rows = (logits.sum(1) - 1).abs().le(1e-5) & logits.ge(0).all(1)
    return check_result("logits", rows.float().mean().item(), examples=rows.nonzero().flatten().tolist())


def batch_independence(model: Net, x: Tensor, logits: Tensor) -> CheckResult:
    try:
        parts = [as_many_as_fit(lambda n: answers(model, x[:n]) - logits[:n], most) for most in (1, min(7, len(x)))]
    except (ValueError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        # Whatever a user's model raises: it needs the others of a batch, as BatchNorm in training mode does.
        return check_result("batch-independence", 1.0, f"takes no small batch: {str(error).splitlines()[0][:200]}")
    spread = logits.std().clamp_min(1e-12)
    return check_result("batch-independence", max((part.abs().max() / spread).item() for part in parts))


def gradients(model: Net, x: Tensor, y: Tensor) -> list[CheckResult]:
    """Whether the cross-entropy of the model's own answer has a gradient, a finite one, and one that is not zero."""

    def slopes_of(n: int) -> Tensor:
        return pull(model, x[:n], lambda logits, y: cross_entropy(logits, y)[:, None], y[:n])[2]

    try:
        slopes = as_many_as_fit(slopes_of, len(x))
    except (ValueError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        # Whatever a user's model raises when it is differentiated: it has no gradient, and that is what is to be said.
        return [check_result("gradient", 1.0, f"no gradient: {str(error).splitlines()[0][:200]}")]
    flat = slopes.flatten(1)
    broken = ~flat.isfinite().all(1)
    zero = (flat == 0).all(1)
    return [
        check_result("gradient", broken.float().mean().item(), examples=broken.nonzero().flatten().tolist()),
        check_result("zero-gradient", zero.float().mean().item(), examples=zero.nonzero().flatten().tolist()),
    ]


def look_at_outcome(
    model: nn.Module,
    x: Images,
    y: Tensor,
    x_adv: Attacked,
    outcome: Outcome,
    *,
    norm: Norm | None,
    eps: float | None,
    seed: int,
    search: nn.Module | None = None,
    attacks: Sequence[AttackFunction] = (),
) -> list[CheckResult]:
    """Checks of an evaluation's outcome. x: its images as floats, and x_adv the attacked ones, in the outcome's order,
    on any device; of these at least those that `to_round` names.

    model: the one that judges, one that always gives the same answer. norm: None where images are as they are, and
    what is done to them has none.  eps: 0 for a clean evaluation, None for an attack without a limit.
    search: the model's quicker copy, which is asked first where there is one.  attacks: in turn, as
    `attack_in_sequence` calls them.
    """
    found = [above_chance(outcome), normalisation(model, x, y, outcome)]
    if norm is None or eps == 0:
        return found
    if attacks:
        found.append(unmoved(search or model, x, y, outcome, attacks, norm=norm, eps=eps, seed=seed))
    if eps is None:
        found.append(noise_nearer(model, x, y, outcome, norm=norm, seed=seed, search=search))
    else:
        found.append(noise(model, x, y, outcome, norm, eps, seed, search))
        found.append(eight_bit(model, x_adv, y, outcome))
    return found


TOO_FEW = "clean accuracy {accuracy:.3f} on {n} images: too few to tell the model from one that names one class for all"


def above_chance(outcome: Outcome) -> CheckResult:
    """An untrained or broken model names one class for all: where it is no better than that, it is none."""
    accuracy = float(outcome.clean_correct.mean())
    often = float(np.bincount(outcome.label).max() / len(outcome.label))
    if often > 0.7:
        return check_result("chance", None, "nearly all images are of one class")
    if len(outcome.label) < 30:
        if wilson(accuracy * len(outcome.label), len(outcome.label))[0] > often:
            return check_result("chance", None, "few images, but surely better than one class for all")
        return replace(
            check_result("chance", None, TOO_FEW.format(accuracy=accuracy, n=len(outcome.label))), verdict=WARN
        )
    return check_result(
        "chance", often / max(accuracy, 1e-9), f"clean accuracy {accuracy:.3f}, most frequent class {often:.3f}"
    )


def noise(
    model: nn.Module,
    x: Images,
    y: Tensor,
    outcome: Outcome,
    norm: Norm,
    eps: float,
    seed: int,
    search: nn.Module | None = None,
) -> CheckResult:
    """One random point of the ball for each image that stands: an attack that missed what chance finds is none."""
    rows = torch.from_numpy(np.flatnonzero(~outcome.success)[:MOST])
    if len(rows) == 0:
        return check_result("noise", None, "no image is robust")
    index = torch.from_numpy(outcome.index)[rows].to(x.device)
    images = x[rows]
    point = (images + draw_in_ball(images, eps, norm, Draws(seed, index), "checks/noise")).clamp(0, 1)
    fell = verdict(model, search or model, point, y[rows]) != y[rows]
    return check_result("noise", int(fell.sum()), examples=index[fell].tolist())


def to_round(outcome: Outcome) -> np.ndarray:
    """The first places of attacked images that are misclassified and were not so before."""
    return np.flatnonzero(outcome.success & (outcome.distance > 0))[:ROUNDED]


def eight_bit(model: nn.Module, x_adv: Attacked, y: Tensor, outcome: Outcome) -> CheckResult:
    """Whether attacked images survive being stored as pictures."""
    rows = torch.from_numpy(to_round(outcome))
    if len(rows) == 0:
        return check_result("eight-bit", None, "no adversarial image was found")
    rounded = (x_adv[rows].to(y.device) * 255).round() / 255
    stands = predict(model, rounded) == y[rows]
    places = torch.from_numpy(outcome.index)[rows[stands.cpu()]]
    return check_result("eight-bit", stands.float().mean().item(), examples=places.tolist())
