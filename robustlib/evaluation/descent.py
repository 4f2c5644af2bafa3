"""The way of each example from the largest radius down: what is known at each, and images drawn back to the next."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustlib.arguments import Norm
from robustlib.attacks.types import AttackFunction
from robustlib.evaluation.attack_sequence import Found, total
from robustlib.norms import added, per_example, size

Plan = Sequence[tuple[float, Sequence[AttackFunction]]]  # radii, rising, each with its attacks


@dataclass
class Descent:
    """What is known at each radius, shape (radii, B, ...), see `Found`; and where each example is, shape (B, ...).

    eps: the radii, float64, in which eps / 4 is what it is for a Python number.  level: which of them an example has
    come to.  image: its last image.  spent: its queries so far.  own: those of them at each radius.
    proved: that it stands; what stands at a radius is proved at the smaller ones.
    """

    x: Tensor
    y: Tensor
    eps: Tensor
    x_adv: Tensor
    prediction: Tensor
    broken_by: Tensor
    queries: Tensor
    own: Tensor
    proved: Tensor
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
            proved=torch.zeros_like(y, dtype=torch.bool).repeat(radii, 1),
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
        if found.proved is not None:
            self.proved[at] = found.proved
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
        """Draw back what fell of these examples as far as it stays broken; returns those that are to be attacked again.

        judge: the model's classes for images of these rows.
        """
        again = list[Tensor]()
        while len(rows := self.draw_back(rows, norm)):
            broken = self.still_broken(rows, judge(self.image[rows], rows))
            again.append(rows[~broken])
            rows = rows[broken]
        return torch.cat([rows, *again])

    def draw_back(self, rows: Tensor, norm: Norm) -> Tensor:
        """Take what fell of these examples, and its images, to the next radius, where there is one; returns those."""
        by = self.broken_by[self.level[rows], rows]
        rows = rows[(by >= 0) & (by < len(self.seconds[0])) & (self.level[rows] > 0)]
        self.level[rows] -= 1
        self.image[rows] = shrink_to(self.image[rows], self.x[rows], self.eps[self.level[rows]], norm)
        counted = self.spent[rows] >= 0
        self.spent[rows] += counted
        self.own[self.level[rows], rows] = torch.where(counted, 0, -1)
        return rows

    def still_broken(self, rows: Tensor, predicted: Tensor) -> Tensor:
        """Which images that were drawn back are misclassified, shape (B,): that is noted, by what broke them before.

        predicted: the model's classes for them.
        """
        broken = predicted != self.y[rows]
        fell = rows[broken]
        by = self.broken_by[self.level[fell] + 1, fell]
        self.note(fell, self.image[fell], predicted[broken], by)
        return broken

    def found(self) -> list[Found]:
        """The outcome at each radius. Who stood at a larger one has spent nothing more at the smaller ones."""
        for smaller in range(len(self.eps) - 2, -1, -1):
            done = self.level > smaller
            self.queries[smaller][done] = self.queries[smaller + 1][done]
            self.own[smaller][done] = self.own[smaller + 1][done].clamp_max(0)
            self.proved[smaller][done] = self.proved[smaller + 1][done]
        columns = (self.x_adv, self.prediction, self.broken_by, self.seconds, self.queries, self.own, self.proved)
        return [Found(*row) for row in zip(*columns, strict=True)]


def shrink_to(x_adv: Tensor, x: Tensor, eps: Tensor, norm: Norm) -> Tensor:
    """The images drawn back towards x until they lie within eps, (B,), of it; those that do so already stay."""
    delta = x_adv - x
    ratio = (size(delta, norm).clamp_min(1e-12).reciprocal() * eps.to(x)).clamp_max(1)
    return torch.where(per_example(ratio < 1, x), added(x, delta * per_example(ratio, x), norm).clamp(0, 1), x_adv)
