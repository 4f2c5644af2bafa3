"""Models that always give the same answer: attacked on their search copies, an error counted by a fresh pass."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.datasets.lazy_images import ImageSet
from robustlib.evaluation.attack_sequence import Proofs, attack_in_sequence
from robustlib.evaluation.multi_radius import curve
from robustlib.evaluation.plans import Plan, given, is_worth_forks
from robustlib.evaluation.proofs import make_proofs
from robustlib.inference.model_modes import as_images
from robustlib.inference.predict import verdict
from robustlib.inference.replicas import Replicas
from robustlib.inference.threads import Shares, make_shares
from robustlib.memory import Pieces
from robustlib.metrics import CLEAN, NOTHING
from robustlib.norms import size
from robustlib.outcome import Batch, Score, check_budget, gather, judge, one_below_the_other
from robustlib.rng import Draws
from robustlib.settings import ON_ALL


def fixed_batches(
    model: nn.Module,
    replicas: Replicas,
    x: ImageSet,
    y: Tensor,
    batches: Iterable[Tensor],
    plan: Plan,
    *,
    norm: Norm,
    seed: int,
    device: torch.device,
) -> Iterator[tuple[Batch, ...]]:
    """The outcome of each batch at each radius. replicas: of the model.  batches: of the examples' places in x."""
    proofs = make_proofs(model, x, plan, norm, device)
    shares = make_shares(replicas, device, fork=is_worth_forks(plan))
    pieces = Pieces()  # of what attacks keep for each example; what a pass takes the replicas see to
    how = partial(judge_fixed, replicas) if shares is None else partial(judge_shared, shares)
    how = partial(how, plan=plan, norm=norm, proofs=proofs)
    for rows in batches:
        images, labels = as_images(x[rows], device), y[rows].to(device)
        own = Draws(seed, rows.to(device))
        with replicas.playing():
            parts = pieces.of(len(rows), lambda part: how(images[part], labels[part], own[part]))  # noqa: B023
        yield tuple(one_below_the_other(found) for found in zip(*parts, strict=True))


def judge_shared(
    shares: Shares,
    x: Tensor,
    y: Tensor,
    draws: Draws,
    plan: Plan,
    norm: Norm,
    proofs: Proofs | None,
) -> tuple[Batch, ...]:
    """`judge_fixed`, each thread or process with its share of the examples."""

    def work(replicas: Replicas, rows: Tensor) -> tuple[Batch, ...]:
        found = judge_fixed(replicas, x[rows], y[rows], draws[rows], plan, norm, proofs)
        # A radius's images lie in the memory of all radii, which would be sent along with each.
        return tuple(replace(batch, x_adv=batch.x_adv.clone()) for batch in found)

    parts = shares.scatter(len(x), work)
    place = torch.cat([rows for rows, _ in parts]).argsort()
    return tuple(gather(batches, place) for batches in zip(*(found for _, found in parts), strict=True))


def judge_fixed(
    replicas: Replicas,
    x: Tensor,
    y: Tensor,
    draws: Draws,
    plan: Plan,
    norm: Norm,
    proofs: Proofs | None,
) -> tuple[Batch, ...]:
    """A batch's outcome at each radius, for a model that always gives the same answer."""
    exact, search = replicas.exact, replicas.for_radius(plan[0][0])
    clean = verdict(exact, search, x, y)
    attacks = [(eps, [attack for _, attack in given(named, replicas.surrogate)]) for eps, named in plan]
    if len(plan) == 1:
        names = {name for name, _ in plan[0][1]}
        standing = y if names and names <= ON_ALL else clean
        known: Any = {"draws": draws, "search": search, "clean": standing, "proofs": proofs}
        results = [attack_in_sequence(exact, x, y, attacks[0][1], **known)]
    else:
        radii = [(eps, chosen) for eps, chosen in attacks if eps is not None]
        assert len(radii) == len(plan)
        results = curve(exact, x, y, radii, norm=norm, draws=draws, search=search, clean=clean, proofs=proofs)
    found = []
    for (eps, named), result in zip(plan, results, strict=True):
        names = [name for name, _ in named]
        check_budget(result.x_adv, x, norm, eps, names)
        by = np.array([*names, NOTHING, CLEAN])[result.broken_by.cpu()]  # the last is position -1: wrong as it is
        scores = (Score.fixed(clean, y), Score.fixed(result.prediction, y))
        outcome = judge(
            draws.index, y, *scores, size(result.x_adv - x, norm), by, result.queries, result.radius_queries
        )
        proved = None if result.proved is None or proofs is None else result.proved.cpu().numpy()
        found.append(Batch(outcome, result.x_adv, result.broken_by.cpu().numpy(), result.seconds, proved))
    return tuple(found)
