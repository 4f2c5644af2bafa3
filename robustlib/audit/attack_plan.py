"""The attack plan of an audit: the standard attacks, then those of an expert where a gradient leads nowhere."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks import ATTACKS
from robustlib.attacks.apgd import apgd, apgd_targeted
from robustlib.attacks.hopskipjump import hopskipjump
from robustlib.attacks.pgd import pgd
from robustlib.attacks.random_search import noise
from robustlib.attacks.spsa import nes
from robustlib.attacks.square import square
from robustlib.audit.gradient_bypass import (
    DifferentiableModel,
    LinearSurrogates,
    hidden_scores,
    input_surrogates,
    module_surrogates,
)
from robustlib.audit.session import RunAttack
from robustlib.checks.gradient_checks import margin_and_gradient
from robustlib.inference.batch_sizes import batch_sizes
from robustlib.inference.expectation import Expectation
from robustlib.inference.model_modes import layout
from robustlib.inference.replica import Replica
from robustlib.input_checks import unchecked
from robustlib.memory import as_many_as_fit, out_of_memory
from robustlib.model_calls import ask
from robustlib.models.black_box import BlackBoxModel
from robustlib.norms import draw_in_ball
from robustlib.number_text import counted
from robustlib.rng import Draws

STEPS = 50  # of each gradient attack: enough to see whether a gradient leads anywhere
SAME = 0.99  # mean cosine from which two gradients are the same
EOT = 10  # draws a step of a model whose gradients change much from draw to draw
NEIGHBOURS = 10  # over which a rugged loss is averaged


@dataclass(frozen=True)
class Target:
    """The model as it is attacked here. exact: as it judges.  search: the quickest copy.

    randomised: answers change from pass to pass.  gradient: its answer has one.  classes: how many.
    judge: what forms of the model are believed by; None where it is randomised.  eot: draws a step, where it is so.
    """

    model: nn.Module
    exact: nn.Module
    search: nn.Module
    randomised: bool
    gradient: bool
    classes: int
    judge: Replica | None = None
    eot: int = EOT

    def through(self, form: nn.Module, x: Tensor) -> nn.Module:
        """A form of the model as attacks call it: in batches that fit, believed only where the model is fooled too."""
        if self.judge is None:
            return Expectation(form, self.eot)
        sizes = batch_sizes(x) if self.judge.sizes else ()
        return Replica(form, sizes=sizes, memory_format=layout(self.model), judge=self.judge)


class Neighbourhood(nn.Module):
    """Logits averaged over random points near an image: a rugged loss has a gradient there that leads somewhere."""

    def __init__(self, model: nn.Module, radius: float, norm: Norm):
        super().__init__()
        self.model, self.radius = model, radius
        self.norm: Norm = norm

    def forward(self, x: Tensor) -> Tensor:
        index = torch.arange(len(x), device=x.device)
        points = [
            (x + draw_in_ball(x, self.radius, self.norm, Draws(turn, index), "audit/near")).clamp(0, 1)
            for turn in range(NEIGHBOURS)
        ]
        return torch.stack([ask(self.model, point) for point in points]).mean(0)


def is_black_box(model: nn.Module) -> bool:
    """Whether somebody else computes its answers: a callable, or a server."""
    return any(isinstance(layer, BlackBoxModel) for layer in model.modules())


def queries_per_draw(target: Target, queries: int) -> int:
    """Queries that an attack has if each answer is the mean of draws, and each draw a query of the model."""
    return queries // target.eot if target.randomised else queries


def reaches_first_step(name: str, queries: int) -> bool:
    """Whether so many queries bring the attack to its first step."""
    attack = ATTACKS[name]
    return attack.first_step is None or queries >= attack.first_step(attack.defaults)


def left_out(target: Target, norm: Norm, pool: Tensor | None, queries: int) -> list[tuple[str, str]]:
    """Attacks that an audit would try and cannot, with the reason."""
    found = []
    if not target.gradient:
        why = "it only answers" if is_black_box(target.model) else "no gradient of its answer reaches the images"
        found.append(("PGD, FGSM and Auto-PGD on the model's own gradient", why))
    if norm == "L1":
        found.append(("NES, HopSkipJump and PGD on a surrogate", "they are not for L1"))
        return found
    each = queries_per_draw(target, queries)
    for words, attack in (("NES", "nes"), ("HopSkipJump", "hopskipjump")):
        if not reaches_first_step(attack, each):
            found.append((words, f"{counted(each, 'query does', 'queries do')} not bring it to a step"))
    if pool is None:
        found.append(("PGD on a surrogate", "there are no images to learn from but those attacked"))
    return found


class PlannedAttack(NamedTuple):
    """An attack of the plan. name: in words.  remedy: which of robustlib.audit.explanations.REMEDIES it belongs to.

    probe: whether it is tried on some images first, and on all only if it succeeds there.
    """

    name: str
    remedy: str
    run: RunAttack
    probe: bool


def naive_attack(target: Target, norm: Norm, eps: float, steps: int = STEPS) -> RunAttack:
    """PGD as a library runs it out of the box: on the cross-entropy of one pass, with no question asked."""
    step = eps / 4 if norm == "Linf" else 2.5 * eps / steps

    def run_attack(x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        if not target.gradient:
            return x
        options = {"norm": norm, "eps": eps, "steps": steps, "step_size": step}
        # Libraries take every step. Only a fixed model gives the same verdict after those that follow success.
        # Unchecked: at twice the radius the ball may be wider than the box.
        return unchecked(pgd)(target.exact, x, y, **options, stop_at_success=not target.randomised, draws=draws)

    return run_attack


def attacking(attack: partial[Tensor], model: nn.Module) -> RunAttack:
    return lambda x, y, draws: attack(model, x, y, draws=draws)


def standard_attacks(target: Target, norm: Norm, eps: float) -> Iterator[PlannedAttack]:
    """Attacks with gradients on the model as it is given, through the expectation where it is randomised."""
    if not target.gradient:
        return
    budget = {"norm": norm, "eps": eps, "steps": STEPS}
    model = Expectation(target.model, target.eot) if target.randomised else target.search
    if target.randomised:
        run = attacking(partial(ATTACKS["pgd"], **budget), model)
        yield PlannedAttack("PGD, expectation over draws", "expectation", run, False)
    loss = "dlr" if target.classes >= 4 else "margin"
    yield PlannedAttack("Auto-PGD", "standard", attacking(partial(apgd, **budget, loss="ce"), model), False)
    yield PlannedAttack("Auto-PGD, margin", "margin", attacking(partial(apgd, **budget, loss="margin"), model), False)
    if target.randomised:
        return
    run = attacking(partial(apgd_targeted, **budget, loss=loss, targets=4), model)
    yield PlannedAttack("targeted Auto-PGD", "margin", run, False)


def score_attacks(target: Target, norm: Norm, eps: float, queries: int) -> Iterator[PlannedAttack]:
    """Search by the scores alone."""
    budget = {"norm": norm, "eps": eps}
    model = Expectation(target.model, target.eot) if target.randomised else target.search
    fewer = queries_per_draw(target, queries)
    run = attacking(partial(noise, **budget, queries=max(fewer // 10, 20)), model)
    yield PlannedAttack("random noise", "noise", run, False)
    run = attacking(partial(unchecked(square), **budget, queries=fewer), model)
    yield PlannedAttack("Square", "gradient-free", run, target.randomised)


def differentiable_forms(target: Target, x: Tensor) -> Iterator[tuple[str, str, DifferentiableModel]]:
    """Forms of the model that have another gradient than the model itself, found on some images `x`."""
    model = target.model

    def look(n: int) -> tuple[Tensor, int | None, int | None, LinearSurrogates, LinearSurrogates]:
        some = x[:n]
        scores = hidden_scores(model, some), hidden_scores(model, some, steps=True)
        return some, *scores, input_surrogates(model, some), module_surrogates(model, some)

    x, place, behind, before, across = as_many_as_fit(look, len(x))
    candidates = [
        ("scores behind the answer", "scores", {"scores": place}),
        (
            "straight through what has no gradient",
            "straight-through",
            {"scores": behind, "steps": True, "across": across},
        ),
        (
            "straight through all before the first layer",
            "straight-through",
            {"scores": behind, "steps": True, "across": across, "before": before},
        ),
        ("float64", "float64", {"scores": place, "double": True}),
    ]
    known = [margin_gradient(target.model, x)] if target.gradient else []
    for name, remedy, options in candidates:
        if not any(value is not None and value is not False for value in options.values()):
            continue
        form = make_form(model, **options)
        slope = None if form is None else margin_gradient(form, x)
        if form is None or slope is None or not slope.any() or any(same_gradient(slope, other) for other in known):
            continue
        known.append(slope)
        yield name, remedy, form


def make_form(model: nn.Module, **options: Any) -> DifferentiableModel | None:
    """A form of the model; None if it should be in float64 and the model cannot be copied or cast."""
    try:
        return DifferentiableModel(model, **options)
    except Exception as error:  # a user's model may hold on to anything
        if out_of_memory(error):
            raise
        return None


def eot_draws_needed(model: nn.Module, x: Tensor) -> int:
    """Draws a step of a randomised model: few where one draw's gradient is much like another's."""
    first, second = margin_gradient(model, x), margin_gradient(model, x)
    if first is None or second is None:
        return EOT
    first, second = common_rows(first, second)
    alike = torch.nn.functional.cosine_similarity(first.flatten(1), second.flatten(1), dim=1).mean()
    return 1 if alike > 0.95 else 3 if alike > 0.7 else EOT


def margin_gradient(model: nn.Module, x: Tensor) -> Tensor | None:
    """The margin's gradient at some images, as many of them as memory holds; None where the model has none."""

    def look(n: int) -> Tensor:
        with torch.no_grad():
            y = ask(model, x[:n]).argmax(1)
        return margin_and_gradient(model, x[:n], y)[1]

    try:
        return as_many_as_fit(look, len(x))
    except (ValueError, RuntimeError, TypeError, IndexError, NotImplementedError) as error:
        if out_of_memory(error):
            raise
        return None  # a form that this model does not take, such as float64: the next is tried


