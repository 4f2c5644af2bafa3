"""How accurate a model is, clean and attacked: every verdict by a fresh pass of the given model in strict float32."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.attacks.cascade import Attack, cascade
from robustlib.draws import Draws, seeded
from robustlib.metrics import CLEAN, NOTHING, summarise
from robustlib.models.layers import Expectation, is_randomised
from robustlib.modes import as_images, evaluating, layout, strict_float32
from robustlib.norms import inside, size
from robustlib.settings import Norm


@dataclass(frozen=True)
class Outcome:
    """What happened to each example; arrays of length N, in the order of the examples.

    success: the attacked image is misclassified. An image that is misclassified as it is counts, at distance 0, so
    robust accuracy is one minus the share of successes.
    distance: of the misclassified image from the original in `norm`; NaN where none was found.
    broken_by: the attack that found it, "clean" for an image misclassified as it is, "" for one that stands.
    clean_correct, adversarial_correct: share of draws that classify correctly: 0 or 1 unless the model is randomised.
    adversarial_survived: whether every one of the draws classifies the attacked image correctly.
    """

    index: np.ndarray
    label: np.ndarray
    clean_prediction: np.ndarray
    adversarial_prediction: np.ndarray
    success: np.ndarray
    distance: np.ndarray
    broken_by: np.ndarray
    clean_correct: np.ndarray
    adversarial_correct: np.ndarray
    adversarial_survived: np.ndarray


@dataclass(frozen=True)
class Batch:
    """The outcome of a batch, and its attacked images as they were judged: float32, shape (B, C, H, W), on the CPU."""

    outcome: Outcome
    x_adv: Tensor


def check_classes(model: nn.Module, x: Tensor, num_classes: int) -> None:
    """Raise ValueError unless the model gives one finite row of logits an image, with a class for every label."""
    with torch.no_grad():
        logits = model(x)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"expected logits of shape ({len(x)}, classes) from the model, got {came}")
    if logits.shape[1] < num_classes:
        raise ValueError(
            f"the model gives {logits.shape[1]} classes, but the dataset has {num_classes}: "
            "expected a logit for every label"
        )
    if not logits.isfinite().all():
        raise ValueError("the model gives NaN or infinite logits for clean images: its weights are broken")


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: Sequence[tuple[str, Attack]],
    *,
    norm: Norm = "Linf",
    eps: float | None = None,
    seed: int = 0,
    num_classes: int | None = None,
    batch_size: int = 256,
    draws: int = 100,
    eot_draws: int = 20,
    device: torch.device | None = None,
) -> Iterator[Batch]:
    """Attack a model batch by batch, each attack on what the ones before it left standing.

    x: images, uint8 or floats in [0, 1], shape (N, C, H, W).  y: classes, shape (N,).
    attacks: by name, called as `attack(model, x, y, draws=...)`; norm and eps (in units of x; None for no limit) are
    the budget that their images are checked against.
    A model whose logits change between passes is randomised: it is attacked through the mean of `eot_draws` passes and
    scored on `draws` fresh ones; its results depend on batch_size, which decides who shares a pass.
    Raises ValueError for images outside [0, 1] or labels that the model has no class for, RuntimeError when an attack
    breaks its budget.
    """
    device = device or torch.device("cpu")
    model = model.to(device)
    memory_format = layout(model)
    names = np.array([*(name for name, _ in attacks), NOTHING, CLEAN])  # the last is position -1: wrong as it is
    functions = [attack for _, attack in attacks]
    randomised = False
    with strict_float32(), evaluating(model):
        for start in range(0, len(x), batch_size):
            images = as_images(x[start : start + batch_size], device, memory_format)
            labels = y[start : start + batch_size].to(device)
            index = torch.arange(start, start + len(labels), device=device)
            with seeded(seed, f"evaluate/{start}", device):
                if start == 0:
                    check_classes(model, images, num_classes or int(y.max()) + 1)
                    randomised = is_randomised(model, images[:64])
                search = partial(strongest, model, eot_draws=eot_draws) if randomised else partial(cascade, model)
                x_adv, by = search(images, labels, functions, draws=Draws(seed, index))
                if not inside(x_adv, images, math.inf if eps is None else eps, norm).all():
                    raise RuntimeError(
                        f"one of the attacks {names[:-2]} left its {norm} ball of radius {eps}, or the box"
                    )
                clean = score(model, images, labels, draws if randomised else 1)
                attacked = score(model, x_adv, labels, draws if randomised else 1)
            outcome = judge(index, labels, clean, attacked, size(x_adv - images, norm), names[by.cpu()])
            yield Batch(outcome, x_adv.cpu().contiguous())


def strongest(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: Sequence[Attack],
    *,
    draws: Draws,
    eot_draws: int,
) -> tuple[Tensor, Tensor]:
    """What `cascade` is for a fixed model, for a randomised one: no example falls for good, so each meets every attack.

    The attacks climb the expectation over the randomness; of several, for each example the image is kept on which the
    fewest of `eot_draws` draws are right: a choice only, what it is worth is scored on fresh draws. The clean image is
    no candidate: chance would let it win, and overstate the model. Returns x_adv and the position of its attack.
    """
    x_adv, best, position = x.clone(), torch.full(y.shape, math.inf, device=x.device), torch.zeros_like(y)
    for number, attack in enumerate(attacks):
        found = attack(Expectation(model, eot_draws), x, y, draws=draws.restart(number))
        correct = score(model, found, y, eot_draws).correct if len(attacks) > 1 else best - 1
        better = (correct < best) | (number == 0)
        x_adv[better], best[better], position[better] = found[better], correct[better], number
    return x_adv, position


@dataclass(frozen=True)
class Score:
    """Predictions by majority over draws, the share of draws that were right, and whether all were; shape (B,)."""

    prediction: Tensor
    correct: Tensor
    survived: Tensor


@torch.no_grad()
def score(model: nn.Module, x: Tensor, y: Tensor, draws: int) -> Score:
    """Classify the images by `draws` fresh passes."""
    logits = model(x)
    votes = torch.zeros_like(logits)
    for draw in range(draws):
        predicted = (logits if draw == 0 else model(x)).argmax(1, keepdim=True)
        votes.scatter_add_(1, predicted, torch.ones_like(votes[:, :1]))
    right = votes.gather(1, y[:, None]).squeeze(1)
    return Score(votes.argmax(1), right / draws, right == draws)


def judge(index: Tensor, y: Tensor, clean: Score, attacked: Score, distance: Any, broken_by: np.ndarray) -> Outcome:
    """The batch's outcome from fresh passes alone: what an attack believes of itself does not count."""
    success = (attacked.prediction != y).cpu().numpy()
    wrong = (clean.prediction != y).cpu().numpy()
    # A randomised model may lose the vote on an image that no attack was found for: it is wrong as it is.
    broken_by = np.where(wrong | (broken_by == NOTHING), CLEAN, broken_by)
    distance = np.where(broken_by == CLEAN, 0, distance.cpu().numpy())
    return Outcome(
        index=index.cpu().numpy(),
        label=y.cpu().numpy(),
        clean_prediction=clean.prediction.cpu().numpy(),
        adversarial_prediction=attacked.prediction.cpu().numpy(),
        success=success,
        distance=np.where(success, distance, np.nan).astype(np.float32),
        broken_by=np.where(success, broken_by, NOTHING),
        clean_correct=clean.correct.cpu().numpy().astype(np.float32),
        adversarial_correct=attacked.correct.cpu().numpy().astype(np.float32),
        adversarial_survived=attacked.survived.cpu().numpy(),
    )


def join(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcomes of consecutive batches as one."""
    return Outcome(**{f.name: np.concatenate([getattr(o, f.name) for o in outcomes]) for f in fields(Outcome)})


def summary(outcome: Outcome) -> dict[str, Any]:
    """Accuracies, intervals and distances of an outcome: see robustlib.metrics.summarise."""
    return summarise(vars(outcome))
