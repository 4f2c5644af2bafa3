"""Defences to study: functions from model to model, `defence(model, *, ...)`, by the names that studies use.

Those in RANDOMISED change their answer from pass to pass, by torch's generator.
"""

from collections.abc import Callable

from torch import nn

from robustlib.defences.preprocess import bit_depth, jpeg, median, noise, resize_pad
from robustlib.defences.smoothing import smoothing
from robustlib.models.randomised import dropout_at_inference

DEFENCES: dict[str, Callable[..., nn.Module]] = {
    "jpeg": jpeg,
    "bit_depth": bit_depth,
    "median": median,
    "resize_pad": resize_pad,
    "noise": noise,
    "smoothing": smoothing,
    "dropout": dropout_at_inference,
}

RANDOMISED = frozenset({"resize_pad", "noise", "smoothing", "dropout"})
