"""The explanation of a data set: batch by batch, on the model as given in float32, the same for any batch size."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from robustlib.arguments import Norm, check_value
from robustlib.explanations import EXPLANATIONS
from robustlib.explanations.attack import explanation_attack
from robustlib.inference.batch_sizes import groups
from robustlib.inference.exact_copy import exact_copy
from robustlib.inference.fast_copy import exact_replica
from robustlib.inference.model_modes import as_images, as_module, device_of, evaluating, layout, moved, strict_float32
from robustlib.inference.oracle import Oracle
from robustlib.inference.replica import Replica
from robustlib.inference.split_copy import split_copy
from robustlib.input_checks import check_data
from robustlib.losses import misclassified
from robustlib.rng import Draws
from robustlib.settings import GRADIENT_SUMS

SAMPLE = 64  # images that the model is looked at with first
SEARCHED = 32  # images that one search holds; fixed, so that an image's bits do not depend on its neighbours


@dataclass(frozen=True)
class Explained:
    """A model ready to be explained, in eval mode and strict float32.

    model: as given.  oracle: the same at fixed batch sizes.  sums: the same, whose sums of gradients are taken in parts
    and may differ by rounding.  sample: some images, to compare copies on.
    """

    model: nn.Module
    oracle: Replica
    sums: Oracle
    device: torch.device
    sample: Tensor = field(repr=False)

    @cached_property
    def quick(self) -> Oracle:
        """The model to the bit, in less time, without its own layers."""
        return exact_copy(self.oracle, self.model, self.sample)


@contextmanager
def explained(model: nn.Module, x: Tensor, device: torch.device | None = None) -> Iterator[Explained]:
    """The model in eval mode on its device, in strict float32, at fixed batch sizes: an image's attribution then has
    the same bits whoever shares its batch.

    Raises ValueError for a model whose answers depend on who else is in the batch.
    """
    device = device or device_of(model, x)
    model = moved(as_module("explain", model), device)
    with strict_float32(), evaluating(model):
        sample = as_images(x[:SAMPLE], device, layout(model))
        oracle = exact_replica(model, sample)
        if not oracle.sizes:
            raise ValueError("explain: the model's answer for an image depends on the other images of its batch")
        # Now, and not where a sum is first asked for: a model with hooks, as checks have it meanwhile, is not split.
        yield Explained(model, oracle, split_copy(oracle, model, sample), device, sample)


@dataclass(frozen=True)
class Maps:
    """Attributions of images on the CPU. attribution: shape (n, 1 or C, H, W).  target: the class of each, (n,)."""

    attribution: Tensor
    target: Tensor = field(repr=False)


def explain(
    model: nn.Module,
    x: Tensor,
    target: Tensor | None = None,
    *,
    method: str = "integrated-gradients",
    seed: int = 0,
    index: Tensor | None = None,
    batch_size: int = 64,
    device: torch.device | None = None,
    **options: Any,
) -> Maps:
    """Explain a model's answers, one attribution an image.

    x: images in [0, 1], shape (n, C, H, W).  target: the class to explain, shape (n,); the model's own where it is
    None.  method: one of `robustlib.explanations.EXPLANATIONS`, options its parameters.
    seed, index: of the random numbers, and each image's number in its data set; an image has its own, so that an
    attribution does not depend on the batch size, the order, or what else is explained.
    Raises ValueError for an unknown method, and for what the method refuses.
    """
    if method not in EXPLANATIONS:
        raise ValueError(f"explain: unknown method {method!r}, expected one of: {', '.join(EXPLANATIONS)}")
    check_value("explain", "batch_size", int, batch_size)
    known = EXPLANATIONS[method]
    if unknown := options.keys() - known.settings.keys():
        expected = ", ".join(known.settings) or "none"
        raise ValueError(f"explain: unknown setting {sorted(unknown)[0]!r} of {method}, expected one of: {expected}")
    if target is not None:
        check_data("explain", x, target, index, boxed=True)
    places = torch.arange(len(x)) if index is None else index
    found: list[Tensor] = []
    classes: list[Tensor] = []
    with explained(model, x, device) as ready:
        for rows in groups(len(x), batch_size):
            chosen = slice(rows.start, rows.stop)
            images = as_images(x[chosen], ready.device)
            own = predictions(ready, images) if target is None else target[chosen].to(ready.device)
            draws = Draws(seed, places[chosen].to(ready.device))
            found.append(attribution(ready, method, images, own, draws, options).cpu())
            classes.append(own.cpu())
    return Maps(torch.cat(found), torch.cat(classes))


def predictions(ready: Explained, x: Tensor) -> Tensor:
    """The class that the model gives each image."""
    return ready.oracle.logits(x).argmax(1)


def attribution(
    ready: Explained, method: str, x: Tensor, target: Tensor, draws: Draws, options: dict[str, Any]
) -> Tensor:
    """The attribution of a batch by a method, on the images' device."""
    known = EXPLANATIONS[method]
    copy = ready.sums if method in GRADIENT_SUMS else ready.quick
    oracle = ready.oracle if known.looks_inside else copy
    return known(oracle, x, target, **options, **({"draws": draws} if "draws" in known.params else {}))


def attacked(
    ready: Explained,
    method: str,
    x: Tensor,
    target: Tensor,
    draws: Draws,
    options: dict[str, Any],
    *,
    norm: Norm,
    eps: float,
    **search: Any,
) -> Tensor:
    """Images of a batch whose explanation by this method was attacked, see `explanation_attack`; shaped like x.

    A search needs second derivatives of the model itself: it is filled up to a fixed number of images.
    """
    found: list[Tensor] = []
    for rows in groups(len(x), SEARCHED):
        places = torch.arange(rows.start, rows.start + SEARCHED, device=x.device).clamp(max=rows.stop - 1)
        own = draws[places]

        def look(_: nn.Module, images: Tensor, classes: Tensor, own: Draws = own) -> Tensor:
            return attribution(ready, method, images, classes, own, options)

        x_adv = explanation_attack(
            ready.model,
            x[places],
            target[places],
            explain=look,
            norm=norm,
            eps=eps,
            surrogate=EXPLANATIONS[method].surrogate,
            draws=own,
            **search,
        )[: len(rows)]
        # The class is what the model gives at fixed batch sizes, as everywhere: else the image stays as it is.
        lost = misclassified(ready.oracle.logits(x_adv), target[rows.start : rows.stop])
        found.append(torch.where(lost[:, None, None, None], x[rows.start : rows.stop], x_adv))
    return torch.cat(found)
