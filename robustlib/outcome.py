"""The outcome of an evaluation for each example: every error by a fresh pass of the given model in strict float32."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from robustlib.arguments import Norm
from robustlib.inference.batch_sizes import batch_sizes
from robustlib.inference.model_modes import check_there, in_a_line
from robustlib.inference.predict import classes_of
from robustlib.memory import as_many_as_fit, out_of_memory
from robustlib.metrics import CLEAN, NOTHING
from robustlib.model_calls import ask
from robustlib.norms import inside
from robustlib.number_text import counted


@dataclass(frozen=True)
class Outcome:
    """What happened to each example; arrays of length N, in the order of the examples.

    success: the attacked image is misclassified. An image that is misclassified as it is counts, at distance 0, so
    robust accuracy is one minus the share of successes.
    distance: of the misclassified image from the original in `norm`; NaN where none was found.
    broken_by: the attack that found it, "clean" for an image misclassified as it is, "" for one that stands.
    clean_correct, adversarial_correct: share of draws that classify correctly: 0 or 1 unless the model is randomised.
    adversarial_survived: whether every one of the draws classifies the attacked image correctly.
    queries: images that attacks without gradients showed the model until it was done, the budget where it stands; of
    several radii as one search all from the largest down.  radius_queries: those at this radius alone, never more than
    such an attack was allowed; where it is left out, all were. int32, -1 where no such attack ran.
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
    queries: np.ndarray
    radius_queries: np.ndarray = None  # pyright: ignore[reportAssignmentType]

    def __post_init__(self) -> None:
        if self.radius_queries is None:
            object.__setattr__(self, "radius_queries", self.queries)


@dataclass(frozen=True)
class Batch:
    """The outcome of a batch, and its attacked images as they were judged, float32, shape (B, C, H, W), on that device.

    stage: position of the attack that broke each example, -1 for one misclassified as it is, the number of attacks for
    one that stands.  seconds: spent on each attack.  proved: which examples are proved to stand, and were spared
    attacks; None where nothing was to be proved.
    """

    outcome: Outcome
    x_adv: Tensor
    stage: np.ndarray
    seconds: list[float]
    proved: np.ndarray | None = None


@dataclass(frozen=True)
class Score:
    """Predictions by majority over draws, the share of draws that were right, and whether all were; shape (B,)."""

    prediction: Tensor
    correct: Tensor
    survived: Tensor

    @classmethod
    def fixed(cls, prediction: Tensor, y: Tensor) -> "Score":
        """That of a model that always gives the same answer."""
        return cls(prediction, (prediction == y).float(), prediction == y)


@torch.no_grad()
def score(model: nn.Module, x: Tensor, y: Tensor, draws: int) -> Score:
    """Classify the images by `draws` fresh passes."""
    logits = ask(model, x)
    votes = torch.zeros_like(logits, dtype=torch.float32)
    for draw in range(draws):
        predicted = classes_of(logits if draw == 0 else ask(model, x))
        votes.scatter_add_(1, predicted[:, None], torch.ones_like(votes[:, :1]))
    right = votes.gather(1, y[:, None]).squeeze(1)
    return Score(votes.argmax(1), right / draws, right == draws)


def judge(
    index: Tensor,
    y: Tensor,
    clean: Score,
    attacked: Score,
    distance: Any,
    broken_by: np.ndarray,
    queries: Tensor,
    radius_queries: Tensor | None = None,
) -> Outcome:
    """The batch's outcome from fresh passes alone: what an attack believes of itself does not count.

    radius_queries: None where all queries were at one radius.
    """
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
        queries=queries.cpu().numpy().astype(np.int32),
        radius_queries=(queries if radius_queries is None else radius_queries).cpu().numpy().astype(np.int32),
    )


