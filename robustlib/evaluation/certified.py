"""Certified evaluation: an example counts at a radius only if provably no image within it changes the answer."""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustlib.datasets.lazy_images import ImageSet
from robustlib.defences.smoothing import Certificate, certify, unsmoothed
from robustlib.evaluation.batches import SAMPLE, Ready, batches
from robustlib.evaluation.randomised_models import GROUP
from robustlib.inference.fast_copy import exact_replica
from robustlib.inference.model_modes import as_images, each_within, evaluating, layout, strict_float32
from robustlib.input_checks import check_data
from robustlib.metrics import CLEAN, NOTHING
from robustlib.outcome import Batch, Outcome
from robustlib.rng import Draws, seeded
from robustlib.settings import CERTIFY


def evaluate_certified(
    ready: Ready,
    x: ImageSet,
    y: Tensor,
    radii: Sequence[float | None],
    *,
    seed: int,
    index: Tensor,
    device: torch.device,
    **params: Any,
) -> Iterator[tuple[Batch, ...]]:
    """Certify the examples in groups, once for all radii; a group's outcome at each radius, in L2.

    x: images, uint8 or floats in [0, 1], shape (N, C, H, W).  y: classes, shape (N,).  index: which to certify.
    params: of `certify`.  A group's outcome: see `outcome`.
    """
    check_data(CERTIFY, x, y, index)
    base, sigma = unsmoothed(ready.model, params.pop("sigma", None))

    def steps() -> Iterator[tuple[Batch, ...]]:
        replica = None if ready.replicas is None or base is not ready.model else ready.replicas.exact
        replica = replica or exact_replica(base, as_images(x[:SAMPLE], device, layout(base)))
        for rows in batches(index, GROUP, grouped=True):
            start = time.perf_counter()
            own = Draws(seed, rows.to(device))
            # A model may have a randomness of its own besides.
            with seeded(seed, f"certify/{int(rows[0]) // GROUP}", device):
                found = certify(replica, as_images(x[rows], device), sigma=sigma, draws=own, **params)
            seconds = time.perf_counter() - start
            images, labels = as_images(x[rows], torch.device("cpu")), y[rows]
            yield tuple(outcome(found, images, labels, rows, eps or 0.0, seconds / len(radii)) for eps in radii)

    yield from each_within(steps(), strict_float32, partial(evaluating, base))


def outcome(found: Certificate, x: Tensor, y: Tensor, rows: Tensor, eps: float, seconds: float) -> Batch:
    """What the certificates say at one radius.

    success: it is not certain that the class is right everywhere within eps.  distance: the radius that is certified
    all the same; 0 where the class is wrong or none, and there broken_by is "clean".
    """
    guess, radius = found.guess.cpu().numpy(), found.radius.cpu().numpy()
    right = (found.prediction.cpu() == y).numpy()
    stands = right & (radius >= eps)
    return Batch(
        Outcome(
            index=rows.numpy(),
            label=y.numpy(),
            clean_prediction=guess,
            adversarial_prediction=guess,
            success=~stands,
            distance=np.where(stands, np.nan, np.where(right, radius, 0)).astype(np.float32),
            broken_by=np.where(stands, NOTHING, np.where(right, CERTIFY, CLEAN)),
            clean_correct=right.astype(np.float32),
            adversarial_correct=stands.astype(np.float32),
            adversarial_survived=stands,
            queries=np.full(len(y), -1, np.int32),
        ),
        x,
        np.where(stands, 1, np.where(right, 0, -1)),
        [seconds],
    )
