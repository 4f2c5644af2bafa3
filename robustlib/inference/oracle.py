"""The oracle: what an attack may ask of a model, and the answers of a plain module."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustlib.inference.batch_sizes import batch_sizes, groups
from robustlib.inference.gradients import Values, pull
from robustlib.losses import Loss, margin, misclassified
from robustlib.model_calls import Careful, ask

Points = Callable[[int], Tensor]


class Margins(NamedTuple):
    """Margins of images, shape (B,). rough: the same in half precision, where that is asked first."""

    value: Tensor
    rough: Tensor


class Oracle(Careful, nn.Module):
    """What an attack may ask of a model. Called, it gives logits, shape (B, classes).

    The answers given here are those of a model that is attacked itself. A quicker copy of one (`Replica`) and the mean
    of a randomised one's draws (`Expectation`) have some of their own.
    batch: examples that go well into one pass; 0 where their number makes no difference.
    mixes_steps: small batches are dear, and examples at different steps of a run may share one: no bit depends on who
    else is in it.
    """

    batch: int = 0

    @property
    def mixes_steps(self) -> bool:
        return False

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Logits of images of shape (B, C, H, W), shape (B, classes)."""
        return self(x)

    def value_and_grad(self, x: Tensor, loss: Loss, *rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, K), each example's own loss (B,) and its gradient by x, for `loss(logits, *rows)`."""
        logits, values, gradients = self.values_and_grads(x, lambda z, *own: loss(z, *own)[:, None], *rows)
        return logits, values[:, 0], gradients[:, 0]

    def values_and_grads(self, x: Tensor, values: Values, *rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, K), the values (B, V) that `values(logits, *rows)` gives, their gradients (B, V, C, H, W).

        rows: tensors of B rows that go with the images: classes, targets. No value depends on another example's logits.
        """
        return pull(self, x, values, *rows)

    def gradients(self, x: Tensor, values: Values, *rows: Tensor) -> Tensor:
        """The gradients alone, from the quickest copy: its rounding turns them by less than a hundredth."""
        return self.values_and_grads(x, values, *rows)[2]

    def at_once(self, x: Tensor) -> int:
        """Variants of every image that go well into one pass, at least 1."""
        return max(1, (self.batch or batch_sizes(x)[-1]) // max(1, len(x)))

    def gradient_sum(self, x: Tensor, points: Points, weights: Sequence[float], loss: Loss, *rows: Tensor) -> Tensor:
        """The weighted sum of the gradients of each image's own loss at several points, shaped like the images x.

        points: gives the k-th point of every image, shaped like x.  weights: of the points.  loss, rows: see
        `value_and_grad`.
        """
        total = torch.zeros_like(x)
        for places in groups(len(weights), self.at_once(x)):
            own = (row.repeat(len(places), *[1] * (row.ndim - 1)) for row in rows)
            gradients = self.value_and_grad(torch.cat([points(k) for k in places]), loss, *own)[2]
            for k, each in zip(places, gradients.split(len(x)), strict=True):
                total += weights[k] * each
        return total

    def line_gradient_sum(
        self, start: Tensor, end: Tensor, places: Sequence[float], weights: Sequence[float], loss: Loss, *rows: Tensor
    ) -> Tensor:
        """The same at points of the straight line from one image to another, both of shape (B, C, H, W).

        places: of the points, 0 at the start, 1 at the end.
        """
        way = end - start
        return self.gradient_sum(start, lambda k: start + places[k] * way, weights, loss, *rows)

    def is_adversarial(self, x: Tensor, y: Tensor, claimed: Tensor | None = None) -> Tensor:
        """Which images are misclassified for sure, shape (B,).

        claimed: those that its logits misclassify: of the others nothing is asked. None: ask about all.
        """
        return misclassified(self.logits(x), y) if claimed is None else claimed

    def is_done(self, x: Tensor, y: Tensor, claimed: Tensor) -> Tensor:
        """Which of the images that its logits misclassify an attack within a radius is done with, shape (B,)."""
        return self.is_adversarial(x, y, claimed)

    def once_more(self, x: Tensor, logits: Tensor) -> Tensor:
        """Logits of images whose logits are known: of a randomised model those of fresh draws."""
        return logits

    def in_doubt(self, logits: Tensor, y: Tensor) -> Tensor:
        """Which of these logits of its own may be those of a misclassified image, shape (B,)."""
        return misclassified(logits, y)

    def margins(self, x: Tensor, y: Tensor) -> Margins:
        """Margins by which small differences can be told."""
        value = margin(self.logits(x), y)
        return Margins(value, value)

    def larger_margins(self, x: Tensor, y: Tensor, than: Margins) -> tuple[Tensor, Margins]:
        """The images with a larger margin than theirs, by their rising places, and their margins."""
        found = margin(self.logits(x), y)
        places = (found > than.value).nonzero().squeeze(1)
        return places, Margins(found[places], found[places])

    def compared_margins(
        self, x: Tensor, y: Tensor, than: Margins, new: Tensor, first: Tensor
    ) -> tuple[Margins, Tensor]:
        """Margins of images, to be told from theirs, and for which images they could be told, (B,): all, of a plain
        model. In a recorded step the judge is asked about so many alone; the others may be asked about again.

        new: images that need be told, shape (B,).  first: those of the lowest number, shape (B,), go first.
        """
        return self.margins(x, y), torch.ones_like(new)

    def surely_right(self, x: Tensor, y: Tensor, logits: Tensor | None = None) -> Tensor:
        """Which images the model that this is a copy of surely classifies as y, (B,): none, where it is no copy.

        logits: of the images, where `astray` has given them.
        """
        return torch.zeros_like(y, dtype=torch.bool)

    def on_edge(self, x_adv: Tensor, y: Tensor) -> "list[tuple[Oracle, Tensor]]":
        """Attacked images so near a boundary that rounding hides it, by their places, with the oracle in float32 to go
        on with; none where this is it.
        """
        return []

    def misjudged(self, x: Tensor, y: Tensor, claimed: Tensor) -> "list[tuple[Oracle, Tensor]]":
        """Images that rounding alone misclassifies, by their places, with the oracle in float32 to attack them on: an
        attack that looks for the boundary from its true side would take them for done.  claimed: see `is_adversarial`.
        """
        return []

    def astray(self, x_adv: Tensor) -> "tuple[list[tuple[Oracle, Tensor]], Tensor | None]":
        """Attacked images of which half precision computes another function, by their places, with the oracle in
        float32 to attack them on; and that one's logits of all images, None where it was not asked.
        """
        return [], None

    def take_steps(
        self, search: Any, run: Any, place: Tensor, phases: Sequence[Any], found: tuple[Tensor, ...]
    ) -> tuple[Any, Tensor]:
        """Steps of an attack, in whatever way the model's device has for them: see `BallSearch.walk`."""
        return search.walk(self, run, place, phases, found)


class PlainModel(Oracle):
    """A model that is attacked as it is: any module, or callable, from images to logits."""

    def __init__(self, model: Callable[[Tensor], Any]):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return ask(self.model, x)

    def values_and_grads(self, x: Tensor, values: Values, *rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return pull(self.model, x, values, *rows)


def as_oracle(model: Callable[[Tensor], Any]) -> Oracle:
    """The model as attacks ask it. This is the one place that looks at what it is."""
    return model if isinstance(model, Oracle) else PlainModel(model)
