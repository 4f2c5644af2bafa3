"""Checks for idle attacks: that one moves images at all, and comes nearer than chance where it has no limit."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks.types import AttackFunction, as_stage
from robustlib.checks.thresholds import CheckResult, check_result
from robustlib.inference.image_rows import Images
from robustlib.inference.predict import verdict
from robustlib.metrics import CLEAN
from robustlib.norms import draw_in_ball, size
from robustlib.outcome import Outcome
from robustlib.rng import Draws, seeded

FEW, LEAST = 8, 5  # standing images that an attack is tried on again, and how many tell anything
NEAR = 1e-3  # an image farther from the original was moved
ROUNDING = 1e-5  # of a pixel: an attack that changes variables comes back from them so near
MOST = 64  # images that random points are tried around
CHANCE = 2  # images around which a random point may be nearer by chance
SHARES = (0.25, 0.5, 1.0)  # of an attack's distance, at which random points are tried


def unmoved(
    model: nn.Module,
    x: Images,
    y: Tensor,
    outcome: Outcome,
    attacks: Sequence[AttackFunction],
    *,
    norm: Norm,
    eps: float | None,
    seed: int,
) -> CheckResult:
    """Whether attacks that broke nothing move images at all. model: as they search on it.

    Within a small radius a sound attack may find nothing, and give images back as they came. So a few of those that
    stand are attacked once more, with a radius that allows any image.
    """
    # Nearer than that an image may have fallen by chance, where the model is randomised.
    if (outcome.success & (outcome.distance > NEAR)).any():
        return check_result("unmoved", None, "it found adversarial images, so it moves images")
    standing = np.flatnonzero(~outcome.success)
    if len(standing) < LEAST:
        return check_result("unmoved", None, "too few images are robust to tell")
    # Evenly, not the first of them: data sets may lie sorted by class.
    rows = torch.from_numpy(standing[np.linspace(0, len(standing) - 1, min(len(standing), FEW)).astype(int)])
    x, y, draws = x[rows], y[rows], Draws(seed, torch.from_numpy(outcome.index)[rows].to(y.device))
    still = torch.arange(len(x), device=x.device)
    with seeded(seed, "checks/unmoved", x.device):
        for attack in map(as_stage, attacks):
            options: dict[str, Any] = {}
            if eps is not None and attack.takes_eps:
                options["eps"] = farthest(x, norm).max().item()
            found = attack(model, x[still], y[still], draws=draws[still], **options)
            still = still[size(found - x[still], "Linf") <= ROUNDING]
            if len(still) == 0:
                break
    return check_result("unmoved", len(still) / len(x), examples=draws.index[still].tolist())


def farthest(x: Tensor, norm: Norm) -> Tensor:
    """How far from each image the farthest one lies, shape (B,)."""
    return size(x.maximum(1 - x), norm)


def noise_nearer(
    model: nn.Module, x: Images, y: Tensor, outcome: Outcome, *, norm: Norm, seed: int, search: nn.Module | None = None
) -> CheckResult:
    """Random points at increasing radii, up to what an attack without a limit found, or any image where it found none.

    One that misclassifies is nearer than the attack came: an attack that chance beats is none.
    """
    rows = torch.from_numpy(np.flatnonzero(outcome.broken_by != CLEAN)[:MOST])
    if len(rows) == 0:
        return check_result("noise-nearer", None, "no image was attacked")
    images, classes = x[rows], y[rows]
    index = torch.from_numpy(outcome.index)[rows].to(x.device)
    distance = torch.from_numpy(outcome.distance)[rows].to(images)
    reach = torch.where(distance.isnan(), farthest(images, norm), distance)
    beaten = torch.zeros_like(classes, dtype=torch.bool)
    for turn, share in enumerate(SHARES):
        delta = draw_in_ball(images, share * reach, norm, Draws(seed, index), f"checks/nearer/{turn}")
        point = (images + delta).clamp(0, 1)
        beaten |= verdict(model, search or model, point, classes) != classes
    count = int(beaten.sum())
    return check_result("noise-nearer", count / len(rows) if count > CHANCE else 0.0, examples=index[beaten].tolist())
