"""The stability of an explanation over a data set: each image's map beside those of its disturbed images.

Beside noise of the attack's norm and size stand the image of an attack on the class, and that of an attack on the
explanation that keeps the class: under most measures noise alone looks as damaging (Wang and Kong 2023,
https://arxiv.org/abs/2312.10534). All maps of an image have the same random numbers, so that what differs is not the
sampling of SmoothGrad, LIME or KernelSHAP.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.arguments import Norm, checked_options
from robustlib.datasets.lazy_images import ImageSet
from robustlib.evaluation.disturbed_images import check_against, disturbed
from robustlib.evaluation.explanation import SAMPLE, Explained, attribution, explained, predictions
from robustlib.explanations import EXPLANATIONS
from robustlib.explanations.curves import deletion, insertion
from robustlib.explanations.measures import near_top_intersection, spearman, ssim, top_intersection
from robustlib.explanations.sanity import random_order, relevance, weight_similarity, with_random_weights
from robustlib.inference.cuda_graphs import NO_GRADIENT
from robustlib.inference.model_modes import as_images, device_of, each_within, evaluating, strict_float32
from robustlib.inference.threads import threads_of
from robustlib.input_checks import check_data
from robustlib.metrics import CLEAN
from robustlib.names import unknown
from robustlib.rng import Draws
from robustlib.settings import EXPLANATION_ATTACK, EXPLANATION_MEASURES, EXPLANATION_SANITY, NOISE

Target = Literal["predicted", "true"]
Against = Sequence[tuple[str, Mapping[str, Any]]]  # names with their parameters

USUAL: Against = ((NOISE, {}), ("pgd", {}), (EXPLANATION_ATTACK, {}))


@dataclass(frozen=True)
class StabilityBatch:
    """What came of a batch.

    columns: a row for each image and what was done to it, all rows of an image together; see `stability_batches`.
    index: of the images that were explained, shape (n,).  images, maps: theirs by what was done to them, on the CPU,
    shape (n, C, H, W), and (n, 1 or C, H, W).
    """

    columns: dict[str, np.ndarray]
    index: Tensor
    images: dict[str, Tensor]
    maps: dict[str, Tensor]


@dataclass(frozen=True)
class Asked:
    """What is asked of every batch; fields as the parameters of `stability_batches`."""

    method: str
    options: Mapping[str, Any]
    against: Against
    norm: Norm
    eps: float
    target: Target
    share: float
    radius: int
    curve_steps: int
    baseline: float


@checked_options
def stability_batches(
    model: nn.Module,
    x: ImageSet,
    y: Tensor,
    *,
    method: str = "integrated-gradients",
    options: Mapping[str, Any] | None = None,
    against: Against = USUAL,
    norm: Norm = "Linf",
    eps: float = 8 / 255,
    target: Target = "predicted",
    share: float = 0.1,
    radius: int = 1,
    curve_steps: int = 16,
    baseline: float = 0.0,
    seed: int = 0,
    index: Tensor | None = None,
    batch_size: int = 64,
    device: torch.device | None = None,
) -> Iterator[StabilityBatch]:
    """Explain images, and the same images disturbed, batch by batch.

    x: images, uint8 or floats in [0, 1], shape (N, C, H, W), or decoded as they are needed.  y: classes, shape (N,).
    method, options: the explanation, one of `robustlib.explanations.EXPLANATIONS`, and its parameters.
    against: NOISE, EXPLANATION_ATTACK, and attacks of `robustlib.attacks.ATTACKS`; norm, eps are those of all of them,
    eps in units of x.  target: the class that is explained: the one that the model gives the image, a disturbed one
    its own, or the true one.  share: of the pixels that are top.  radius: rows and columns that `near_top_intersection`
    is tolerant by.  curve_steps, baseline: of deletion and insertion.
    seed, index: of the random numbers, and which examples, all where it is None. No number depends on the batch size.

    Rows have: index and label of the image; explained, its clean image's class that is explained; against, what was
    done to it, CLEAN in its first row; prediction, the class that the model as given gives the image then; the measures
    of `EXPLANATION_MEASURES`, of which those of two maps are NaN in clean rows; those of `EXPLANATION_SANITY`, NaN in
    all others: random_weights by `weight_similarity` of robustlib.explanations.sanity, gain and random_gain by
    `relevance` there, of the map and of a random order. A true class that is not the model's is not explained: all of
    the image's numbers are NaN.

    On a CPU one thread computes: sums over several may differ in their last bits.
    Raises ValueError for unknown names, attacks that do not fit, and a model that changes its answers.
    """
    check_data("explain", x, y, index)
    if method not in EXPLANATIONS:
        raise ValueError(unknown("explanation", method, EXPLANATIONS))
    check_against([name for name, _ in against], norm)
    asked = Asked(method, options or {}, against, norm, eps, target, share, radius, curve_steps, baseline)
    chosen = torch.arange(len(x)) if index is None else index
    one_thread = partial(threads_of, 1)
    with one_thread():
        ready, bare = with_twin(model, as_images(x[:SAMPLE], torch.device("cpu")), seed, device)

    def steps() -> Iterator[StabilityBatch]:
        for rows in chosen.split(batch_size):
            images, labels = as_images(x[rows], ready.device), y[rows].to(ready.device)
            with told_of_explanations():
                found = stability_of(ready, bare, images, labels, Draws(seed, rows.to(ready.device)), asked)
            yield found

    yield from each_within(
        steps(), one_thread, strict_float32, partial(evaluating, ready.model), partial(evaluating, bare.model)
    )


def with_twin(model: nn.Module, sample: Tensor, seed: int, device: torch.device | None) -> tuple[Explained, Explained]:
    """The model as it is explained, and the same with randomised weights."""
    with explained(model, sample, device or device_of(model, sample)) as ready:
        bare_model = with_random_weights(ready.model, seed=seed)
    with explained(bare_model, sample, ready.device) as bare:
        return ready, bare


@contextmanager
def told_of_explanations() -> Iterator[None]:
    """A model without a gradient is told of what explains it without one, and not of attacks in place of these."""
    try:
        yield
    except (ValueError, RuntimeError) as error:  # the second from autograd itself, in the attack on the explanation
        if str(error) != NO_GRADIENT and "does not require grad" not in str(error):
            raise
        methods = ", ".join(name for name, known in EXPLANATIONS.items() if not known.uses_gradient)
        raise ValueError(
            "explain: the model's logits have no gradient with respect to its images (detached, or not "
            f"differentiable): expected what needs none, as the method {methods}, against noise or square"
        ) from error


def stability_of(ready: Explained, bare: Explained, x: Tensor, y: Tensor, draws: Draws, asked: Asked) -> StabilityBatch:
    """One batch. bare: the model with randomised weights."""
    guess = predictions(ready, x)
    wanted = guess if asked.target == "predicted" else y
    names = [CLEAN, *(name for name, _ in asked.against)]
    shape = (len(x), len(names))
    found = {
        name: np.broadcast_to(values.cpu().numpy()[:, None], shape).copy()
        for name, values in (("index", draws.index), ("label", y), ("explained", wanted), ("prediction", guess))
    }
    found["against"] = np.broadcast_to(np.array(names), shape)
    found |= {name: np.full(shape, np.nan) for name in (*EXPLANATION_MEASURES, *EXPLANATION_SANITY)}
    chosen = (guess == wanted).nonzero().squeeze(1)
    images, maps = dict[str, Tensor](), dict[str, Tensor]()
    if len(chosen):
        rows, own = chosen.cpu().numpy(), draws[chosen]
        for place, name in enumerate(names):
            looked = look(ready, name, x[chosen], wanted[chosen], own, asked, maps.get(CLEAN))
            images[name], maps[name] = looked.pop("image"), looked.pop("map")
            if name == CLEAN:
                looked |= sanity_of(ready, bare, x[chosen], wanted[chosen], own, asked, maps[CLEAN], looked)
            for column, values in looked.items():
                found[column][rows, place] = values.cpu().numpy()
    columns = {name: values.reshape(-1) for name, values in found.items()}
    kept = ({name: each.cpu() for name, each in some.items()} for some in (images, maps))
    return StabilityBatch(columns, draws.index[chosen].cpu(), *kept)


def look(
    ready: Explained, name: str, x: Tensor, target: Tensor, draws: Draws, asked: Asked, clean: Tensor | None
) -> dict[str, Tensor]:
    """Images disturbed in one way, their maps, the model's classes for them, and the measures.

    clean: the maps of the clean images; None where these are what is looked at.
    """
    about: Any = {name: getattr(asked, name) for name in ("norm", "eps", "method", "options", "share")}
    image = x if clean is None else disturbed(ready, name, dict(asked.against)[name], x, target, draws, **about)
    guess = predictions(ready, image)
    shown = guess if asked.target == "predicted" else target
    map_ = attribution(ready, asked.method, image, shown, draws, dict(asked.options))
    curve: Any = {"steps": asked.curve_steps, "baseline": asked.baseline}
    found = {
        "image": image,
        "map": map_,
        "prediction": guess,
        "deletion": deletion(ready.oracle, image, shown, map_, **curve),
        "insertion": insertion(ready.oracle, image, shown, map_, **curve),
    }
    if clean is None:
        return found
    return found | {
        "top_intersection": top_intersection(clean, map_, share=asked.share),
        "near_top_intersection": near_top_intersection(clean, map_, share=asked.share, radius=asked.radius),
        "spearman": spearman(clean, map_),
        "ssim": ssim(clean, map_),
    }


def sanity_of(
    ready: Explained,
    bare: Explained,
    x: Tensor,
    target: Tensor,
    draws: Draws,
    asked: Asked,
    clean: Tensor,
    areas: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """What the clean images' maps, and the areas under their curves, say of the explanation itself."""
    other = attribution(bare, asked.method, x, target, draws, dict(asked.options))
    curve: Any = {"steps": asked.curve_steps, "baseline": asked.baseline}
    return {
        "random_weights": weight_similarity(clean, other),
        "gain": areas["insertion"] - areas["deletion"],
        "random_gain": relevance(ready.oracle, x, target, random_order(x, draws), **curve),
    }
