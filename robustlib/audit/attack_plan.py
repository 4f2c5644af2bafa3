"""The attack plan of an audit: the standard attacks, then those of an expert where a gradient leads nowhere."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

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
from robustlib.audit.gradient_bypass import Form, Lines, hidden_scores, lines_across, lines_before
from robustlib.audit.session import Strike
from robustlib.checks.gradient_checks import margin_and_slope
from robustlib.inference.batched_model import Engine, batch_sizes
from robustlib.inference.expectation import Expectation
from robustlib.inference.model_modes import layout
from robustlib.input_checks import unchecked
from robustlib.memory import as_many_as_fit, out_of_memory
from robustlib.model_calls import ask
from robustlib.models.black_box import Answers
from robustlib.norms import draw_in_ball
from robustlib.rng import Draws

STEPS = 50  # of each gradient attack: enough to see whether a gradient leads anywhere
SAME = 0.99  # mean cosine from which two gradients are the same
EOT = 10  # draws a step of a model whose gradients change much from draw to draw
NEIGHBOURS = 10  # over which a rugged loss is averaged


@dataclass(frozen=True)
class Target:
    """The model as it is attacked here. exact: as it judges.  search: the quickest copy.

    randomised: answers change from pass to pass.  gradient: its answer has one.  classes: how many.
    eot: draws a step, where it is randomised.
    """

    model: nn.Module
    exact: nn.Module
    search: nn.Module
    randomised: bool
    gradient: bool
    classes: int
    eot: int = EOT

    def through(self, form: nn.Module, x: Tensor) -> nn.Module:
        """A form of the model as attacks call it: in batches that fit, believed only where the model is fooled too."""
        if self.randomised:
            return Expectation(form, self.eot)
        assert isinstance(self.exact, Engine)
        sizes = batch_sizes(x) if self.exact.sizes else ()
        return Engine(form, sizes=sizes, memory_format=layout(self.model), judge=self.exact.forward)


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


def only_answers(model: nn.Module) -> bool:
    """Whether somebody else computes its answers: a callable, or a server."""
    return any(isinstance(layer, Answers) for layer in model.modules())


def each_draws(target: Target, queries: int) -> int:
    """Queries of an attack on the mean of draws, each of which is a query of the model."""
    return queries // target.eot if target.randomised else queries


def takes_a_step(name: str, queries: int) -> bool:
    """Whether so many queries bring the attack to its first step."""
    attack = ATTACKS[name]
    return attack.first_step is None or queries >= attack.first_step(attack.defaults)


def left_out(target: Target, norm: Norm, pool: Tensor | None, queries: int) -> list[tuple[str, str]]:
    """What an audit would try, and cannot, with the reason."""
    found = []
    if not target.gradient:
        why = "it only answers" if only_answers(target.model) else "no gradient of its answer reaches the images"
        found.append(("PGD, FGSM and Auto-PGD on the model's own gradient", why))
    if norm == "L1":
        found.append(("NES, HopSkipJump and PGD on a surrogate", "they are not for L1"))
        return found
    each = each_draws(target, queries)
    for words, attack in (("NES", "nes"), ("HopSkipJump", "hopskipjump")):
        if not takes_a_step(attack, each):
            found.append((words, f"{each} queries do not bring it to a step"))
    if pool is None:
        found.append(("PGD on a surrogate", "there are no images to learn from but those attacked"))
    return found


Move = tuple[str, str, Strike, bool]  # what is tried, which remedy it is, how, and whether on some images first


def naive(target: Target, norm: Norm, eps: float, steps: int = STEPS) -> Strike:
    """What a library does out of the box: PGD on the cross-entropy of one pass, and no question asked."""
    step = eps / 4 if norm == "Linf" else 2.5 * eps / steps

    def strike(x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        if not target.gradient:
            return x
        options = {"norm": norm, "eps": eps, "steps": steps, "step_size": step}
        # Libraries take every step. Only a fixed model gives the same verdict after those that follow success.
        # Unchecked: at twice the radius the ball may be wider than the box.
        return unchecked(pgd)(target.exact, x, y, **options, stop_at_success=not target.randomised, draws=draws)

    return strike


def calling(attack: partial[Tensor], model: nn.Module) -> Strike:
    return lambda x, y, draws: attack(model, x, y, draws=draws)


def standard(target: Target, norm: Norm, eps: float) -> Iterator[Move]:
    """Attacks with gradients on the model as it is given, through the expectation where it is randomised."""
    if not target.gradient:
        return
    budget = {"norm": norm, "eps": eps, "steps": STEPS}
    model = Expectation(target.model, target.eot) if target.randomised else target.search
    if target.randomised:
        yield "PGD, expectation over draws", "expectation", calling(partial(ATTACKS["pgd"], **budget), model), False
    loss = "dlr" if target.classes >= 4 else "margin"
    yield "Auto-PGD", "standard", calling(partial(apgd, **budget, loss="ce"), model), False
    yield "Auto-PGD, margin", "margin", calling(partial(apgd, **budget, loss="margin"), model), False
    if target.randomised:
        return
    yield "targeted Auto-PGD", "margin", calling(partial(apgd_targeted, **budget, loss=loss, targets=4), model), False


def by_scores(target: Target, norm: Norm, eps: float, queries: int) -> Iterator[Move]:
    """Search by the scores alone."""
    budget = {"norm": norm, "eps": eps}
    model = Expectation(target.model, target.eot) if target.randomised else target.search
    fewer = each_draws(target, queries)
    yield "random noise", "noise", calling(partial(noise, **budget, queries=max(fewer // 10, 20)), model), False
    yield (
        "Square",
        "gradient-free",
        calling(partial(unchecked(square), **budget, queries=fewer), model),
        target.randomised,
    )


def forms(target: Target, x: Tensor) -> Iterator[tuple[str, str, Form]]:
    """Forms of the model whose gradient is another than its own, as `x` (some images) shows."""
    model = target.model

    def look(n: int) -> tuple[Tensor, int | None, int | None, Lines, Lines]:
        some = x[:n]
        scores = hidden_scores(model, some), hidden_scores(model, some, steps=True)
        return some, *scores, lines_before(model, some), lines_across(model, some)

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
    known = [slope_of(target.model, x)] if target.gradient else []
    for name, remedy, options in candidates:
        if not any(value is not None and value is not False for value in options.values()):
            continue
        form = made(model, **options)
        slope = None if form is None else slope_of(form, x)
        if form is None or slope is None or not slope.any() or any(same(slope, other) for other in known):
            continue
        known.append(slope)
        yield name, remedy, form


def made(model: nn.Module, **options: Any) -> Form | None:
    """A form of the model; None for one in float64 of a model that cannot be copied or cast."""
    try:
        return Form(model, **options)
    except Exception as error:  # a user's model may hold on to anything
        if out_of_memory(error):
            raise
        return None


def draws_needed(model: nn.Module, x: Tensor) -> int:
    """Draws a step of a randomised model: few where one draw's gradient is much like another's."""
    first, second = slope_of(model, x), slope_of(model, x)
    if first is None or second is None:
        return EOT
    first, second = in_both(first, second)
    alike = torch.nn.functional.cosine_similarity(first.flatten(1), second.flatten(1), dim=1).mean()
    return 1 if alike > 0.95 else 3 if alike > 0.7 else EOT


def slope_of(model: nn.Module, x: Tensor) -> Tensor | None:
    """The margin's gradient at some images, as many of them as memory holds; None where the model has none."""

    def look(n: int) -> Tensor:
        with torch.no_grad():
            y = ask(model, x[:n]).argmax(1)
        return margin_and_slope(model, x[:n], y)[1]

    try:
        return as_many_as_fit(look, len(x))
    except (ValueError, RuntimeError, TypeError, IndexError, NotImplementedError) as error:
        if out_of_memory(error):
            raise
        return None  # a form that this model does not take, such as float64: the next is tried


