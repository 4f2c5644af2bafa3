"""Encoded pictures as uint8 arrays: looked at by their headers, decoded one by one."""

import io
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from robustlib.datasets.source import Pictures, Reading

BEGINNINGS = {
    b"": "nothing",
    b"version https://git-lfs": "a Git LFS pointer: fetch the file itself with `git lfs pull`",
    b"<!DOCTYPE": "an HTML page",
    b"<html": "an HTML page",
    b"<svg": "an SVG drawing",
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzipped file",
}
ORIENTATION = 0x0112  # EXIF's tag
WIDE = ("I", "F")  # modes of more than 8 bits a channel begin so


@dataclass(frozen=True)
class Header:
    """A picture's mode, width and height."""

    mode: str
    width: int
    height: int


@dataclass(frozen=True)
class Form:
    """What all pictures of a split become: mode "L" or "RGB", and the shape (C, H, W)."""

    mode: str
    shape: tuple[int, int, int]
    notes: tuple[str, ...] = ()


def opened(data: bytes | None, where: str) -> Image.Image:
    """The picture with its header read. Raises ValueError for what is none, or would take too much memory."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(b"" if data is None else data))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        most = Image.MAX_IMAGE_PIXELS
        raise ValueError(f"{where}: expected an image of at most {most} pixels, got more: {error}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, TypeError, ValueError, EOFError) as error:
        raise ValueError(f"{where}: expected PNG or JPEG bytes, got {what(data)}") from error


def what(data: bytes | None) -> str:
    """What bytes that are no picture seem to be."""
    if data is None:
        return "null"
    begins = data.lstrip()[:64] if data[:1].isspace() else data[:64]
    named = (said for sign, said in BEGINNINGS.items() if (begins.startswith(sign) if sign else not data))
    return next(named, f"{len(data)} bytes of something else, beginning with {data[:8]!r}")


def header(data: bytes | None, where: str, reading: Reading) -> Header:
    """What a picture's header says, turned where it is asked for."""
    with opened(data, where) as picture:
        width, height = picture.size
        # Orientations from 5 on lie on their side.
        turned = reading.exif_transpose and picture.getexif().get(ORIENTATION, 1) >= 5
        return Header(picture.mode, *((height, width) if turned else (width, height)))


def survey(pictures: Pictures) -> Form:
    """What the pictures become, by all of their headers. Raises ValueError for those that do not fit together."""
    modes: Counter[str] = Counter()
    first: Header | None = None
    side = target(pictures.reading)
    for row, data in enumerate(pictures.fetch(np.arange(len(pictures.y)))):
        found = header(data, pictures.where(row), pictures.reading)
        first = first or found
        modes[found.mode] += 1
        if side is None and (found.height, found.width) != (first.height, first.width):
            check_alike(found, first, pictures.where(row), pictures.reading)
        check_large_enough(found, pictures.where(row), pictures.reading)
    if first is None:
        raise ValueError("the dataset holds no image")
    check_bits(modes, pictures)
    mode = "L" if set(modes) == {"L"} else "RGB"
    height, width = side or (first.height, first.width)
    return Form(mode, (1 if mode == "L" else 3, height, width), tuple(converted(modes)))


def target(reading: Reading) -> tuple[int, int] | None:
    """Height and width that pictures are brought to; None where they stay as they are."""
    if reading.crop is not None:
        return reading.crop, reading.crop
    if reading.size is not None:
        return reading.size if isinstance(reading.size, tuple) else (reading.size, reading.size)
    return None


def check_alike(found: Header, first: Header, where: str, reading: Reading) -> None:
    raise ValueError(
        f"{where}: image of {found.height}x{found.width} pixels, the first is {first.height}x{first.width}: expected "
        "all alike, or `size: N` and `crop: N`, which resize them and cut out their middle"
    )


def check_large_enough(found: Header, where: str, reading: Reading) -> None:
    """Whether what is cut out lies within the picture as it is resized."""
    if reading.crop is None:
        return
    width, height = resized(found.width, found.height, reading)
    if min(width, height) < reading.crop:
        raise ValueError(
            f"{where}: image of {height}x{width} pixels{' after resizing' if reading.size else ''}, expected at least "
            f"the crop of {reading.crop}: `size: {reading.crop}` or more enlarges it"
        )


def check_bits(modes: Counter[str], pictures: Pictures) -> None:
    """Pictures of more than 8 bits are taken only among coloured ones, as torchvision takes them."""
    wide = [mode for mode in modes if mode.startswith(WIDE)]
    if not wide or any(mode != "L" and mode not in wide for mode in modes):
        return
    for row, data in enumerate(pictures.fetch(np.arange(len(pictures.y)))):
        if (found := header(data, pictures.where(row), pictures.reading)).mode in wide:
            raise ValueError(
                f"{pictures.where(row)}: expected an 8-bit image, got mode {found.mode!r}: values outside 0 to 255"
            )


WORDS = {"L": "grey", "LA": "grey with transparency", "1": "black and white", "P": "palette", "CMYK": "CMYK"}


def converted(modes: Counter[str]) -> Iterator[str]:
    """What is said of pictures that become RGB."""
    if set(modes) <= {"L"} or set(modes) == {"RGB"}:
        return
    others = [(n, mode) for mode, n in sorted(modes.items()) if mode != "RGB"]
    told = ", ".join(f"{n} {WORDS.get(mode, mode)}" for n, mode in others)
    clipped = ", values above 255 clipped" if any(mode.startswith(WIDE) for _, mode in others) else ""
    yield f"{told} of {sum(modes.values())} images become RGB as in torchvision{clipped}"


def decode(data: bytes | None, where: str, form: Form, reading: Reading) -> np.ndarray:
    """One picture, uint8, shape (C, H, W). Raises ValueError for one that is cut off or damaged."""
    with opened(data, where) as picture:
        try:
            turned = ImageOps.exif_transpose(picture) if reading.exif_transpose else picture
            plain = turned if turned.mode == form.mode else turned.convert(form.mode)
            pixels = np.asarray(fitted(plain, reading))
        except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
            raise ValueError(f"{where}: the {picture.format} is cut off or damaged: {error}") from error
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if pixels.shape != form.shape:
        raise ValueError(f"{where}: image of shape {pixels.shape}, the others are {form.shape}: all must be alike")
    return pixels


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
