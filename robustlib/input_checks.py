"""Checks of the kernels' inputs besides numbers: images, labels, radii and draws, once, before anything is run."""

import functools
import inspect
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from robustlib.arguments import check_arguments, check_value, check_width, keywords
from robustlib.datasets.lazy_images import ImageSet, LazyImages
from robustlib.number_text import counted, distinct
from robustlib.rng import Draws

P = ParamSpec("P")
T = TypeVar("T")

BARE: dict[Any, Any] = {}  # what `checked` made, and of what


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """A function (model, x, y, *, ...) or (model, x, *, ...) that checks what it is given first. Its signature stays.

    For that the images are read once, and a CUDA device is waited for once.
    """
    owner, known = function.__name__, keywords(function)
    first = [name for name in inspect.signature(function).parameters if name not in known]
    defaults = {name: parameter.default for name, parameter in known.items()}

    @functools.wraps(function)
    def call(*args: P.args, **given: P.kwargs) -> T:
        everything: dict[str, Any] = defaults | dict(zip(first, args, strict=False)) | given
        if len(args) > len(first) or not everything.keys() >= set(first):
            return function(*args, **given)  # which says what is missing
        if isinstance(eps := given.get("eps"), Tensor) and eps.ndim == 0:
            everything["eps"] = given["eps"] = eps.item()
        check_arguments(owner, known, given)
        highest = check_batch(owner, everything)
        with ExitStack() as stack:
            for net in (everything["model"], everything.get("surrogate")):
                stack.enter_context(counting_classes(owner, net, highest))
            return function(*args, **given)

    BARE[call] = function
    return call


def unchecked(function: Callable[P, T]) -> Callable[P, T]:
    """The function without its checks, for those who call it again and again with what is known to be in order."""
    return BARE.get(function, function) if isinstance(function, Hashable) else function


def check_batch(owner: str, given: dict[str, Any]) -> int:
    """Check images and all that has a row for each of them; returns the highest label, -1 where there is none."""
    called = "target" if "target" in given else "y"  # explanations are of any class, attacks know the true one
    x, y, eps = given["x"], given.get(called), given.get("eps")
    check_images(owner, x)
    if y is not None:
        check_labels(owner, x, y, called)
    check_beside(owner, x, given)
    if len(x) == 0:
        return -1
    radii = eps if isinstance(eps, Tensor) else None
    ends = extremes(x, *(rows for rows in (y, radii) if rows is not None))
    check_box(owner, *ends[0])
    for radius in ends[-1] if radii is not None else ():
        check_value(owner, "eps", float, radius)
        check_width(owner, "eps", given.get("norm"), radius)
    return -1 if y is None else check_lowest(owner, *ends[1])


def check_data(owner: str, x: ImageSet, y: Tensor, index: Tensor | None = None, *, boxed: bool = False) -> int:
    """Check a data set that is taken batch by batch, and which of its examples to take; returns the highest label.

    boxed: images are floats, and all of them are looked at; else they may be uint8, and whoever makes floats of them
    looks at their values.
    """
    check_images(owner, x, whole=not boxed)
    check_labels(owner, x, y, beside=False)
    if len(x) == 0:
        raise ValueError(f"{owner}: expected at least one image, got none")
    if boxed:
        check_box(owner, *extremes(x[:])[0])
    if index is not None and len(index):
        low, high = extremes(index)[0]
        if index.dtype != torch.int64 or index.ndim != 1 or low < 0 or high >= len(x):
            came = f"{low:g} to {high:g} of {index.dtype}, shape {tuple(index.shape)}"
            raise ValueError(f"{owner}: expected index as int64 from 0 to {len(x) - 1}, shape (n,), got {came}")
    return check_lowest(owner, *extremes(y)[0])


def check_images(owner: str, x: Any, *, whole: bool = False) -> None:
    """whole: uint8 is taken too."""
    if not isinstance(x, Tensor) and not (whole and isinstance(x, LazyImages)):
        raise TypeError(f"{owner}: expected images as a tensor of shape (B, C, H, W), got {type(x).__name__}")
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(f"{owner}: expected images of shape (B, C, H, W), got {tuple(x.shape)}")
    if not x.is_floating_point() and not (whole and x.dtype == torch.uint8):
        mend = ": divide them by 255" if x.dtype == torch.uint8 else ""
        raise TypeError(f"{owner}: expected images as floats in [0, 1]{' or uint8' * whole}, got {x.dtype}{mend}")


