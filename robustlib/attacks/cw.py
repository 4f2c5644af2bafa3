"""Carlini and Wagner's attack: Adam on distance plus a weighted margin, and a search for the weight."""

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn

from robustlib.attacks.fab import within
from robustlib.inference.confirm import confirmed, starts, wrong
from robustlib.inference.gradients import climb
from robustlib.input_checks import checked
from robustlib.losses import margin
from robustlib.norms import per_example, size
from robustlib.rng import Draws

INSIDE = 0.999999  # images are drawn in to this share of the box, whose border tanh does not reach
PROGRESS = 0.9999  # a tenth of a run that does not get the loss below this share of what it was is a stall
PATIENCE = 2  # stalls in a row after which a run is given up: Adam's first large steps may overshoot once
BETA_1, BETA_2, ADAM_EPS = 0.9, 0.999, 1e-8


@dataclass
class Run:
    """Where each example's descent is, a row each; rows of examples that are done with are left out."""

    place: Tensor
    x: Tensor
    y: Tensor
    const: Tensor
    w: Tensor  # the image in tanh space
    mean: Tensor  # Adam's running means of the gradient and of its square
    square: Tensor
    loss: Tensor  # at the last check
    stalls: Tensor  # checks in a row at which the loss had not fallen

    def __getitem__(self, chosen: Tensor) -> "Run":
        return Run(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


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
    x_adv = x.clone()
    for net, live in starts(model, x, y):
        found, distance = search_const(net, x[live], y[live], steps, search_steps, step_size, confidence, initial_const)
        x_adv[live] = within(x[live], found, distance, eps)
    return x_adv


def search_const(
    model: nn.Module,
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
        found, how_far = descend(model, x, y, const, steps, step_size, confidence)
        nearer, hit = how_far < distance, how_far < torch.inf
        best, distance = torch.where(per_example(nearer, x), found, best), how_far.minimum(distance)
        low, high = torch.where(hit, low, const), torch.where(hit, const, high)
        const = torch.where(high < torch.inf, (low + high) / 2, const * 10)
    return best, distance


def descend(
    model: nn.Module, x: Tensor, y: Tensor, const: Tensor, steps: int, step_size: float, confidence: float
) -> tuple[Tensor, Tensor]:
    """Adam from the image itself, each example with its own constant; results as for `search_const`."""

    def shortfall(logits: Tensor, y: Tensor) -> Tensor:
        return (confidence - margin(logits, y)).clamp_min(0)

    best, distance = x.clone(), torch.full_like(const, torch.inf)
    # Rounded from float64: the last bit of atanh in float32 varies with where in the batch a pixel lies.
    w = ((2 * x.double() - 1) * INSIDE).atanh().to(x)
    run = Run(
        torch.arange(len(x), device=x.device), x, y, const, w, torch.zeros_like(x), torch.zeros_like(x), distance, y * 0
    )
    for step in range(steps):
        x_adv = (run.w.tanh() + 1) / 2
        logits, short, slope = climb(model, x_adv, shortfall, run.y)
        delta = x_adv - run.x
        how_far = torch.where(wrong(logits, run.y) & (short == 0), size(delta, "L2"), torch.inf)
        nearer = confirmed(model, x_adv, run.y, how_far < distance[run.place])
        best[run.place[nearer]], distance[run.place[nearer]] = x_adv[nearer], how_far[nearer]

        slope = 2 * delta + per_example(run.const, x) * slope
        adam(run, slope * 2 * x_adv * (1 - x_adv), step + 1, step_size)
        if step % math.ceil(steps / 10) == 0:
            loss = delta.flatten(1).square().sum(1) + run.const * short
            run.stalls, run.loss = torch.where(loss <= PROGRESS * run.loss, 0, run.stalls + 1), loss
            going = run.stalls < PATIENCE
            run = run if going.all() else run[going]
            if len(run.place) == 0:
                break
    return best, distance


def adam(run: Run, gradient: Tensor, step: int, step_size: float) -> None:
    """One step of Adam, Kingma and Ba 2015, https://arxiv.org/abs/1412.6980; steps count from 1."""
    run.mean = BETA_1 * run.mean + (1 - BETA_1) * gradient
    run.square = BETA_2 * run.square + (1 - BETA_2) * gradient.square()
    mean, square = run.mean / (1 - BETA_1**step), run.square / (1 - BETA_2**step)
    run.w = run.w - step_size * mean / (square.sqrt() + ADAM_EPS)