def join(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcomes of consecutive batches as one."""
    return Outcome(**{f.name: np.concatenate([getattr(o, f.name) for o in outcomes]) for f in fields(Outcome)})


def gather(batches: Sequence[Batch], place: Tensor) -> Batch:
    """Batches that were worked on side by side as one, its rows in this order. An attack's seconds are the longest."""
    outcome, order = join([batch.outcome for batch in batches]), place.numpy()
    return Batch(
        Outcome(**{name: values[order] for name, values in vars(outcome).items()}),
        torch.cat([batch.x_adv for batch in batches])[place],
        np.concatenate([batch.stage for batch in batches])[order],
        [max(seconds) for seconds in zip(*(batch.seconds for batch in batches), strict=True)],
        None if (proved := all_proved(batches)) is None else proved[order],
    )


def one_below_the_other(batches: Sequence[Batch]) -> Batch:
    """Batches that were worked on in turn as one. An attack's seconds are those of all."""
    if len(batches) == 1:
        return batches[0]
    return Batch(
        join([batch.outcome for batch in batches]),
        torch.cat([batch.x_adv for batch in batches]),
        np.concatenate([batch.stage for batch in batches]),
        [sum(seconds) for seconds in zip(*(batch.seconds for batch in batches), strict=True)],
        all_proved(batches),
    )


def all_proved(batches: Sequence[Batch]) -> np.ndarray | None:
    """Which examples of consecutive batches are proved to stand."""
    found = [batch.proved for batch in batches if batch.proved is not None]
    return np.concatenate(found) if found else None


def check_attacked(owner: str, found: Any, x: Tensor) -> None:
    """Raise TypeError or ValueError unless an attack gives an image for each of x, like them."""
    if not isinstance(found, Tensor):
        raise TypeError(f"{owner} gives {type(found).__name__}: expected images as a tensor of shape {tuple(x.shape)}")
    came, expected = ((tuple(t.shape), t.dtype, t.device) for t in (found, x))
    if came != expected:
        words = ("shape {}, {}, on {}".format(*kind) for kind in (came, expected))
        raise ValueError("{} gives images of {}: expected {}".format(owner, *words))


def check_budget(x_adv: Tensor, x: Tensor, norm: Norm, eps: float | None, names: Sequence[str]) -> None:
    """Raise RuntimeError unless every image is in the box and the ball, by float32 arithmetic on the images kept."""
    if not inside(x_adv, x, math.inf if eps is None else eps, norm).all():
        raise RuntimeError(f"one of the attacks {list(names)} left its {norm} ball of radius {eps}, or the box")


def check_classes(model: nn.Module, x: Tensor, num_classes: int) -> int:
    """How many logits the model gives, for as many of the images as memory holds.

    Raises ValueError unless that is one finite row an image, with a class for every label.
    """
    check_there(model)
    logits = first_answer(model, x)
    if logits.shape[1] < num_classes:
        raise ValueError(
            f"the model gives {counted(logits.shape[1], 'class', 'classes')}, but the dataset has {num_classes}: "
            "expected a logit for every label"
        )
    if not logits.isfinite().all():
        raise ValueError("the model gives NaN or infinite logits for clean images: its weights are broken")
    if any(isinstance(layer, fx.GraphModule | torch.jit.ScriptModule) for layer in model.modules()):
        for n in {len(x) + 1, max(batch_sizes(x))}:  # which may be written into what was recorded
            first_answer(model, x.repeat(-(-n // len(x)), 1, 1, 1)[:n], most=len(x))
    return logits.shape[1]


@torch.no_grad()
def first_answer(model: nn.Module, x: Tensor, most: int | None = None) -> Tensor:
    """The model's logits for as many of the images as memory holds. What it raises becomes a ValueError of one line.

    most: a number of images that it takes, where that is known.
    """
    try:
        return as_many_as_fit(lambda n: ask(model, x[:n]), len(x))
    except (Exception, SystemExit) as error:  # a model is the user's code
        if out_of_memory(error):
            raise
        if isinstance(error, ValueError):
            raise ValueError(in_a_line(error)) from error
        mend = mended(model, error, most)
        raise ValueError(
            f"the model fails on float32 images of shape {tuple(x.shape)}: "
            f"{type(error).__name__}: {in_a_line(error)}{mend}"
        ) from error


# How PyTorch says that a program was exported for one number of images; the second until 2.7.
FIXED_BATCH = ("size()[0]", ".shape[0] to be equal to")


def mended(model: nn.Module, error: BaseException, most: int | None) -> str:
    """How to mend a model that fails so, where that is plain."""
    if most is not None or any(place in str(error) for place in FIXED_BATCH):
        takes = "" if most is None else f", and not on {most}"
        scripted = any(isinstance(layer, torch.jit.ScriptModule) for layer in model.modules())
        how = "script it" if scripted else "export it with dynamic_shapes=({0: torch.export.Dim('batch')},)"
        return f"{takes}: expected a model that takes any number of images, {how}"
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if kinds and torch.float32 not in kinds:
        return f": its weights are {', '.join(sorted(map(str, kinds)))}, expected float32: call its .float()"
    return ""
