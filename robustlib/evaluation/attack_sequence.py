"""Attacks in sequence, each on the examples that are still robust: restarts and ensembles are the same thing."""

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from robustlib.attacks.types import AttackFunction, as_stage
from robustlib.inference.oracle import as_oracle
from robustlib.inference.predict import verdict
from robustlib.input_checks import check_labels
from robustlib.outcome import check_attacked
from robustlib.rng import Draws, default_draws


class Proofs(Protocol):
    """Proofs that examples stand, of one model."""

    @property
    def before(self) -> int:
        """Position of the attack before which they are made."""
        ...

    def at(self, eps: float) -> Self:
        """The same for examples of one radius."""
        ...

    def hold(self, x: Tensor, y: Tensor, eps: Tensor | None) -> Tensor:
        """Which images are proved to stand, shape (B,). eps: each example's own radius, where these differ."""
        ...


class Found(NamedTuple):
    """What attacks in turn found.

    x_adv: the clean image where nothing was found.  prediction: the model's class for x_adv, shape (B,).
    broken_by: position of the attack that broke each example, shape (B,): -1 where the clean image is misclassified
    already, the number of attacks where the example stands.  seconds: spent on each attack.
    queries: how many images of each example those attacks showed the model that count them, shape (B,), int64; -1 where
    none of them ran.  radius_queries: those of them at this radius; None where there is one radius only.
    proved: which examples are proved to stand, shape (B,): later attacks were not run on them, and their queries are
    those that would have found nothing.  None where nothing was to be proved.
    """

    x_adv: Tensor
    prediction: Tensor
    broken_by: Tensor
    seconds: list[float]
    queries: Tensor
    radius_queries: Tensor | None = None
    proved: Tensor | None = None


def attack_in_sequence(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: Sequence[AttackFunction],
    *,
    draws: Draws | None = None,
    search: nn.Module | None = None,
    start: Tensor | None = None,
    clean: Tensor | None = None,
    eps: Tensor | None = None,
    proofs: Proofs | None = None,
) -> Found:
    """Run the attacks in turn, each on the examples that all before it left standing.

    Each attack is called as `attack(search, x, y, draws=...)`; repeats of one attack get fresh draws.
    An attack that takes `spent` is given zeros to fill with the queries of each image.
    search: a copy of the model for the attacks to search on.  start: images in the ball from which the first attack
    begins, if it takes a start.  clean: the model's classes for the clean images, where they are known.
    eps: each example's own radius, for attacks that take one, in place of theirs.
    proofs: spare examples that are proved to stand the attacks from `proofs.before` on.
    An example falls when `model` misclassifies its image.
    """
    check_labels("attack_in_sequence", x, y)
    draws = default_draws(x, draws)
    search = model if search is None else search
    prediction = (verdict(model, search, x, y) if clean is None else clean).clone()
    x_adv, broken_by = x.clone(), torch.where(prediction == y, len(attacks), -1)
    seconds, queries = [], torch.full_like(y, -1, dtype=torch.int64)
    proved = None if proofs is None else torch.zeros_like(y, dtype=torch.bool)
    for position, attack in enumerate(map(as_stage, attacks)):
        began = time.perf_counter()
        standing = (broken_by == len(attacks)).nonzero().squeeze(1)
        if proofs is not None and proved is not None and position >= proofs.before:
            if position == proofs.before:
                proved[standing] = proofs.hold(x[standing], y[standing], None if eps is None else eps[standing])
            if attack.counts_queries:
                queries[proved] = total(queries[proved], torch.full_like(queries[proved], attack.defaults["queries"]))
            standing = standing[~proved[standing]]
        if len(standing):
            options: dict[str, Tensor] = {}
            if start is not None and position == 0 and attack.takes_start:
                options["start"] = start[standing]
            if attack.counts_queries:
                options["spent"] = torch.zeros_like(queries[standing])
            if eps is not None:
                options["eps"] = eps[standing]
            owner, own = f"attack {position + 1} of {len(attacks)}", draws[standing].restart(position)
            found, logits = attacked(owner, attack, search, x[standing], y[standing], own, options)
            if "spent" in options:
                queries[standing] = total(queries[standing], options["spent"])
            predicted = verdict(model, search, found, y[standing], logits)
            fell = predicted != y[standing]
            rows = standing[fell]
            x_adv[rows], prediction[rows], broken_by[rows] = found[fell], predicted[fell], position
        seconds.append(time.perf_counter() - began)
    return Found(x_adv, prediction, broken_by, seconds, queries, proved=proved)


def attacked(
    owner: str,
    attack: AttackFunction,
    search: nn.Module,
    x: Tensor,
    y: Tensor,
    draws: Draws,
    options: dict[str, Tensor],
) -> tuple[Tensor, Tensor | None]:
    """An attack's images, those on which its search went astray made anew, and logits for them, where these are known.

    owner: who is named where the images are none.  options: of each example.
    """
    found = attack(search, x, y, draws=draws, **options)
    check_attacked(owner, found, x)
    found = found.detach()
    astray, logits = as_oracle(search).astray(found)
    for finer, strayed in astray:
        again = {name: values[strayed] for name, values in options.items()}
        found[strayed] = attack(finer, x[strayed], y[strayed], draws=draws[strayed], **again)
        if logits is not None:
            logits[strayed] = finer.logits(found[strayed])
    check_numbers(owner, found)
    return found, logits


def check_numbers(owner: str, images: Tensor) -> None:
    """Raise RuntimeError for images with NaN, of which no verdict says anything."""
    if images.isnan().any():
        raise RuntimeError(f"{owner} gives images that hold NaN")


def total(before: Tensor, more: Tensor) -> Tensor:
    """Queries before and after together, where -1 is that none were counted."""
    return torch.where(more < 0, before, before.clamp_min(0) + more)
