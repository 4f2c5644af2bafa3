"""Attack only what still stands: restarts and ensembles are the same thing."""

import inspect
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustlib.calls import ask
from robustlib.draws import Draws, default_draws
from robustlib.engine import Engine
from robustlib.inputs import check_labels
from robustlib.losses import classes_of, surely_right

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
    """The model's class for each image, shape (B,). Raises ValueError where it gives NaN."""
    return classes_of(ask(model, x))


def correct(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images the model classifies correctly, shape (B,)."""
    return predict(model, x) == y


@torch.no_grad()
def verdict(model: nn.Module, search: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The model's class for each image, or the true one where it need not be asked: where its copy is surely right.

    A copy in float16 is not asked: beyond its range it may give finite logits of something else.
    """
    if search is model or not isinstance(search, Engine):
        return predict(model, x)
    if search.precision == torch.float16 and search.finer:
        (search,) = search.finer
    prediction = y.clone()
    doubtful = (~surely_right(search, x, y)).nonzero().squeeze(1)
    if len(doubtful):
        prediction[doubtful] = predict(model, x[doubtful])
    return prediction


@torch.no_grad()
def astray(search: nn.Module, x: Tensor) -> Tensor:
    """Attacked images for which a copy in float16 computes something else than its copy in float32, shape (B,).

    Beyond its range a norm is infinite, and what is divided by it zero: a gradient and logits that are finite, and not
    the model's. The attack on them was one on another function.
    """
    if not isinstance(search, Engine) or search.precision != torch.float16 or not search.finer:
        return torch.zeros(len(x), dtype=torch.bool, device=x.device)
    return ~((search(x) - search.finer[0](x)).abs().amax(1) <= search.drift + search.finer[0].drift)


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
    eps: Tensor | None = None,
) -> Found:
    """Run the attacks in turn, each on the examples that all before it left standing.

    Each attack is called as `attack(search, x, y, draws=...)`; repeats of one attack get fresh draws.
    An attack that takes `spent` is given zeros to fill with the queries of each image.
    search: a copy of the model for the attacks to search on.  start: images in the ball from which the first attack
    begins, if it takes a start.  clean: the model's classes for the clean images, where they are known.
    eps: each example's own radius, for attacks that take one, in place of theirs.
    An example falls when `model` misclassifies its image.
    """
    check_labels("cascade", x, y)
    draws = default_draws(x, draws)
    search = model if search is None else search
    prediction = (predict(model, x) if clean is None else clean).clone()
    x_adv, broken_by = x.clone(), torch.where(prediction == y, len(attacks), -1)
    seconds, queries = [], torch.full_like(y, -1, dtype=torch.int64)
    for position, attack in enumerate(attacks):
        began = time.perf_counter()
        standing = (broken_by == len(attacks)).nonzero().squeeze(1)
        if len(standing):
            options: dict[str, Tensor] = {}
            takes = inspect.signature(attack).parameters
            if start is not None and position == 0 and "start" in takes:
                options["start"] = start[standing]
            if "spent" in takes:
                options["spent"] = torch.zeros_like(queries[standing])
            if eps is not None:
                options["eps"] = eps[standing]
            found = attack(search, x[standing], y[standing], draws=draws[standing].restart(position), **options)
            strayed = astray(search, found).nonzero().squeeze(1)
            if len(strayed):
                assert isinstance(search, Engine)
                rows, again = standing[strayed], {name: values[strayed] for name, values in options.items()}
                own = draws[rows].restart(position)
                found[strayed] = attack(search.finer[0], x[rows], y[rows], draws=own, **again)
            if found.isnan().any():
                raise RuntimeError(f"attack {position + 1} of {len(attacks)} gives images that hold NaN")
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