def common_rows(slope: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients at the images that memory held both times."""
    n = min(len(slope), len(other))
    return slope[:n], other[:n]


def same_gradient(slope: Tensor, other: Tensor | None) -> bool:
    if other is None or not other.any():
        return False
    slope, other = common_rows(slope, other)
    cosine = torch.nn.functional.cosine_similarity(slope.flatten(1).double(), other.flatten(1).double(), dim=1)
    return bool(cosine.mean() > SAME)


def bpda_attacks(target: Target, x: Tensor, norm: Norm, eps: float) -> Iterator[PlannedAttack]:
    """Attacks on differentiable forms of the model (BPDA, and the scores behind its answer). x: some images."""
    attack = partial(apgd, norm=norm, eps=eps, steps=STEPS, loss="margin")
    for name, remedy, form in differentiable_forms(target, x[:16]):
        yield PlannedAttack(f"Auto-PGD, {name}", remedy, attacking(attack, target.through(form, x)), False)


def fallback_attacks(target: Target, x: Tensor, norm: Norm, eps: float, queries: int) -> Iterator[PlannedAttack]:
    """Costly attacks that find little if gradients are sound: on some images first."""
    attack = partial(apgd, norm=norm, eps=eps, steps=STEPS, loss="margin")
    if target.gradient:
        near = Neighbourhood(target.model, eps, norm)
        # A randomised model's neighbours have each their own draw.
        model = near if target.randomised else target.through(near, x)
        yield PlannedAttack("Auto-PGD, averaged over neighbours", "smoothed", attacking(attack, model), True)
    free = {"norm": norm, "eps": eps, "queries": queries_per_draw(target, queries)}
    model = Expectation(target.model, target.eot) if target.randomised else target.exact
    if norm != "L1":
        if reaches_first_step("nes", free["queries"]):
            yield PlannedAttack("NES", "gradient-free", attacking(partial(unchecked(nes), **free), model), True)
        if reaches_first_step("hopskipjump", free["queries"]):
            run = attacking(partial(unchecked(hopskipjump), **free), model)
            yield PlannedAttack("HopSkipJump", "decision", run, True)
