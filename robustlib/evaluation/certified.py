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
from robustlib.defences.votes import QuickVoter, make_voter
from robustlib.evaluation.batches import SAMPLE, Ready, batches
from robustlib.evaluation.randomised_models import GROUP
from robustlib.inference.expectation import is_randomised
from robustlib.inference.fast_copy import exact_replica, make_replicas, suits_half
from robustlib.inference.model_modes import as_images, each_within, evaluating, layout, strict_float32
from robustlib.inference.replica import Replica
from robustlib.input_checks import check_data
from robustlib.metrics import CLEAN, NOTHING
from robustlib.outcome import Batch, Outcome
from robustlib.rng import Draws, seeded
from robustlib.settings import CERTIFY

FEW = 16  # images that tell whether a model inside of a smoothed one changes its answers


def evaluate_certified(
    ready: Ready,
    x: ImageSet,
    y: Tensor,
    radii: Sequence[float | None],
    *,
    seed: int,
    index: Tensor,
    device: torch.device,
    voter: Replica | QuickVoter | None = None,
    **params: Any,
) -> Iterator[tuple[Batch, ...]]:
    """Certify the examples in groups, once for all radii; a group's outcome at each radius, in L2.

    x: images, uint8 or floats in [0, 1], shape (N, C, H, W).  y: classes, shape (N,).  index: which to certify.
    voter: made by `voter_for` with the same x; made here where it is None.
    params: of `certify`.  A group's outcome: see `outcome`.
    """
    check_data(CERTIFY, x, y, index)
    base, sigma = unsmoothed(ready.model, params.pop("sigma", None))
    voter = voter or voter_for(ready, x, sigma, device)

    def steps() -> Iterator[tuple[Batch, ...]]:
        for rows in batches(index, GROUP, grouped=True):
            start = time.perf_counter()
            own = Draws(seed, rows.to(device))
            # A model may have a randomness of its own besides.
            with seeded(seed, f"certify/{int(rows[0]) // GROUP}", device):
                found = certify(voter, as_images(x[rows], device), sigma=sigma, draws=own, **params)
            seconds = time.perf_counter() - start
            images, labels = as_images(x[rows], torch.device("cpu")), y[rows]
            yield tuple(outcome(found, images, labels, rows, eps or 0.0, seconds / len(radii)) for eps in radii)

    yield from each_within(steps(), strict_float32, partial(evaluating, base))


def voter_for(ready: Ready, x: ImageSet, sigma: float | None, device: torch.device) -> Replica | QuickVoter:
    """What votes, and says how in its `mode`: the model in strict float32, and its copy in half precision where it has
    one.  x: the data set's images.  sigma: see `unsmoothed`.
    """
    base, sigma = unsmoothed(ready.model, sigma)
    with strict_float32(), evaluating(base), seeded(0, "certify/voter", device):
        sample = as_images(x[:SAMPLE], device, layout(base))
        if base is ready.model and ready.replicas is not None:
            replicas = ready.replicas
        elif base is ready.model or not suits_half(base, device) or is_randomised(base, sample[:FEW]):
            return exact_replica(base, sample)
        else:
            replicas = make_replicas(base, sample)
        return make_voter(replicas.exact, replicas.search, sample, sigma)


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
