"""Attack only what still stands: restarts, ensembles and the radii of a curve are the same thing."""

import inspect
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustlib.draws import Draws, default_draws
from robustlib.engine import Engine
from robustlib.losses import margin
from robustlib.norms import Norm, per_example, size

Attack = Callable[..., Tensor]


class Found(NamedTuple):
    """What a cascade found.

    x_adv: the clean image where nothing was found.  prediction: the model's class for x_adv, shape (B,).
    broken_by: position of the attack that broke each example, shape (B,): -1 where the clean image is misclassified
    already, the number of attacks where the example stands.  seconds: spent on each attack.
    queries: how many images of each example those attacks showed the model that count them, shape (B,), int64; -1 where
    none of them ran.
    """

    x_adv: Tensor
    prediction: Tensor
    broken_by: Tensor
    seconds: list[float]
    queries: Tensor


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """The model's class for each image, shape (B,)."""
    return model(x).argmax(1)


def correct(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images the model classifies correctly, shape (B,)."""
    return predict(model, x) == y


@torch.no_grad()
def verdict(model: nn.Module, search: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The model's class for each image, or the true one where it need not be asked: where its copy is surely right."""
    if search is model or not isinstance(search, Engine):
        return predict(model, x)
    prediction = y.clone()
    doubtful = (~(margin(search(x), y) <= -search.drift)).nonzero().squeeze(1)  # NaN too
    if len(doubtful):
        prediction[doubtful] = predict(model, x[doubtful])
    return prediction


def cascade(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: Sequence[Attack],
    *,
    draws: Draws | None = None,
    search: nn.Module | None = None,
    start: Tensor | None = None,
    clean: Tensor | None = None,
) -> Found:
    """Run the attacks in turn, each on the examples that all before it left standing.

    Each attack is called as `attack(search, x, y, draws=...)`; repeats of one attack get fresh draws.
    An attack that takes `spent` is given zeros to fill with the queries of each image.
    search: a copy of the model for the attacks to search on.  start: images in the ball from which the first attack
    begins, if it takes a start.  clean: the model's classes for the clean images, where they are known.
    An example falls when `model` misclassifies its image.
    """
    draws = default_draws(x, draws)
    search = model if search is None else search
    prediction = (predict(model, x) if clean is None else clean).clone()
    x_adv, broken_by = x.clone(), torch.where(prediction == y, len(attacks), -1)
    seconds, queries = [], torch.full_like(y, -1, dtype=torch.int64)
    for position, attack in enumerate(attacks):
        began = time.perf_counter()
        standing = (broken_by == len(attacks)).nonzero().squeeze(1)
        if len(standing):
            options, takes = {}, inspect.signature(attack).parameters
            if start is not None and position == 0 and "start" in takes:
                options["start"] = start[standing]
            if "spent" in takes:
                options["spent"] = torch.zeros_like(queries[standing])
            found = attack(search, x[standing], y[standing], draws=draws[standing].restart(position), **options)
            if "spent" in options:
                queries[standing] = total(queries[standing], options["spent"])
            predicted = verdict(model, search, found, y[standing])
            fell = predicted != y[standing]
            rows = standing[fell]
            x_adv[rows], prediction[rows], broken_by[rows] = found[fell], predicted[fell], position
        seconds.append(time.perf_counter() - began)
    return Found(x_adv, prediction, broken_by, seconds, queries)


def total(before: Tensor, more: Tensor) -> Tensor:
    """Queries before and after together, where -1 is that none were counted."""
    return torch.where(more < 0, before, before.clamp_min(0) + more)


def curve(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    plan: Sequence[tuple[float, Sequence[Attack]]],
    *,
    norm: Norm,
    draws: Draws | None = None,
    search: nn.Module | None = None,
    clean: Tensor | None = None,
) -> list[Found]:
    """A cascade at each of several radii as one search, from the largest radius down.

    plan: radii, rising, each with its attacks, which are the same but for the radius.
    What stands at a radius stands at the smaller ones. What fell is shrunk to the next radius first, which costs one
    pass forward and breaks many; only the rest is attacked again, from there. So an example pays for one failing run,
    at the largest radius at which it stands, and not for one at each. Queries are those of the search down to a radius,
    in which a shrunk image is one.
    """
    draws = default_draws(x, draws)
    search = model if search is None else search
    clean = predict(model, x) if clean is None else clean
    results: list[Found] = []
    larger: Found | None = None
    for eps, attacks in reversed(plan):
        count = len(attacks)
        unknown = torch.full_like(y, -1, dtype=torch.int64)
        here = Found(x.clone(), clean.clone(), torch.where(clean == y, count, -1), [0.0] * count, unknown)
        start = None
        if larger is None:
            rows = torch.arange(len(x), device=x.device)
        else:
            start = shrink_to(larger.x_adv, x, eps, norm)
            rows = ((larger.broken_by >= 0) & (larger.broken_by < count)).nonzero().squeeze(1)
            predicted = verdict(model, search, start[rows], y[rows])
            fell = predicted != y[rows]
            here.queries.copy_(larger.queries)
            here.queries[rows] += larger.queries[rows] >= 0
            done = rows[fell]
            here.x_adv[done], here.prediction[done] = start[done], predicted[fell]
            here.broken_by[done] = larger.broken_by[done]
            rows = rows[~fell]
        if len(rows):
            known = {"start": None if start is None else start[rows], "clean": clean[rows]}
            found = cascade(model, x[rows], y[rows], attacks, draws=draws[rows], search=search, **known)
            here.x_adv[rows], here.prediction[rows], here.broken_by[rows] = found[:3]
            here.queries[rows] = total(here.queries[rows], found.queries)
            here = here._replace(seconds=found.seconds)
        results.append(here)
        larger = here
    return results[::-1]


def shrink_to(x_adv: Tensor, x: Tensor, eps: float, norm: Norm) -> Tensor:
    """The images drawn back towards x until they lie within eps of it; those that do so already stay."""
    delta = x_adv - x
    ratio = (eps / size(delta, norm).clamp_min(1e-12)).clamp_max(1)
    return torch.where(per_example(ratio < 1, x), (x + delta * per_example(ratio, x)).clamp(0, 1), x_adv)
