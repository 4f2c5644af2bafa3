"""Attack only what still stands: restarts, ensembles and the radii of a curve are the same thing."""

import inspect
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustlib.draws import Draws, default_draws
from robustlib.engine import Engine
from robustlib.losses import margin, wrong
from robustlib.norms import Norm, per_example, size

Attack = Callable[..., Tensor]


class Found(NamedTuple):
    """What a cascade found.

    x_adv: the clean image where nothing was found.  broken_by: position of the attack that broke each example, shape
    (B,): -1 where the clean image is misclassified already, the number of attacks where the example stands.
    seconds: spent on each attack.
    """

    x_adv: Tensor
    broken_by: Tensor
    seconds: list[float]


@torch.no_grad()
def correct(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images the model classifies correctly, shape (B,)."""
    return ~wrong(model(x), y)


def cascade(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: Sequence[Attack],
    *,
    draws: Draws | None = None,
    search: nn.Module | None = None,
    start: Tensor | None = None,
    right: Tensor | None = None,
) -> Found:
    """Run the attacks in turn, each on the examples that all before it left standing.

    Each attack is called as `attack(search, x, y, draws=...)`; repeats of one attack get fresh draws.
    search: a copy of the model for the attacks to search on.  start: images in the ball from which the first attack
    begins, if it takes a start.  right: which clean images the model classifies correctly, where that is known.
    An example falls when `model` misclassifies its image.
    """
    draws = default_draws(x, draws)
    x_adv = x.clone()
    broken_by = torch.where(correct(model, x, y) if right is None else right, len(attacks), -1)
    seconds = []
    for position, attack in enumerate(attacks):
        began = time.perf_counter()
        standing = (broken_by == len(attacks)).nonzero().squeeze(1)
        if len(standing):
            images, classes, own = x[standing], y[standing], draws[standing].restart(position)
            takes = start is not None and position == 0 and "start" in inspect.signature(attack).parameters
            begin = start[standing] if start is not None and takes else None
            copy = model if search is None else search
            found, fell = try_attack(model, copy, images, classes, attack, own, begin)
            x_adv[standing[fell]] = found[fell]
            broken_by[standing[fell]] = position
        seconds.append(time.perf_counter() - began)
    return Found(x_adv, broken_by, seconds)


def try_attack(
    model: nn.Module, search: nn.Module, x: Tensor, y: Tensor, attack: Attack, draws: Draws, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The attacked images, and which of them the model misclassifies."""

    def run(on: nn.Module, rows: Tensor | slice) -> Tensor:
        return attack(on, x[rows], y[rows], draws=draws[rows], **({} if start is None else {"start": start[rows]}))

    found = run(search, slice(None))
    with torch.no_grad():
        logits = model(found)
    fell = wrong(logits, y)
    # An attack leaves an image alone once the copy misclassifies it. Where the model itself does not, by less than the
    # two may differ, the attack is run again on the model.
    close = torch.zeros_like(fell)
    if isinstance(search, Engine) and search is not model:
        close = ~fell & (margin(logits, y) > -search.margin)
    if close.any():
        again = run(model, close)
        found[close] = again
        fell[close] = ~correct(model, again, y[close])
    return found, fell


def curve(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    plan: Sequence[tuple[float, Sequence[Attack]]],
    *,
    norm: Norm,
    draws: Draws | None = None,
    search: nn.Module | None = None,
    right: Tensor | None = None,
) -> list[Found]:
    """A cascade at each of several radii as one search, from the largest radius down.

    plan: radii, rising, each with its attacks, which are the same but for the radius.
    What stands at a radius stands at the smaller ones. What fell is shrunk to the next radius first, which costs one
    pass forward and breaks many; only the rest is attacked again, from there. So an example pays for one failing run,
    at the largest radius at which it stands, and not for one at each.
    """
    draws = default_draws(x, draws)
    right = correct(model, x, y) if right is None else right
    results: list[Found] = []
    larger: Found | None = None
    for eps, attacks in reversed(plan):
        here = Found(x.clone(), torch.where(right, len(attacks), -1), [0.0] * len(attacks))
        falling = (
            (here.broken_by >= 0) if larger is None else (larger.broken_by >= 0) & (larger.broken_by < len(attacks))
        )
        shrunk = None
        if larger is not None:
            shrunk = shrink_to(larger.x_adv, x, eps, norm)
            rows = falling.nonzero().squeeze(1)
            fell = rows[~correct(model, shrunk[rows], y[rows])]
            here.x_adv[fell], here.broken_by[fell] = shrunk[fell], larger.broken_by[fell]
            falling[fell] = False
        rows = falling.nonzero().squeeze(1)
        if len(rows):
            known = {"start": None if shrunk is None else shrunk[rows], "right": right[rows]}
            found = cascade(model, x[rows], y[rows], attacks, draws=draws[rows], search=search, **known)
            here.x_adv[rows], here.broken_by[rows] = found.x_adv, found.broken_by
            here = here._replace(seconds=found.seconds)
        results.append(here)
        larger = here
    return results[::-1]


def shrink_to(x_adv: Tensor, x: Tensor, eps: float, norm: Norm) -> Tensor:
    """The images drawn back towards x until they lie within eps of it; those that do so already stay."""
    delta = x_adv - x
    ratio = (eps / size(delta, norm).clamp_min(1e-12)).clamp_max(1)
    return torch.where(per_example(ratio < 1, x), (x + delta * per_example(ratio, x)).clamp(0, 1), x_adv)
