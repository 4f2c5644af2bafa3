"""Black-box models, which only answer: any callable, or a server behind an address. They have no gradient."""

import io
import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.addresses import is_address, public
from robustlib.arguments import check_value
from robustlib.model_calls import Careful
from robustlib.models.http_request import Refused, post
from robustlib.number_text import counted

# How far the sum of a row of probabilities may lie from 1: each may be rounded to two decimals.
ROUNDED, MOST_ROUNDED = 5e-3, 0.5
# Of a server's answer: bytes of a number with what parts it from the next, rows that are taken whatever the data set's
# classes (ImageNet-21k has 21,841), and bytes for what else it says.
LONGEST_NUMBER, LEAST_CLASSES, ASIDE = 48, 25_000, 2**20
# Bodies of images: nested lists of numbers, and arrays as np.save writes them, which take a hundredth of the time.
JSON, NPY = "application/json", "application/x-npy"
LEAST = 1e-12  # a probability that is zero, as a logit: the logarithm of this


class CallLock:
    """One call at a time, of all copies of a model together: copies of a function are the function itself, and it may
    give the same memory each time.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *error: Any) -> None:
        self.lock.release()

    def __deepcopy__(self, memo: Any) -> "CallLock":
        return self

    def __reduce__(self) -> Any:
        return CallLock, ()


class BlackBoxModel(Careful, nn.Module):
    """A callable as a model.

    fn: takes images, float32 in [0, 1], shape (B, C, H, W), a tensor on the CPU, which NumPy reads as it is. It gives
    logits (B, classes), probabilities (B, classes), turned into logarithms, or labels (B,), turned into rows with a
    one; a tensor, a NumPy array or nested lists. Which of the first two it is, the first answer settles: probabilities,
    where no row has a number outside [0, 1] or a sum that lies farther from one than rounding brings it.
    num_classes: needed for labels.
    Calls raise ValueError for an answer of another shape or type, and for a negative number among probabilities.
    """

    def __init__(self, fn: Callable[[Tensor], Any], num_classes: int | None = None):
        super().__init__()
        self.fn = fn
        self.num_classes = num_classes
        self.call_lock: AbstractContextManager[None] = CallLock()
        self.gives_probabilities: bool | None = (
            None  # whether it answers with probabilities; not known before the first answer
        )

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        images = x.detach().to("cpu", torch.float32, copy=True)  # which it may write into
        with self.call_lock:
            rows, labels = as_rows_of_numbers(self.fn(images), len(x), self.num_classes)
        if not labels and len(rows):
            if self.gives_probabilities is None:
                self.gives_probabilities = are_probabilities(rows)
            if self.gives_probabilities:
                if (rows < 0).any():
                    raise ValueError(f"expected probabilities, as before, got {rows.min():g}")
                rows = rows.clamp_min(LEAST).log()
        return rows.to(x.device)


def are_probabilities(rows: Tensor) -> bool:
    """Whether rows of numbers are probabilities, perhaps rounded. One scale for all that a model says: were some rows
    logarithms and others not, searches by their margins would be misled.
    """
    off = (rows.sum(1) - 1).abs().max()
    return bool((rows >= 0).all() and (rows <= 1).all() and off <= min(ROUNDED * rows.shape[1], MOST_ROUNDED))


def as_rows_of_numbers(answer: Any, count: int, num_classes: int | None) -> tuple[Tensor, bool]:
    """An answer for `count` images, float32, shape (count, classes), and whether it came as labels."""
    try:
        found = (
            answer.detach().to("cpu", copy=True) if isinstance(answer, Tensor) else torch.from_numpy(np.array(answer))
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected numbers as the model's answer, got {type(answer).__name__} ({error})") from error
    if found.ndim == 1 and len(found) == count:
        return as_rows(found, num_classes), True
    if found.ndim != 2 or len(found) != count or found.is_complex():
        raise ValueError(f"expected an answer of shape ({count}, classes) or ({count},), got {tuple(found.shape)}")
    return found.float(), False


def as_rows(labels: Tensor, num_classes: int | None) -> Tensor:
    """Labels as rows with a one in the label's place."""
    if num_classes is None:
        raise ValueError("the model answers with labels: expected num_classes, the number of classes there are")
    if not (labels == labels.long()).all() or not ((labels >= 0) & (labels < num_classes)).all():
        raise ValueError(f"expected labels from 0 to {num_classes - 1}, got {labels.min():g} to {labels.max():g}")
    return F.one_hot(labels.long(), num_classes).float()


