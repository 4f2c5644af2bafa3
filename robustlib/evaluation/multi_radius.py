"""Several radii as one search: what falls at a radius is drawn back to the next, and attacked again from there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks.types import AttackFunction, as_stage
from robustlib.evaluation.attack_sequence import Found, attack_in_sequence, total
from robustlib.inference.predict import verdict
from robustlib.norms import added, per_example, size
from robustlib.rng import Draws, default_draws

Plan = Sequence[tuple[float, Sequence[AttackFunction]]]


def curve(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    plan: Plan,
    *,
    norm: Norm,
    draws: Draws | None = None,
    search: nn.Module | None = None,
    clean: Tensor | None = None,
) -> list[Found]:
    """Attacks in turn at each of several radii as one search, each example from the largest radius down.

    plan: radii, rising, each with its attacks, which are the same but for the radius.
    What stands at a radius stands at the smaller ones. What fell is shrunk to the next radius first, which costs one
    pass forward and breaks many; only the rest is attacked again, from there. So an example pays for one failing run,
    at the largest radius at which it stands, and not for one at each. Examples are attacked side by side, each at the
    radius that it has come to, where the attacks take that: batches stay full.
    Queries are those of the search down to a radius, in which a shrunk image is one; those at a radius are what its
    attacks showed, without it. Of examples attacked side by side each radius gets its share of the seconds.
    """
    draws = default_draws(x, draws)
    search = model if search is None else search
    clean = verdict(model, search, x, y) if clean is None else clean
    descent = Descent.begin(x, y, clean, plan)
    groups = side_by_side(plan)
    going, start = torch.arange(len(x), device=x.device), None
    while len(going):
        for levels in groups:
            rows = going[torch.isin(descent.level[going], torch.tensor(levels, device=x.device))]
            if len(rows):
                known = {"start": None if start is None else start[rows], "clean": clean[rows]}
                known |= {"eps": descent.eps[descent.level[rows]]} if len(levels) > 1 else {}
                _, attacks = plan[levels[0]]
                found = attack_in_sequence(model, x[rows], y[rows], attacks, draws=draws[rows], search=search, **known)
                descent.record(rows, found)
        start = descent.image
        going = descent.go_down(going, lambda images, rows: verdict(model, search, images, y[rows]), norm)
    return descent.found()


@dataclass
class Descent:
    """What is known at each radius, shape (radii, B, ...), see `Found`; and where each example is, shape (B, ...).

    eps: the radii, float64, in which eps / 4 is what it is for a Python number.  level: which of them an example has
    come to.  image: its last image.  spent: its queries so far.  own: those of them at each radius.
    """

    x: Tensor
    y: Tensor
    eps: Tensor
    x_adv: Tensor
    prediction: Tensor
    broken_by: Tensor
    queries: Tensor
    own: Tensor
    seconds: list[list[float]]
    level: Tensor
    image: Tensor
    spent: Tensor

    @classmethod
    def begin(cls, x: Tensor, y: Tensor, clean: Tensor, plan: Plan) -> "Descent":
        count, radii = len(plan[0][1]), len(plan)
        unknown = torch.full_like(y, -1, dtype=torch.int64)
        return cls(
            x=x,
            y=y,
            eps=torch.tensor([eps for eps, _ in plan], dtype=torch.float64, device=x.device),
            x_adv=x.repeat(radii, *[1] * x.ndim),
            prediction=clean.repeat(radii, 1),
            broken_by=torch.where(clean == y, count, -1).repeat(radii, 1),
            queries=unknown.repeat(radii, 1),
            own=unknown.repeat(radii, 1),
            seconds=[[0.0] * count for _ in plan],
            level=torch.full_like(y, radii - 1, dtype=torch.int64),
            image=x.clone(),
            spent=unknown,
        )

    def record(self, rows: Tensor, found: Found) -> None:
        """What attacks in turn found for these examples, each at its radius."""
        self.spent[rows] = total(self.spent[rows], found.queries)
        at = (self.level[rows], rows)
        self.own[at] = torch.where(found.queries < 0, self.own[at], found.queries)
        self.image[rows] = found.x_adv
        self.note(rows, found.x_adv, found.prediction, found.broken_by)
        shares = torch.bincount(self.level[rows], minlength=len(self.eps)) / len(rows)
        for seconds, share in zip(self.seconds, shares.tolist(), strict=True):
            seconds[:] = [before + share * spent for before, spent in zip(seconds, found.seconds, strict=True)]

    def note(self, rows: Tensor, x_adv: Tensor, prediction: Tensor, broken_by: Tensor) -> None:
        at = (self.level[rows], rows)
        self.x_adv[at], self.prediction[at], self.broken_by[at] = x_adv, prediction, broken_by
        self.queries[at] = self.spent[rows]

    def go_down(self, rows: Tensor, judge: Callable[[Tensor, Tensor], Tensor], norm: Norm) -> Tensor:
        """Shrink what fell of these examples as far as it stays broken; returns those that are to be attacked again.

        judge: the model's classes for images of these rows.
        """
        count, again = len(self.seconds[0]), []
        while True:
            by = self.broken_by[self.level[rows], rows]
            fell = (by >= 0) & (by < count) & (self.level[rows] > 0)
            rows, by = rows[fell], by[fell]
            if len(rows) == 0:
                return torch.cat([rows, *again])
            self.level[rows] -= 1
            self.image[rows] = shrink_to(self.image[rows], self.x[rows], self.eps[self.level[rows]], norm)
            counted = self.spent[rows] >= 0
            self.spent[rows] += counted
            self.own[self.level[rows], rows] = torch.where(counted, 0, -1)
            predicted = judge(self.image[rows], rows)
            broken = predicted != self.y[rows]
            again.append(rows[~broken])
            rows, by, predicted = rows[broken], by[broken], predicted[broken]
            self.note(rows, self.image[rows], predicted, by)

    def found(self) -> list[Found]:
        """The outcome at each radius. Who stood at a larger one has spent nothing more at the smaller ones."""
        for smaller in range(len(self.eps) - 2, -1, -1):
            done = self.level > smaller
            self.queries[smaller][done] = self.queries[smaller + 1][done]
            self.own[smaller][done] = self.own[smaller + 1][done].clamp_max(0)
        columns = (self.x_adv, self.prediction, self.broken_by, self.seconds, self.queries, self.own)
        return [Found(*row) for row in zip(*columns, strict=True)]


def side_by_side(plan: Plan) -> list[list[int]]:
    """Which radii, by their places, one call of each attack can serve."""
    groups: list[tuple[list[Any], list[int]]] = []
    for level, (_, attacks) in enumerate(plan):
        kinds = [but_for_eps(attack) for attack in attacks]
        if groups and None not in kinds and kinds == groups[-1][0]:
            groups[-1][1].append(level)
        else:
            groups.append((kinds, [level]))
    return [levels for _, levels in groups]


def but_for_eps(attack: AttackFunction) -> tuple[Any, ...] | None:
    """What tells an attack from others but its radius; None where its examples cannot each have their own."""
    stage = as_stage(attack)
    if not isinstance(stage.run, partial) or not stage.eps_per_example:
        return None
    return stage.run.func, stage.run.args, {k: value for k, value in stage.run.keywords.items() if k != "eps"}


def shrink_to(x_adv: Tensor, x: Tensor, eps: Tensor, norm: Norm) -> Tensor:
    """The images drawn back towards x until they lie within eps, (B,), of it; those that do so already stay."""
    delta = x_adv - x
    ratio = (size(delta, norm).clamp_min(1e-12).reciprocal() * eps.to(x)).clamp_max(1)
    return torch.where(per_example(ratio < 1, x), added(x, delta * per_example(ratio, x), norm).clamp(0, 1), x_adv)
