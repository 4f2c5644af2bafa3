"""A trial of a training: what an epoch of it takes here, from a few of its steps."""

import time
from collections.abc import Callable

import torch
from torch import nn

from robustlib.datasets.lazy_images import ImageSet
from robustlib.inference.model_modes import as_images, evaluating, layout, moved, strict_float32
from robustlib.inference.predict import predict
from robustlib.inference.throughput import Clock, timed
from robustlib.settings import TrainSettings
from robustlib.training.copy_updates import tracking_copy
from robustlib.training.loop import (
    SAMPLE,
    VALIDATION_BATCH,
    fitting_layout,
    make_optimizer,
    run_epoch,
    split,
    validate,
)

MOST_STEPS = 20


def epoch_seconds(
    model: nn.Module,
    x: ImageSet,
    settings: TrainSettings,
    *,
    device: torch.device,
    seconds: float = 1.0,
    clock: Clock = time.perf_counter,
) -> float:
    """The seconds that an epoch of `fit` will take: its steps, and the look at the validation examples after it.

    x: the training images.  seconds: about so long steps are tried, and validation as long.  clock: by which.
    The steps are the training's own, on the model as it comes, at a learning rate of 0. Labels are the model's answers,
    since an attack is done at once with what is misclassified.
    """
    model = fitting_layout(moved(model, device), x[:2])
    train, validation = split(len(x), settings, 0)
    some, few = train[: settings.batch_size], validation[:VALIDATION_BATCH]
    with evaluating(model), strict_float32():
        search = tracking_copy(model, as_images(x[:SAMPLE], device, layout(model)))
        y = torch.zeros(len(x), dtype=torch.int64)
        for rows in (some, few):
            y[rows] = predict(model, as_images(x[rows], device, layout(model))).cpu()
    if search is not None:
        search.choose()
    optimizer = make_optimizer(model, settings)

    def step(number: int) -> None:
        run_epoch(model, x, y, some.repeat(number), optimizer, [0.0] * number, settings, 0, search)

    def look() -> None:
        validate(model, x[few], y[few], settings, 0, device, search)

    look()  # the first is not counted
    per_step, per_look = each(step, seconds, clock), timed(look, clock)
    return per_step * len(train) / len(some) + per_look * len(validation) / len(few)


def each(step: Callable[[int], None], seconds: float, clock: Clock) -> float:
    """Seconds of a step: after a first one, which is not counted, as many as fit."""
    first = timed(lambda: step(1), clock)
    number = max(1, min(MOST_STEPS, int(seconds / max(first, 1e-6))))
    return timed(lambda: step(number), clock) / number
