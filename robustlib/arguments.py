"""The ranges of the kernels' arguments: one table of numbers by name, for calls from Python and for studies alike.

A name means the same wherever it stands, so a new attack whose parameters have known names is checked without a word.
Free of torch, as the settings are. Images and labels: robustlib.input_checks.
"""

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from robustlib.names import unknown
from robustlib.number_text import distinct, short

P = ParamSpec("P")
T = TypeVar("T")

Norm = Literal["Linf", "L2", "L1"]
NORMS: tuple[str, ...] = get_args(Norm)


@dataclass(frozen=True)
class Range:
    """Finite numbers within bounds: at least `least`, at most `most`, more than `above`, less than `below`."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, value: Any) -> bool:
        # By comparing, since a whole number may be too large for a float. NaN is in no range.
        return self.least <= value <= self.most and self.above < value < self.below

    @property
    def words(self) -> str:
        if self == Range():
            return "to be finite"
        if self.above > -math.inf and self.below < math.inf:
            return f"between {short(self.above, 6)} and {short(self.below, 6)}"
        if self.least > -math.inf and self.most < math.inf:
            return f"from {short(self.least, 6)} to {short(self.most, 6)}"
        low = f"above {short(self.above, 6)}" if self.above > -math.inf else f"of at least {short(self.least, 6)}"
        high = f"at most {short(self.most, 6)}" if self.most < math.inf else f"below {short(self.below, 6)}"
        return f"{low} and {high}" if self.most < math.inf or self.below < math.inf else low


COUNT, POSITIVE, NOT_NEGATIVE = Range(least=1), Range(above=0), Range(least=0)
INNER, SHARE, UNIT = Range(above=0, below=1), Range(above=0, most=1), Range(least=0, most=1)
# A key of random numbers is made for each vote before any is asked: a million take 2 s and 0.2 GB.
VOTES = Range(least=1, most=1_000_000)

RANGES: dict[str, Range] = {
    # Attacks. What is 0 here would switch the attack off: no step, no query, no class to go to, no weight of the loss.
    "eps": NOT_NEGATIVE,
    "steps": COUNT,
    "search_steps": COUNT,
    "queries": COUNT,
    "samples": COUNT,
    "start_samples": COUNT,
    "targets": COUNT,
    "classes": Range(least=2),
    "step_size": POSITIVE,
    "initial_const": POSITIVE,
    "radius": POSITIVE,
    "radius_step": INNER,
    "share": SHARE,
    "confidence": NOT_NEGATIVE,
    "decay": NOT_NEGATIVE,
    "overshoot": NOT_NEGATIVE,
    "severity": Range(least=1, most=5),
    # Evaluations and certificates.
    "restarts": COUNT,
    "dropout_at_inference": INNER,
    "seed": Range(),
    "num_classes": COUNT,
    "batch_size": COUNT,
    "draws": COUNT,
    "eot_draws": COUNT,
    "n0": VOTES,
    "n": VOTES,
    "alpha": INNER,
    "sigma": POSITIVE,
    # Explanations.
    "baseline": UNIT,
    "grid": Range(least=2),
    "window": COUNT,
    "stride": COUNT,
    "ridge": POSITIVE,
    "kernel_width": POSITIVE,
    "sharpness": POSITIVE,
    "looks": COUNT,
    "curve_steps": COUNT,
    # Defences.
    "quality": Range(least=1, most=95),
    "bits": Range(least=1, most=8),
    "size": COUNT,
    "smallest": SHARE,
    "p": INNER,
    # Training.
    "epochs": COUNT,
    "learning_rate": POSITIVE,
    "momentum": Range(least=0, below=1),
    "weight_decay": NOT_NEGATIVE,
    "crop": NOT_NEGATIVE,
    "examples": Range(least=2),
    "validation": INNER,
    "validation_examples": COUNT,
    "validation_eps": NOT_NEGATIVE,
    "validation_steps": COUNT,
    # Models behind an address.
    "retries": NOT_NEGATIVE,
    "timeout": POSITIVE,
}


def say(owner: str, words: str) -> str:
    return f"{owner}: {words}" if owner else words


def check_value(owner: str, name: str, kind: Any, value: Any) -> None:
    """Raises TypeError for what is not the number that the annotation asks for, ValueError for one out of its range or
    for a word that is none of the annotation's. Tensors and whatever else the annotation has are let through.
    """
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    choices = [choice for one in kinds if get_origin(one) is Literal for choice in get_args(one)]
    classes = tuple(one for one in kinds if isinstance(one, type))
    numeric = {int, float} & set(classes)
    if isinstance(value, tuple({*classes} - numeric)) or (isinstance(value, str) and value in choices):
        return
    if choices and not numeric:
        raise ValueError(say(owner, unknown(name, value, choices)))
    if not numeric:
        return
    wanted = numbers.Real if float in numeric else numbers.Integral
    if isinstance(value, bool) or not isinstance(value, wanted):
        came = repr(value) if isinstance(value, bool | int | float | str) else type(value).__name__
        raise TypeError(say(owner, f"expected {name} of type {getattr(kind, '__name__', str(kind))}, got {came}"))
    check_range(owner, name, value, RANGES.get(name, Range()))


def check_range(owner: str, name: str, value: Any, known: Range) -> None:
    """Raises ValueError for a number out of the range; this is the one sentence that says so."""
    if value not in known:
        finite = " and finite" if value == min(known.most, known.below) == math.inf and known != Range() else ""
        raise ValueError(say(owner, f"expected {name} {known.words}{finite}, got {value}"))


def norms_of(parameter: inspect.Parameter) -> tuple[str, ...]:
    """The norms that a parameter takes: those of its annotation, so that no list beside it could differ."""
    return get_args(parameter.annotation)


def check_norm(owner: str, norm: Any, norms: tuple[str, ...]) -> None:
    if norm not in NORMS:
        raise ValueError(say(owner, unknown("norm", norm, NORMS)))
    if norm not in norms:
        raise ValueError(say(owner, f"expected norm {' or '.join(norms)}, got {norm!r}: fmn and fab take all"))


def check_width(owner: str, name: str, norm: Any, eps: Any) -> None:
    """In Linf a ball wider than the box is a radius in other units."""
    if norm == "Linf" and isinstance(eps, numbers.Real) and eps > 1:  # pyright: ignore[reportOperatorIssue]
        hint = f": did you mean {eps:g}/255?" if eps <= 255 else ""  # pyright: ignore[reportOperatorIssue]
        raise ValueError(
            say(owner, f"expected {name} in [0, 1] for images in [0, 1], got {distinct((float(eps), 1), 6)[0]}{hint}")
        )


def check_arguments(owner: str, known: Mapping[str, inspect.Parameter], given: Mapping[str, Any]) -> None:
    """Check the arguments given for known parameters, each and together; for the others their defaults stand."""
    for name, value in given.items():
        if name == "norm" and name in known:
            check_norm(owner, value, norms_of(known[name]))
        elif name in known:
            check_value(owner, name, known[name].annotation, value)
    values = {name: parameter.default for name, parameter in known.items()} | dict(given)
    check_width(owner, "eps", values.get("norm"), values.get("eps"))


def check_queries(owner: str, queries: int, least: int) -> None:
    """least: without which the attack does not come to its first step."""
    if queries < least:
        raise ValueError(f"{owner}: expected queries of at least {least}, got {queries}: it would not come to a step")


def keywords(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """A function's parameters that are given by name alone."""
    known = inspect.signature(function).parameters
    return {name: p for name, p in known.items() if p.kind is p.KEYWORD_ONLY}


def checked_options(function: Callable[P, T]) -> Callable[P, T]:
    """The function, which checks the arguments given by name before anything else. Name and signature stay."""
    owner, known = function.__name__, keywords(function)

    @functools.wraps(function)
    def call(*args: P.args, **given: P.kwargs) -> T:
        check_arguments(owner, known, given)
        return function(*args, **given)

    return call