def check_labels(owner: str, x: ImageSet, y: Any, called: str = "y", *, beside: bool = True) -> None:
    """called: the argument's name.  beside: labels lie on the images' device."""
    if not isinstance(y, Tensor) or y.dtype != torch.int64:
        came = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"{owner}: expected {called} as a tensor of classes, torch.int64, got {came}")
    if y.shape != x.shape[:1]:
        raise ValueError(
            f"{owner}: expected {called} of shape ({len(x)},), a class for each image, got {tuple(y.shape)}"
        )
    if beside and y.device != x.device:
        raise ValueError(f"{owner}: expected {called} on the images' device, {x.device}, got {y.device}")


def check_beside(owner: str, x: Tensor, given: dict[str, Any]) -> None:
    """Check the kind and the shape of what goes beside images, where it is given: no value is looked at."""
    draws = given.get("draws")
    if draws is not None and not isinstance(draws, Draws):
        raise TypeError(f"{owner}: expected draws of type Draws, got {type(draws).__name__}")
    count = {} if draws is None else {"draws": draws.index}
    for name, rows in (count | {name: given.get(name) for name in ("eps", "spent")}).items():
        if isinstance(rows, Tensor) and rows.shape != x.shape[:1]:
            raise ValueError(
                f"{owner}: expected {name} for {counted(len(x), 'image')}, shape ({len(x)},), got {tuple(rows.shape)}"
            )
    start = given.get("start")
    if isinstance(start, Tensor) and start.shape != x.shape:
        raise ValueError(f"{owner}: expected start of the images' shape {tuple(x.shape)}, got {tuple(start.shape)}")


def extremes(*tensors: Tensor) -> list[tuple[float, float]]:
    """The least and the largest value of each; both are NaN where one is."""
    wide = torch.float32 if tensors[0].device.type == "mps" else torch.float64  # MPS has no float64
    ends = torch.stack([end.to(wide) for tensor in tensors for end in tensor.detach().aminmax()]).tolist()
    return list(zip(ends[::2], ends[1::2], strict=True))


def check_box(owner: str, low: float, high: float) -> None:
    if not (low >= 0 and high <= 1):
        ends = distinct((low, high, 0, 1), 4)
        raise ValueError(
            f"{owner}: expected images in [0, 1], got values from {ends[0]} to {ends[1]}: "
            "leave normalisation to the model's first layer"
        )


def check_lowest(owner: str, lowest: float, highest: float) -> int:
    if lowest < 0:
        raise ValueError(f"{owner}: expected classes of at least 0 in y, got {lowest:g}")
    return int(highest)


def check_highest(owner: str, highest: int, classes: int) -> None:
    if highest >= classes:
        has = counted(classes, "class", "classes")
        raise ValueError(f"{owner}: the model gives {has}, but y holds {highest}: expected a logit for every label")


def check_radii(owner: str, norm: str, radii: Sequence[float | None]) -> None:
    """Check the radii of one evaluation: several of them are numbers, and rise."""
    for eps in radii:
        check_value(owner, "eps", float | None, eps)
        check_width(owner, "eps", norm, eps)
    numbers = [math.nan if eps is None else eps for eps in radii]
    if not all(smaller < larger for smaller, larger in pairwise(numbers)):
        raise ValueError(f"{owner}: expected radii that rise, got {', '.join(map(str, radii))}")


@contextmanager
def counting_classes(owner: str, model: Any, highest: int) -> Iterator[None]:
    """Raises ValueError at the model's first answer if it has no logit for the highest label.

    Only that answer knows: an extra pass would draw from a randomised model's generator and cost a query.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):  # which takes no hook
        yield
        return

    def look(module: nn.Module, inputs: Any, logits: Any) -> None:
        handle.remove()
        if isinstance(logits, Tensor) and logits.ndim == 2:
            check_highest(owner, highest, logits.shape[1])

    handle = model.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()
