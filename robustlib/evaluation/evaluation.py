"""The evaluation of a model by one call: accuracies with their intervals, a verdict, outcomes and attacked images."""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.arguments import Norm, checked_options
from robustlib.attacks import ATTACKS, ENSEMBLES
from robustlib.attacks.autoattack import Recipe
from robustlib.attacks.types import AttackFunction, Ensemble, Stage, as_stage
from robustlib.checks.consistency import across_stages
from robustlib.checks.thresholds import CheckResult, overall
from robustlib.datasets.lazy_images import ImageSet
from robustlib.evaluation.batches import evaluate_curve, make_ready
from robustlib.evaluation.outcome_checks import check_outcome
from robustlib.inference.model_modes import as_module, device_of
from robustlib.input_checks import check_data
from robustlib.metrics import summarise
from robustlib.names import unknown
from robustlib.outcome import Outcome, all_proved, join

KNOWN: dict[str, Stage] = {**ATTACKS, **ENSEMBLES}


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    outcome: what happened to each example, arrays of length N.  x_adv: the attacked images, float32, shape
    (N, C, H, W), on the CPU; where nothing was found, the clean image, or of a randomised model the image on which the
    fewest draws were right.
    checks: whether the number deserves trust.  mode: in which arithmetic attacks searched.
    substitutions: what of an ensemble the number of classes did not allow, and what ran in its place.
    proved: which images bounds prove to stand, bool, shape (N,), of those that were tried; None where none were.
    """

    outcome: Outcome = field(repr=False)
    x_adv: Tensor = field(repr=False)
    checks: list[CheckResult] = field(repr=False)
    mode: str
    substitutions: tuple[str, ...] = ()
    proved: np.ndarray | None = field(default=None, repr=False)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """All numbers by the names that result rows have."""
        return summarise(vars(self.outcome))

    @property
    def clean_accuracy(self) -> float:
        return self.summary["clean_accuracy"]

    @property
    def robust_accuracy(self) -> float:
        """The share of images that are classified correctly after the attack; of a randomised model, of draws too."""
        return self.summary["robust_accuracy"]

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the robust accuracy."""
        return self.summary["robust_accuracy_low"], self.summary["robust_accuracy_high"]

    @property
    def verdict(self) -> str:
        """The worst of the checks: "pass", "warn" or "fail". A number that fails is not to be trusted."""
        return overall(self.checks)


@checked_options
def evaluate(
    model: nn.Module,
    x: ImageSet,
    y: Tensor,
    attack: str | AttackFunction | Sequence[str | AttackFunction] = "autoattack",
    *,
    norm: Norm = "Linf",
    eps: float | None = 8 / 255,
    seed: int = 0,
    draws: int = 100,
    eot_draws: int = 20,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
) -> Evaluation:
    """Attack a model and say what it withstood.

    model: from images to logits; normalisation is its first layer.  x: images, floats in [0, 1] or uint8, shape
    (N, C, H, W).  y: classes, int64, shape (N,).
    attack: names of ATTACKS and ENSEMBLES, or functions `attack(model, x, y, *, norm, eps, draws) -> x_adv`, such as
    `functools.partial(pgd, steps=100)`; several run in turn, each on the images that are robust so far. A function that
    is not ours, but has the name of an attack of ours, is told by "own" before it.
    norm, eps: the budget, eps in units of x; None for attacks that look for the nearest misclassified image.
    draws, eot_draws: of a model that changes its answers from pass to pass, how many score it, and how many an attack
    climbs the mean of.  seed: of the attacks' random numbers, which are the examples' own.
    batch_size: how many images are worked on together; no number depends on it.  device: where; None for the model's.
    Raises ValueError for images outside [0, 1], labels that the model has no class for, a norm that an attack does not
    take. Each success is a fresh pass of the model in strict float32 on an image within the budget.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("evaluate: expected a call outside of torch.inference_mode(), in which nothing has a gradient")
    highest = check_data("evaluate", x, y)
    several: Any = attack if isinstance(attack, Iterable) and not isinstance(attack, str) else [attack]
    stages = [find_stage(each) for each in several]
    if not stages:
        raise ValueError("evaluate: expected at least one attack, got none")
    device = device_of(as_module("evaluate", model), x) if device is None else torch.device(device)
    ready = make_ready(model, x, highest + 1, device)
    recipes = [with_budget(name, stage, norm, eps, ready.classes) for name, stage in stages]
    named = [each for recipe in recipes for each in recipe.stages]
    chance: Any = {"seed": seed, "draws": draws, "eot_draws": eot_draws}
    bounded = any(name not in ATTACKS or ATTACKS[name].norms for name, _ in named)
    eps = eps if bounded else None  # images as they are, or corrupted, have no budget
    found = evaluate_curve(
        ready.model, x, y, [(eps, named)], norm=norm, batch_size=batch_size, device=device, ready=ready, **chance
    )
    batches = [batch for (batch,) in found]
    outcome, x_adv = join([batch.outcome for batch in batches]), torch.cat([batch.x_adv.cpu() for batch in batches])
    checks = check_outcome(
        ready, x, outcome, x_adv, norm=norm if bounded else None, eps=eps, seed=seed, attacks=[one for _, one in named],
        eot_draws=eot_draws, device=device,
    )  # fmt: skip
    if ready.replicas is not None:
        checks += across_stages([name for name, _ in named], vars(outcome))
    substitutions = tuple(dict.fromkeys(words for recipe in recipes for words in recipe.substitutions))
    return Evaluation(outcome, x_adv, checks, ready.mode(eps), substitutions, all_proved(batches))


def find_stage(attack: str | AttackFunction) -> tuple[str, Stage]:
    """An attack or an ensemble, by name or as a function, with its name."""
    if isinstance(attack, str):
        if attack not in KNOWN:
            raise ValueError(unknown("attack", attack, KNOWN))
        return attack, KNOWN[attack]
    if not callable(attack):
        raise TypeError(f"evaluate: expected attacks by name or as functions, got {type(attack).__name__}")
    stage, name = as_stage(attack), name_of(attack)
    return name, Ensemble(stage.run) if name in ENSEMBLES else stage


def with_budget(name: str, stage: Stage, norm: Norm, eps: float | None, classes: int) -> Recipe:
    """The attacks to run in turn, with the budget given to those that take one."""
    if isinstance(stage, Ensemble):
        return stage(norm=norm, eps=eps, classes=classes)
    budget = {option: value for option, value in (("norm", norm), ("eps", eps)) if option in stage.params}
    return Recipe(name, [(name, stage.given(**budget))])


def name_of(attack: AttackFunction) -> str:
    """The one it is known by; else the function's, also where some of its arguments are given."""
    if (known := next((name for name, stage in KNOWN.items() if stage is attack), None)) is not None:
        return known
    if isinstance(attack, partial | Stage):
        return name_of(attack.func if isinstance(attack, partial) else attack.run)
    name = getattr(attack, "__name__", type(attack).__name__)
    ours = name not in KNOWN or function_of(KNOWN[name]) is function_of(attack)
    return name if ours else f"own {name}"


def function_of(attack: AttackFunction) -> AttackFunction:
    """The function itself, without what is given and what checks its arguments."""
    while isinstance(attack, partial | Stage):
        attack = attack.func if isinstance(attack, partial) else attack.run
    return inspect.unwrap(attack)
