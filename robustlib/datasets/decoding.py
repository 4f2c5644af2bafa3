"""Encoded pictures as uint8 arrays: a look at a header, and the pixels."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from robustlib.datasets.file_types import Encoded, describe_bytes
from robustlib.datasets.source import Reading

ORIENTATION = 0x0112  # EXIF's tag
TURNS = {  # by EXIF's orientation, as PIL.ImageOps.exif_transpose
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
EXIF = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")  # where Pillow looks for an orientation


@dataclass(frozen=True)
class Header:
    """What is known of a picture before it is decoded: mode, width and height as it will be read.

    frames: whether there are several frames or pages.  turned: whether EXIF data say that it is not upright.
    """

    mode: str
    width: int
    height: int
    frames: bool
    turned: bool


@dataclass(frozen=True)
class Form:
    """What all pictures of a split become: mode "L" or "RGB", and the shape (C, H, W)."""

    mode: str
    shape: tuple[int, int, int]
    notes: tuple[str, ...] = ()


@cache
def formats() -> tuple[str, ...]:
    """Pillow's formats but PostScript, which it has Ghostscript execute."""
    Image.init()
    return tuple(name for name in Image.ID if name != "EPS")


@contextmanager
def without_warnings() -> Iterator[None]:
    """Pillow's warnings are for programmers, but that of a picture that would take too much memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def opened(data: Encoded, where: str) -> Image.Image:
    """The picture with its header read. Raises ValueError for what is none, or would take too much memory."""
    try:
        return Image.open(data if isinstance(data, Path) else io.BytesIO(data or b""), "r", formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large(where, error) from error
    except Exception as error:  # whatever Pillow stumbles over in bytes that are no picture
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:  # the machine's, not theirs
            raise
        told = f": {error}" if "too large" in str(error) else ""
        raise ValueError(f"{where}: expected PNG or JPEG bytes, got {describe_bytes(data)}{told}") from error


def too_large(where: str, error: Exception) -> ValueError:
    pixels = re.search(r"\d+", str(error))
    got = f"one of {pixels[0]}" if pixels else str(error)
    return ValueError(f"{where}: expected an image of at most {Image.MAX_IMAGE_PIXELS} pixels, got {got} by its header")


def header(data: Encoded, where: str, reading: Reading) -> Header:
    """What a picture's header says, turned where it is asked for."""
    with without_warnings(), opened(data, where) as picture:
        (width, height), mode, turn = picture.size, picture.mode, orientation(picture, reading.exif_transpose)
        if reading.exif_transpose and turn >= 5:  # these lie on their side
            width, height = height, width
        return Header(mode, width, height, has_frames(picture), turn != 1)


def orientation(picture: Image.Image, thorough: bool) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none, or none that can be read.

    thorough: a PNG may have it at its end; then all of it is read.  A TIFF is always turned, by Pillow.
    """
    if picture.format == "TIFF" or not (thorough or any(key in picture.info for key in EXIF)):
        return 1
    try:
        if thorough and picture.format == "PNG":
            picture.load()
        found = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged block beside the pixels, or pixels that are: then decoding says so
        return 1
    return found if found in TURNS else 1


def has_frames(picture: Image.Image) -> bool:
    """Of a JPEG with several pictures the others are previews."""
    try:
        return picture.format != "MPO" and bool(getattr(picture, "is_animated", False))
    except Exception:  # the later frames are damaged; the first is what is read
        return True


def decode(data: Encoded, where: str, form: Form, reading: Reading) -> np.ndarray:
    """One picture, uint8, shape (C, H, W). Raises ValueError for one that is cut off or damaged."""
    with without_warnings(), opened(data, where) as picture:
        try:
            picture.load()
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise too_large(where, error) from error
        except Exception as error:  # whatever a decoder stumbles over
            if isinstance(error, MemoryError):
                raise
            raise ValueError(f"{where}: the {picture.format} is cut off or damaged: {error}") from error
        turn = TURNS.get(orientation(picture, True)) if reading.exif_transpose else None
        turned = picture if turn is None else picture.transpose(turn)
        plain = turned if turned.mode == form.mode else turned.convert(form.mode)
        pixels = np.asarray(fitted(plain, reading))
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if pixels.shape != form.shape:
        raise ValueError(f"{where}: image of shape {pixels.shape}, the others are {form.shape}: all must be alike")
    return pixels


def target(reading: Reading) -> tuple[int, int] | None:
    """Height and width that pictures are brought to; None where they stay as they are."""
    if reading.crop is not None:
        return reading.crop, reading.crop
    if reading.size is not None:
        return reading.size if isinstance(reading.size, tuple) else (reading.size, reading.size)
    return None


def resized(width: int, height: int, reading: Reading) -> tuple[int, int]:
    """Width and height after resizing: with a single number the shorter side becomes it, as in torchvision."""
    if reading.size is None:
        return width, height
    if isinstance(reading.size, tuple):
        return reading.size[1], reading.size[0]
    short, long = min(width, height), max(width, height)
    other = int(reading.size * long / short)
    return (reading.size, other) if width <= height else (other, reading.size)


def fitted(picture: Image.Image, reading: Reading) -> Image.Image:
    """Resized and cut as torchvision's Resize and CenterCrop do: bilinear, antialiased."""
    size = resized(*picture.size, reading)
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    side = target(reading)
    if side is None or (picture.height, picture.width) == side:
        return picture
    top, left = round((picture.height - side[0]) / 2), round((picture.width - side[1]) / 2)
    return picture.crop((left, top, left + side[1], top + side[0]))
