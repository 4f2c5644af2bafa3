"""The evaluation of a model, clean and attacked: every error of it by a fresh pass of the model in strict float32."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.arguments import Norm, checked_options
from robustlib.attacks import ATTACKS
from robustlib.attacks.autoattack import Named
from robustlib.attacks.types import AttackFunction, as_stage
from robustlib.checks.evaluation_checks import look_at_model
from robustlib.checks.thresholds import CheckResult
from robustlib.datasets.lazy_images import ImageSet
from robustlib.evaluation.attack_sequence import attack_in_sequence
from robustlib.evaluation.multi_radius import curve
from robustlib.evaluation.randomised_models import GROUP, judge_randomised
from robustlib.inference.expectation import is_randomised
from robustlib.inference.fast_copy import Replicas, make_replicas
from robustlib.inference.model_modes import (
    as_images,
    as_module,
    device_of,
    each_within,
    evaluating,
    layout,
    moved,
    strict_float32,
)
from robustlib.inference.predict import verdict
from robustlib.inference.replica import Replica
from robustlib.inference.threads import Shares, make_shares, make_threaded, thread_count, threads_each, threads_of
from robustlib.input_checks import check_data, check_highest, check_radii
from robustlib.memory import Pieces, as_many_as_fit, free_memory
from robustlib.metrics import CLEAN, NOTHING
from robustlib.norms import size
from robustlib.outcome import Batch, Score, check_budget, check_classes, gather, judge, one_below_the_other
from robustlib.rng import Draws, seeded
from robustlib.settings import ON_ALL

Plan = Sequence[tuple[float | None, Sequence[Named]]]  # radii, each with its attacks by name

MANY = 500  # passes of an example at one radius, from which on its attacks are shared out among processes
SAMPLE = 64  # of the data set's first images, whatever is asked: what a model is looked at with before it is evaluated


@dataclass(frozen=True)
class Ready:
    """A model ready to be evaluated. replicas: None for a randomised model.  classes: logits that it gives.

    checks: those of the model itself.
    """

    model: nn.Module
    replicas: Replicas | None
    classes: int
    seconds: float
    checks: tuple[CheckResult, ...] = ()

    def mode(self, eps: float | None) -> str:
        """In which form the model is searched within this radius, in words."""
        if self.replicas is None:
            return "float32, randomised: expectation over draws"
        return self.replicas.for_radius(eps).mode

    def as_surrogate(self) -> Replica:
        """What images for other models are made on. Raises ValueError where that leads nowhere."""
        if self.replicas is None:
            raise ValueError("the surrogate changes its answers from pass to pass: expected one that does not")
        if any(found.name == "gradient" and found.value == 1 for found in self.checks):
            raise ValueError("the surrogate has no gradient to make images by: expected a network that has one")
        return self.replicas.search


def evaluate_batches(
    model: nn.Module,
    x: ImageSet,
    y: Tensor,
    attacks: Sequence[tuple[str, AttackFunction]],
    *,
    norm: Norm = "Linf",
    eps: float | None = None,
    **options: Any,
) -> Iterator[Batch]:
    """Attack a model batch by batch, each attack on what the ones before it left standing.

    attacks: by name, called as `attack(model, x, y, draws=...)`; norm and eps (in units of x; None for no limit) are
    the budget that their images are checked against.  For everything else see `evaluate_curve`.
    """
    for (batch,) in evaluate_curve(model, x, y, [(eps, attacks)], norm=norm, **options):
        yield batch


@checked_options
def evaluate_curve(
    model: nn.Module,
    x: ImageSet,
    y: Tensor,
    plan: Plan,
    *,
    norm: Norm = "Linf",
    seed: int = 0,
    index: Tensor | None = None,
    num_classes: int | None = None,
    batch_size: int | None = None,
    draws: int = 100,
    eot_draws: int = 20,
    device: torch.device | None = None,
    ready: Ready | None = None,
    surrogate: Replica | None = None,
) -> Iterator[tuple[Batch, ...]]:
    """Evaluate at several radii as one search, batch by batch; a batch's outcome at each radius, in their order.

    x: images, uint8 or floats in [0, 1], shape (N, C, H, W), or decoded as they are needed.  y: classes, shape (N,).
    plan: radii, rising, each with its attacks by name: see robustlib.evaluation.multi_radius.
    index: which of the examples to evaluate; all where it is None.  batch_size: how many are worked on together; chosen
    by memory where it is None. No number depends on either: an example's randomness belongs to its place in x.
    ready: the model made ready by `make_ready` with the same x; made here where it is None.  surrogate: for attacks
    that take one and have none, `Ready.as_surrogate()` of another model.
    device: where to work; where it is None, the model's own, and of a model made ready that it was made ready on.
    A model whose logits change between passes is randomised: it is attacked through the mean of `eot_draws` passes and
    scored on `draws` fresh ones, each radius by itself, in groups of `GROUP` examples that share their passes.
    Raises ValueError for images outside [0, 1] or labels that the model has no class for, RuntimeError when an attack
    breaks its budget.
    """
    highest = check_data("evaluate", x, y, index)
    check_radii("evaluate", norm, [eps for eps, _ in plan])
    device = device or device_of(as_module("evaluate", model) if ready is None else ready.model, x)
    ready = ready or make_ready(model, x, num_classes or highest + 1, device)
    check_highest("evaluate", highest, ready.classes)
    chosen = torch.arange(len(x)) if index is None else index
    size = GROUP if ready.replicas is None else batch_size or fitting(x[:1], device)

    def steps() -> Iterator[tuple[Batch, ...]]:
        replicas = None if ready.replicas is None else replace(ready.replicas, surrogate=surrogate)
        shares = None if replicas is None else make_shares(replicas, device, fork=is_worth_forks(plan))
        for replica in () if replicas is None else replicas.every:
            replica.recordings.forget()  # the mode tells of this evaluation
        pieces = Pieces()  # of what attacks keep for each example; what a pass takes the replicas see to
        for rows in batches(chosen, size, grouped=replicas is None):
            images, labels = as_images(x[rows], device), y[rows].to(device)
            own = Draws(seed, rows.to(device))
            if replicas is None:
                images = images.contiguous(memory_format=layout(ready.model))
                budgets = [(eps, given(named, surrogate)) for eps, named in plan]
                with seeded(seed, f"evaluate/{int(rows[0]) // GROUP}", device):
                    found = tuple(
                        judge_randomised(ready.model, images, labels, own, norm, eps, named, draws, eot_draws)
                        for eps, named in budgets
                    )
            else:
                how = partial(judge_fixed, replicas) if shares is None else partial(judge_shared, shares)
                parts = pieces.of(len(rows), lambda part: how(images[part], labels[part], own[part], plan, norm))  # noqa: B023
                found = tuple(one_below_the_other(batches) for batches in zip(*parts, strict=True))
            yield found

    yield from each_within(steps(), strict_float32, partial(evaluating, ready.model))


def is_worth_forks(plan: Plan) -> bool:
    """Whether the attacks are ours, since what a user's does besides must be done in this process, and so long that the
    making of processes, some 0.1 s, is little: of few passes, in large batches, Python has little to do.
    """
    attacks = [(name, as_stage(attack)) for _, named in plan for name, attack in named]
    if not all(stage.is_ours for _, stage in attacks):
        return False
    known = [(ATTACKS[name], stage.defaults) for name, stage in attacks if name in ATTACKS]
    passes = [attack.cost(given).forwards for attack, given in known if attack.defaults.keys() <= given.keys()]
    return sum(passes) >= len(plan) * MANY


def make_ready(model: nn.Module, x: ImageSet, num_classes: int, device: torch.device) -> Ready:
    """Look at the model with the first images of the data set, and make its search copy; on a GPU, warm it up.

    Raises ValueError for a model that does not give a finite logit for each of the classes.
    """
    start = time.perf_counter()
    model = moved(as_module("evaluate", model), device)
    with strict_float32(), evaluating(model), seeded(0, "evaluate/randomised", device):
        sample = as_images(x[:SAMPLE], device, layout(model))
        classes = check_classes(model, sample, num_classes)
        randomised = as_many_as_fit(lambda n: is_randomised(model, sample[:n]), min(len(sample), 16))
        replicas = None if randomised else replicas_for_threads(model, sample)
        checks = look_at_model(model, sample, randomised=replicas is None)
    return Ready(model, replicas, classes, time.perf_counter() - start, tuple(checks))


def replicas_for_threads(model: nn.Module, sample: Tensor) -> Replicas:
    """Replicas made, and their batch sizes chosen, with as many threads as they will be called with."""
    if sample.is_cuda:
        return make_replicas(model, sample)
    with threads_of(threads_each()):
        replicas = make_replicas(model, sample)
    if thread_count() > 1 and make_threaded(replicas, sample.device) is None:
        return make_replicas(model, sample)
    return replicas


def fitting(x: Tensor, device: torch.device) -> int:
    """How many examples to work on together: attacks keep some twenty images for each of them."""
    free = free_memory(device) if device.type == "cuda" else 4 * 2**30
    most = 8192 if device.type == "cuda" else 2048
    return max(16, min(most, free // 4 // (20 * 4 * x.numel())))


def batches(chosen: Tensor, batch_size: int, *, grouped: bool) -> Iterator[Tensor]:
    """The chosen examples in batches: as they come, or in order and cut at multiples of the batch size."""
    if not grouped:
        yield from chosen.split(batch_size)
        return
    chosen = chosen.sort().values
    _, counts = (chosen // batch_size).unique_consecutive(return_counts=True)
    yield from chosen.split(counts.tolist())


def given(named: Sequence[tuple[str, AttackFunction]], surrogate: Replica | None) -> list[tuple[str, AttackFunction]]:
    """The attacks, those that make their images on a surrogate with it."""
    if surrogate is None:
        return list(named)
    stages = [(name, as_stage(attack)) for name, attack in named]
    return [(name, stage.given(surrogate=surrogate) if stage.lacks_surrogate else stage) for name, stage in stages]


def judge_shared(
    shares: Shares,
    x: Tensor,
    y: Tensor,
    draws: Draws,
    plan: Plan,
    norm: Norm,
) -> tuple[Batch, ...]:
    """`judge_fixed`, each thread or process with its share of the examples."""

    def work(replicas: Replicas, rows: Tensor) -> tuple[Batch, ...]:
        found = judge_fixed(replicas, x[rows], y[rows], draws[rows], plan, norm)
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
) -> tuple[Batch, ...]:
    """A batch's outcome at each radius, for a model that always gives the same answer."""
    exact, search = replicas.exact, replicas.for_radius(plan[0][0])
    clean = verdict(exact, search, x, y)
    attacks = [(eps, [attack for _, attack in given(named, replicas.surrogate)]) for eps, named in plan]
    if len(plan) == 1:
        names = {name for name, _ in plan[0][1]}
        standing = y if names and names <= ON_ALL else clean
        results = [attack_in_sequence(exact, x, y, attacks[0][1], draws=draws, search=search, clean=standing)]
    else:
        radii = [(eps, chosen) for eps, chosen in attacks if eps is not None]
        assert len(radii) == len(plan)
        results = curve(exact, x, y, radii, norm=norm, draws=draws, search=search, clean=clean)
    found = []
    for (eps, named), result in zip(plan, results, strict=True):
        names = [name for name, _ in named]
        check_budget(result.x_adv, x, norm, eps, names)
        by = np.array([*names, NOTHING, CLEAN])[result.broken_by.cpu()]  # the last is position -1: wrong as it is
        scores = (Score.fixed(clean, y), Score.fixed(result.prediction, y))
        outcome = judge(
            draws.index, y, *scores, size(result.x_adv - x, norm), by, result.queries, result.radius_queries
        )
        found.append(Batch(outcome, result.x_adv, result.broken_by.cpu().numpy(), result.seconds))
    return tuple(found)
