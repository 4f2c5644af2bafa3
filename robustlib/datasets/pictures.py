"""Encoded pictures: what those of a split become, by all of their headers; decoded one by one (see decoding.py)."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
from PIL import Image

from robustlib.datasets.decoding import Form as Form
from robustlib.datasets.decoding import Header, header, resized, target
from robustlib.datasets.decoding import decode as decode
from robustlib.datasets.file_types import describe_bytes as describe_bytes
from robustlib.datasets.source import Pictures, Reading
from robustlib.number_text import counted

WIDE = ("I", "F")  # modes of more than 8 bits a channel begin so
WORDS = {
    "1": "black and white",
    "L": "grey",
    "LA": "grey with transparency",
    "P": "palette",
    "PA": "palette with transparency",
    "RGBA": "RGB with transparency",
    "I;16": "16-bit grey",
    "I;16B": "16-bit grey",
    "I;16L": "16-bit grey",
    "I": "32-bit grey",
    "F": "float grey",
}


def common_form(pictures: Pictures) -> Form:
    """What the pictures become. Raises ValueError for those that do not fit together."""
    modes: Counter[str] = Counter()
    example: dict[str, str] = {}  # of each mode, for messages
    first: Header | None = None
    frames = turned = 0
    reading, side = pictures.reading, target(pictures.reading)
    for row, data in enumerate((pictures.head or pictures.fetch)(np.arange(len(pictures.y)))):
        where = pictures.where(row)
        found = header(data, where, reading)
        first = first or found
        if side is None and (found.height, found.width) != (first.height, first.width):
            raise size_error(found, first, where)
        check_room(found, where, reading)
        modes[found.mode] += 1
        example.setdefault(found.mode, where)
        frames, turned = frames + found.frames, turned + found.turned
    if first is None:
        raise ValueError("the dataset holds no image")
    mode = "L" if set(modes) == {"L"} else "RGB"
    check_modes(example)
    height, width = side or (first.height, first.width)
    notes = [*mode_notes(modes), *frame_notes(len(pictures.y), frames, 0 if reading.exif_transpose else turned)]
    return Form(mode, (1 if mode == "L" else 3, height, width), tuple(notes))


def size_error(found: Header, first: Header, where: str) -> ValueError:
    return ValueError(
        f"{where}: image of {found.height}x{found.width} pixels, the first is {first.height}x{first.width}: expected "
        "all alike, or `size: N` and `crop: N`, which resize them and cut out their middle"
    )


def check_room(found: Header, where: str, reading: Reading) -> None:
    """Whether the picture as it is resized can be held, and what is cut out lies within it."""
    width, height = resized(found.width, found.height, reading)
    as_resized = " after resizing" if reading.size else ""
    most = Image.MAX_IMAGE_PIXELS
    if reading.size is not None and most is not None and width * height > most:
        raise ValueError(
            f"{where}: image of {found.height}x{found.width} pixels, which would be {height}x{width}{as_resized}: "
            f"expected at most {most} pixels. It is too narrow for `size: {reading.size}`"
        )
    if reading.crop is not None and min(width, height) < reading.crop:
        raise ValueError(
            f"{where}: image of {height}x{width} pixels{as_resized}, expected at least the crop of {reading.crop}: "
            f"`size: {reading.crop}` or more enlarges it"
        )


def check_modes(example: dict[str, str]) -> None:
    """Pictures of more than 8 bits are taken only among coloured ones, as torchvision takes them.

    example: by mode, a picture of it.
    """
    wide = [mode for mode in example if mode.startswith(WIDE)]
    if wide and all(mode == "L" or mode in wide for mode in example):
        raise ValueError(
            f"{example[wide[0]]}: expected an 8-bit image, got mode {wide[0]!r}: values outside 0 to 255: divide them "
            "to that range yourself (65535 / 257 = 255) and save the images with 8 bits"
        )
    for mode, where in example.items():
        try:
            Image.new(mode, (1, 1)).convert("RGB")
        except ValueError as error:
            raise ValueError(f"{where}: expected an image that becomes RGB, got mode {mode!r}: {error}") from error


def mode_notes(modes: Counter[str]) -> Iterator[str]:
    """What is said of pictures that become RGB."""
    if set(modes) <= {"L"} or set(modes) == {"RGB"}:
        return
    others: Counter[str] = Counter()
    for mode, n in sorted(modes.items()):
        others[WORDS.get(mode, mode)] += n if mode != "RGB" else 0
    told = ", ".join(f"{n} {word}" for word, n in others.items() if n)
    clipped = ", values above 255 clipped" if any(mode.startswith(WIDE) for mode in modes) else ""
    yield f"{told} of {counted(sum(modes.values()), 'image')} become RGB as in torchvision{clipped}"


def frame_notes(n: int, frames: int, turned: int) -> Iterator[str]:
    """What is said of frames and of EXIF's orientation."""
    images = counted(n, "image")
    if frames:
        yield f"{counted(frames, f'of {images} has', f'of {images} have')} several frames or pages: the first is taken"
    if turned:
        upright = counted(turned, f"of {images} is not upright by its", f"of {images} are not upright by their")
        yield f"{upright} EXIF data: `exif_transpose: true` turns {'it' if turned == 1 else 'them'}"
