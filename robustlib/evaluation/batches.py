"""The evaluation of a model, clean and attacked: every error of it by a fresh pass of the model in strict float32."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robustlib.arguments import Norm, checked_options
from robustlib.attacks.types import AttackFunction
from robustlib.checks.evaluation_checks import look_at_model
from robustlib.checks.thresholds import CheckResult
from robustlib.datasets.lazy_images import ImageSet
from robustlib.evaluation.fixed_models import fixed_batches
from robustlib.evaluation.plans import Plan, given
from robustlib.evaluation.randomised_models import GROUP, randomised_batches
from robustlib.inference.expectation import is_randomised
from robustlib.inference.fast_copy import make_replicas
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
from robustlib.inference.replica import Replica
from robustlib.inference.replicas import Replicas
from robustlib.inference.threads import make_threaded, thread_count, threads_each, threads_of
from robustlib.input_checks import check_data, check_highest, check_radii
from robustlib.memory import as_many_as_fit, free_memory
from robustlib.outcome import Batch, check_classes
from robustlib.rng import seeded

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
        """In which form the model was searched within this radius, in words, by evaluations that were given this."""
        if self.replicas is None:
            return "float32, randomised: expectation over draws"
        return self.replicas.mode(eps)

    def for_evaluation(self) -> "Ready":
        """The same model with a `mode` of its own: what other evaluations of it do is none of its words."""
        return self if self.replicas is None else replace(self, replicas=self.replicas.for_evaluation())

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
    shared: Any = {"norm": norm, "seed": seed, "device": device}
    if ready.replicas is None:
        rows = batches(chosen, GROUP, grouped=True)
        chance: Any = {"draws": draws, "eot_draws": eot_draws}
        steps = randomised_batches(
            ready.model, x, y, rows, [(eps, given(named, surrogate)) for eps, named in plan], **chance, **shared
        )
    else:
        rows = batches(chosen, batch_size or fitting(x[:1], device), grouped=False)
        steps = fixed_batches(ready.model, replace(ready.replicas, surrogate=surrogate), x, y, rows, plan, **shared)
    yield from each_within(steps, strict_float32, partial(evaluating, ready.model))


def make_ready(model: nn.Module, x: ImageSet, num_classes: int, device: torch.device) -> Ready:
    """Look at the model with the first images of the data set, and make its search copy.

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