def in_both(slope: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients at the images that memory held both times."""
    n = min(len(slope), len(other))
    return slope[:n], other[:n]


def same(slope: Tensor, other: Tensor | None) -> bool:
    if other is None or not other.any():
        return False
    slope, other = in_both(slope, other)
    cosine = torch.nn.functional.cosine_similarity(slope.flatten(1).double(), other.flatten(1).double(), dim=1)
    return bool(cosine.mean() > SAME)


def behind(target: Target, x: Tensor, norm: Norm, eps: float) -> Iterator[Move]:
    """Gradients of forms of the model: of what lies behind its answer, through what stops them. x: some images."""
    attack = partial(apgd, norm=norm, eps=eps, steps=STEPS, loss="margin")
    for name, remedy, form in forms(target, x[:16]):
        yield f"Auto-PGD, {name}", remedy, calling(attack, target.through(form, x)), False


def last_resorts(target: Target, x: Tensor, norm: Norm, eps: float, queries: int) -> Iterator[Move]:
    """What costs much and finds little where gradients are sound: on some images first."""
    attack = partial(apgd, norm=norm, eps=eps, steps=STEPS, loss="margin")
    if target.gradient:
        near = Neighbourhood(target.model, eps, norm)
        # A randomised model's neighbours have each their own draw.
        model = near if target.randomised else target.through(near, x)
        yield "Auto-PGD, averaged over neighbours", "smoothed", calling(attack, model), True
    free = {"norm": norm, "eps": eps, "queries": each_draws(target, queries)}
    model = Expectation(target.model, target.eot) if target.randomised else target.exact
    if norm != "L1":
        if takes_a_step("nes", free["queries"]):
            yield "NES", "gradient-free", calling(partial(unchecked(nes), **free), model), True
        if takes_a_step("hopskipjump", free["queries"]):
            yield "HopSkipJump", "decision", calling(partial(unchecked(hopskipjump), **free), model), True
