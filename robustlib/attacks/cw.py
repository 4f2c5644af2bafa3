"""Carlini and Wagner's attack: Adam on distance plus a weighted margin, and a search for the weight."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from robustlib.attacks.minimum_norm import from_true_side, within
from robustlib.inference.oracle import Oracle, as_oracle
from robustlib.inference.steps import Nearest, Phase, search_nearest
from robustlib.input_checks import checked
from robustlib.losses import margin, misclassified
from robustlib.norms import per_example, size
from robustlib.rng import Draws

INSIDE = 0.999999  # images are drawn in to this share of the box, whose border tanh does not reach
PROGRESS = 0.9999  # a tenth of a run that does not get the loss below this share of what it was is a stall
PATIENCE = 2  # stalls in a row after which a run is given up: Adam's first large steps may overshoot once
BETA_1, BETA_2, ADAM_EPS = 0.9, 0.999, 1e-8


@dataclass(kw_only=True)
class Run(Nearest):
    """Where each example's descent is. Its `x_adv` is the image of `w`."""

    const: Tensor
    w: Tensor  # in tanh space
    mean: Tensor  # Adam's running means of the gradient and of its square
    square: Tensor
    loss: Tensor  # at the last check
    stalls: Tensor  # checks in a row at which the loss had not fallen
    shortfall: Tensor = field(init=False)
    gradient: Tensor = field(init=False)


@checked
def cw(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Literal["L2"] = "L2",
    eps: float | None = None,
    steps: int = 1000,
    search_steps: int = 9,
    step_size: float = 0.01,
    confidence: float = 0.0,
    initial_const: float = 1e-3,
    draws: Draws | None = None,
) -> Tensor:
    """Carlini and Wagner 2017, https://arxiv.org/abs/1608.04644, untargeted, for L2 alone.

    x: images in [0, 1], shape (B, C, H, W).  y: true classes, shape (B,); a misclassified image is returned as it is.
    steps: at most so many of Adam, of size step_size in tanh space, for each of the search_steps constants tried.
    confidence: the margin by which an image that is found is misclassified.
    eps: None returns the nearest misclassified image found; with a radius, images for which it lies outside the ball
    are returned as they came. Deterministic: `draws` is not used. Returns x_adv, shaped like x, in the box.
    """

    def search(oracle: Oracle, x: Tensor, y: Tensor) -> Tensor:
        found = search_const(oracle, x, y, steps, search_steps, step_size, confidence, initial_const)
        return within(x, *found, eps)

    return from_true_side(as_oracle(model), x, y, search)


def search_const(
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    steps: int,
    search_steps: int,
    step_size: float,
    confidence: float,
    initial_const: float,
) -> tuple[Tensor, Tensor]:
    """The nearest misclassified image found and its distance, infinite where none was.

    The constant grows tenfold until an image is found, and is then halved between the least that found one and the
    largest that did not.
    """
    best, distance = x, torch.full_like(x[:, 0, 0, 0], torch.inf)
    const = torch.full_like(distance, initial_const)
    low, high = torch.zeros_like(const), torch.full_like(const, torch.inf)
    for _ in range(search_steps):
        found, how_far = descend(oracle, x, y, const, steps, step_size, confidence)
        nearer, hit = how_far < distance, how_far < torch.inf
        best, distance = torch.where(per_example(nearer, x), found, best), how_far.minimum(distance)
        low, high = torch.where(hit, low, const), torch.where(hit, const, high)
        const = torch.where(high < torch.inf, (low + high) / 2, const * 10)
    return best, distance


def descend(
    oracle: Oracle, x: Tensor, y: Tensor, const: Tensor, steps: int, step_size: float, confidence: float
) -> tuple[Tensor, Tensor]:
    """Adam from the image itself, each example with its own constant; results as for `search_const`."""

    def shortfall(logits: Tensor, y: Tensor) -> Tensor:
        return (confidence - margin(logits, y)).clamp_min(0)

    def ask(oracle: Oracle, run: Run, phase: Phase) -> Tensor:
        run.x_adv = (run.w.tanh() + 1) / 2
        logits, run.shortfall, run.gradient = oracle.value_and_grad(run.x_adv, shortfall, run.y)
        found = misclassified(logits, run.y) & (run.shortfall == 0)
        return torch.where(found, size(run.x_adv - run.x, "L2"), torch.inf)

    def move(oracle: Oracle, run: Run, phase: Phase) -> Tensor | None:
        delta = run.x_adv - run.x
        slope = 2 * delta + per_example(run.const, run.x) * run.gradient
        adam(run, slope * 2 * run.x_adv * (1 - run.x_adv), phase.numbers, step_size)
        if phase.kind != "check":
            return None
        loss = delta.flatten(1).square().sum(1) + run.const * run.shortfall
        run.stalls, run.loss = torch.where(loss <= PROGRESS * run.loss, 0, run.stalls + 1), loss
        return run.stalls >= PATIENCE

    # Rounded from float64: the last bit of atanh in float32 varies with where in the batch a pixel lies.
    w = ((2 * x.double() - 1) * INSIDE).atanh().to(x)
    zero, far = torch.zeros_like(x), torch.full_like(const, torch.inf)
    run = Run(x=x, y=y, x_adv=x, const=const, w=w, mean=zero, square=zero, loss=far, stalls=y * 0)
    every = math.ceil(steps / 10)
    phases = [Phase("check" if k % every == 0 else "between", weights(k + 1)) for k in range(steps)]
    return search_nearest(oracle, run, ask, move, phases)


def weights(step: int) -> tuple[float, float]:
    """What Adam's running means have gathered after so many steps, of 1 in the end."""
    return 1 - BETA_1**step, 1 - BETA_2**step


def adam(run: Run, gradient: Tensor, gathered: tuple[float, float], step_size: float) -> None:
    """One step of Adam, Kingma and Ba 2015, https://arxiv.org/abs/1412.6980."""
    run.mean = BETA_1 * run.mean + (1 - BETA_1) * gradient
    run.square = BETA_2 * run.square + (1 - BETA_2) * gradient.square()
    mean, square = run.mean / gathered[0], run.square / gathered[1]
    run.w = run.w - step_size * mean / (square.sqrt() + ADAM_EPS)
