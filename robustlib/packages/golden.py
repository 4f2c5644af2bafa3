"""Golden images: what a package is tried on wherever it is opened, with the answers that it gave where it was made.

They are a NumPy archive without pickles, which NumPy alone reads.
"""

import io
import tokenize
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustlib.packages.contents import BROKEN, PackageError

IMAGES, LABELS, INDEX = "images", "labels", "index"
# What arrays of an archive may be: their kinds, and how many axes.
FORMS = {IMAGES: (np.uint8, 4), LABELS: (np.int64, 1), INDEX: (np.int64, 1)}


@dataclass(frozen=True)
class Golden:
    """images: uint8, (N, C, H, W).  labels: classes, (N,).  index: places in the evaluated split, (N,).

    logits: float32, (N, classes), by the name of the program that gave them.
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    logits: dict[str, np.ndarray]


def golden_bytes(golden: Golden) -> bytes:
    """The archive; the same golden images give the same bytes."""
    file = io.BytesIO()
    arrays: dict[str, Any] = {IMAGES: golden.images, LABELS: golden.labels, INDEX: golden.index} | golden.logits
    np.savez(file, **arrays)  # numbers alone, which are no pickles
    return file.getvalue()


def read_golden(data: bytes, name: str = "golden.npz") -> Golden:
    """The reverse. Raises PackageError for an archive that is none, or holds anything but arrays of numbers."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise PackageError(f"{name}: expected arrays as they are, got packed ones")
        # No pickle is read: an array of objects raises.
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            arrays = {key: found[key] for key in found.files}
    except PackageError:
        raise
    except (*BROKEN, OverflowError, OSError, KeyError, MemoryError, tokenize.TokenError) as error:
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise PackageError(f"{name} is no archive of arrays ({told[:120]})") from error
    for key, array in arrays.items():
        kind, axes = FORMS.get(key, (np.float32, 2))
        if not isinstance(array, np.ndarray) or array.dtype != kind or array.ndim != axes:
            raise PackageError(f"{name}: expected {key} as {np.dtype(kind)} with {axes} axes")
    if missing := FORMS.keys() - arrays.keys():
        raise PackageError(f"{name} has no {', '.join(sorted(missing))}")
    if len({len(array) for array in arrays.values()}) != 1 or not len(arrays[IMAGES]):
        raise PackageError(f"{name}: expected as many of each array, got {[len(array) for array in arrays.values()]}")
    logits = {key: array for key, array in arrays.items() if key not in FORMS}
    return Golden(arrays[IMAGES], arrays[LABELS], arrays[INDEX], logits)


def as_floats(images: np.ndarray) -> np.ndarray:
    """Images of bytes as models take them: float32 in [0, 1]."""
    return images.astype(np.float32) / np.float32(255)