def endpoint(
    url: str,
    *,
    num_classes: int | None = None,
    layout: Literal["CHW", "HWC"] = "CHW",
    batch_size: int = 64,
    timeout: float = 30.0,
    retries: int = 4,
    backoff: float = 0.5,
) -> BlackBoxModel:
    """A model behind HTTP that speaks the V1 protocol of KServe and TensorFlow Serving, as `http://HOST/...:predict`.

    It is sent {"instances": [image, ...]}, each image nested lists in this layout, and answers {"predictions": [...]}:
    rows of logits or probabilities, or labels. One whose answers say `Accept-Post: application/x-npy` gets the same
    numbers as an array from then on, and lists again for good once one was refused.
    batch_size: images a request.  timeout: seconds that the server may be silent; ten times that for a request as a
    whole.
    retries: how often a request is sent again that the server did not answer, or answered with 429 or 5xx; after
    `backoff` seconds, then twice as long, and so on, or as long as it asks for by Retry-After. Connections are kept.
    Redirects are not followed: images go to this address and no other.
    https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol
    A name and password before the host (`http://NAME:PASSWORD@HOST/...`) are sent as HTTP's basic authentication; no
    error tells them, nor the query.
    Raises ValueError for what is no address or layout; calls raise it for a server that does not answer, or otherwise.
    """
    if not is_address(url):
        raise ValueError(f"expected a model's address as http://HOST/...:predict, got {url!r}")
    if layout not in ("CHW", "HWC"):
        raise ValueError(f"expected layout CHW or HWC, got {layout!r}")
    for name, kind, value in (("batch_size", int, batch_size), ("retries", int, retries), ("timeout", float, timeout)):
        check_value("", name, kind, value)

    arrays, refused = False, False  # whether the server said last that it takes them, and whether it refused one

    def ask(x: Tensor) -> list[Any]:
        nonlocal arrays, refused
        images = x if layout == "CHW" else x.permute(0, 2, 3, 1)
        answers: list[Any] = []
        for chunk in images.split(batch_size) if len(images) else ():  # servers refuse a request without images
            most = most_bytes(len(chunk), num_classes)
            send = partial(post, url, timeout=timeout, retries=retries, backoff=backoff, most=most)
            found = None
            if arrays and not refused:
                try:
                    found = send(body_of(chunk, NPY), NPY)
                except Refused:  # by another server behind the address, or a proxy that passes no such body
                    refused = True
            found = found or send(body_of(chunk, JSON), JSON)
            arrays = NPY in found.accepts
            answers += predictions(url, found.body, len(chunk))
        return answers

    model = BlackBoxModel(ask, num_classes)
    model.call_lock = nullcontext()  # whom several may ask at once
    return model


def body_of(x: Tensor, kind: str) -> bytes:
    """Images as a body of this media type."""
    if kind == JSON:
        return json.dumps({"instances": x.tolist()}).encode()
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(x.numpy()), allow_pickle=False)
    return file.getvalue()


def most_bytes(count: int, num_classes: int | None) -> int:
    """How long an answer for so many images may be."""
    return ASIDE + count * LONGEST_NUMBER * max(LEAST_CLASSES, 2 * (num_classes or 0))


def predictions(url: str, body: bytes, count: int) -> list[Any]:
    """The predictions in an answer, one for each image."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:  # the second for brackets within brackets
        raise ValueError(f"{public(url)} answers with no JSON: {body[:80].decode(errors='replace')!r}") from error
    rows = found.get("predictions") if isinstance(found, dict) else None
    if not isinstance(rows, list):
        came = f"the entries {', '.join(found) or 'none'}" if isinstance(found, dict) else type(found).__name__
        raise ValueError(f'{public(url)} answers without a list "predictions", with {came}')
    if len(rows) != count:
        raise ValueError(f"{public(url)} gives {counted(len(rows), 'prediction')} for {counted(count, 'image')}")
    if any(isinstance(row, dict) for row in rows):
        raise ValueError(
            f"{public(url)} gives several outputs an image ({', '.join(rows[0])}): expected a row of scores alone"
        )
    return rows
