"""Images out of the bodies of requests: checked before they are decoded, refused in one line."""

import io
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from robustlib.datasets.decoding import TURNS, fitted, has_frames, orientation, resized
from robustlib.number_text import counted
from robustlib.packages.golden import as_floats
from robustq.jobs.serving.facts import Facts
from robustq.jobs.serving.refusals import Refused
from robustq.jobs.serving.settings import Settings
from robustq.jobs.text.safe_text import brief, one_line

JSON, PNG, JPEG = "application/json", "image/png", "image/jpeg"
NPY = ("application/x-npy", "application/npy", "application/octet-stream")
TYPES = (JSON, PNG, JPEG, *NPY)  # that are read
MAGIC = b"\x93NUMPY"
MOST_HEADER = 1024  # bytes of an array's header: one of four axes has 118
MOST_SCANS = 200  # of a JPEG, however small: no encoder makes more than a dozen
MOST_PASSES = 16  # over as many pixels as a picture may have: each scan of a JPEG is a pass over its own
SHORT_BYTES = 2**17  # of JSON whose lists take little memory, whatever they are
ASIDE = 64  # marks of JSON that an object may have beside its images


def read_images(body: bytes, kind: str, facts: Facts, settings: Settings, layout: str) -> np.ndarray:
    """The images of a body, float32 in [0, 1], shape (B, C, H, W).

    kind: its media type.  layout: "CHW" or "HWC", of arrays and lists. Raises Refused.
    """
    if kind == JSON:
        return checked(from_json(body, facts, settings), facts, settings, layout)
    if kind in NPY:
        return checked(from_npy(body), facts, settings, layout)
    return from_picture(body, kind, facts, settings)[None]


def most_bytes(kind: str, facts: Facts, settings: Settings) -> int:
    """How long a body of this media type may be. Raises Refused for a type that is not read."""
    limits: dict[str, Callable[[tuple[int, int, int]], int]] = {
        JSON: settings.json_bytes,
        PNG: settings.picture_bytes,
        JPEG: settings.picture_bytes,
        **dict.fromkeys(NPY, settings.array_bytes),
    }
    if kind not in limits:
        expected = f"{JSON}, {PNG}, {JPEG} or {NPY[0]}"
        mend = "curl says it by -H 'Content-Type: image/png' --data-binary @FILE"
        raise Refused(415, f"expected a body of Content-Type {expected}, got {shown(kind) if kind else 'none'}; {mend}")
    if facts.resizes and kind in (PNG, JPEG):
        return settings.picture_bytes((3, 1, settings.most_pixels // 4))
    return limits[kind](facts.image)


def checked(found: np.ndarray, facts: Facts, settings: Settings, layout: str) -> np.ndarray:
    """An array as images, (B, C, H, W). Raises Refused for another shape, or numbers that are no pixels."""
    channels, height, width = facts.image
    want = facts.image if layout == "CHW" else (height, width, channels)
    images = found[None] if found.shape == want else found
    if images.ndim != 4 or images.shape[1:] != want or not len(images):
        other = "HWC" if layout == "CHW" else "CHW"
        raise Refused(
            400,
            f"expected one or more images of shape {want} ({layout}; ?layout={other} takes the other order), "
            f"got an array of shape {brief(found.shape)}",
        )
    if len(images) > settings.request_images:
        raise Refused(413, f"expected at most {counted(settings.request_images, 'image')} a request, got {len(images)}")
    if images.dtype == np.uint8:
        images = as_floats(images)
    else:
        low, high = images.min(), images.max()
        if not (low >= 0 and high <= 1):  # NaN is neither
            came = "NaN" if np.isnan(images).any() else f"values from {low:g} to {high:g}"
            raise Refused(400, f"expected numbers in [0, 1], got {came}; bytes are sent as an array of uint8")
        images = images.astype(np.float32, copy=False)
    return np.ascontiguousarray(images if layout == "CHW" else images.transpose(0, 3, 1, 2))


def from_json(body: bytes, facts: Facts, settings: Settings) -> np.ndarray:
    """The numbers of {"instances": [image, ...]}, images as nested lists."""
    if len(body) > SHORT_BYTES:
        check_marks(body, facts, settings)
    try:
        found = DECODER.decode(body.decode())
    except (ValueError, RecursionError) as error:
        told = str(error) if isinstance(error, ValueError) else "brackets within brackets"
        raise Refused(400, f'expected JSON, {{"instances": [image, ...]}}: {one_line(told)[:200]}') from error
    rows = found.get("instances") if isinstance(found, dict) else None
    if not isinstance(rows, list):
        raise Refused(400, f'expected {{"instances": [image, ...]}}, got {kind_of(found)} without such a list')
    if not numbers_alone(rows):  # NumPy makes texts of numbers beside a text, each as long as that one
        raise Refused(400, "expected numbers in nested lists, got something else among them")
    try:
        array = np.asarray(rows)
    except (ValueError, OverflowError) as error:
        raise Refused(400, "expected images of one shape as nested lists, got lists of several lengths") from error
    if array.dtype.kind not in "fiu":
        raise Refused(400, "expected numbers in nested lists, got some that are no pixels")
    if array.ndim != 4:  # a list of images is never one image
        raise Refused(400, f"expected a list of images of shape {facts.image}, got lists of shape {brief(array.shape)}")
    return array.astype(np.float64) if array.dtype.kind in "iu" else array


def numbers_alone(rows: list[Any]) -> bool:
    """Whether lists within lists hold numbers and nothing else; true and false are none."""
    waiting = [rows]
    while waiting:
        row = waiting.pop()
        kinds = set(map(type, row))
        if not kinds <= {list, int, float}:
            return False
        if list in kinds:
            waiting += [part for part in row if type(part) is list]
    return True


def check_marks(body: bytes, facts: Facts, settings: Settings) -> None:
    """Raise Refused for more lists or numbers than the images of a request have: empty lists take twenty times their
    bytes in memory.
    """
    channels, height, width = facts.image
    lists = 1 + settings.request_images * (1 + max(channels * (1 + height), height * (1 + width)))
    numbers = settings.request_images * channels * height * width
    if (
        body.count(b"[") > lists + ASIDE
        or body.count(b",") > numbers + ASIDE
        or body.count(b"{") > ASIDE
        or body.count(b'"') > ASIDE
    ):
        most = f"at most {counted(settings.request_images, 'image')} of shape {facts.image}"
        raise Refused(413, f'expected JSON, {{"instances": [image, ...]}}, of {most}, got one with more in it')


def no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


DECODER = json.JSONDecoder(parse_constant=no_constant)


def kind_of(found: Any) -> str:
    return "an object" if isinstance(found, dict) else f"a {type(found).__name__}"


def from_npy(body: bytes) -> np.ndarray:
    """The array of a file as np.save writes it, of numbers alone: no pickle is read."""
    file = io.BytesIO(body)
    if body[: len(MAGIC)] != MAGIC:
        raise Refused(400, "expected an array as np.save writes it, got bytes that do not begin like one")
    try:
        version = np.lib.format.read_magic(file)
        if len(body) >= 12 and int.from_bytes(body[8:10] if version == (1, 0) else body[8:12], "little") > MOST_HEADER:
            raise ValueError("its header is too long")
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = readers[version](file)
    except Exception as error:  # of many kinds: a header is Python's text of a dict
        raise Refused(400, "expected an array as np.save writes it, got one with a damaged header") from error
    if dtype not in (np.dtype(np.uint8), np.dtype(np.float32)):
        raise Refused(400, f"expected an array of uint8 or float32, got {shown(str(dtype))}")
    if len(shape) > 4 or any(side < 0 for side in shape):
        raise Refused(400, f"expected an array of three or four axes, got shape {brief(shape)}")
    count, data = int(np.prod(shape, dtype=object)), body[file.tell() :]
    if len(data) != count * dtype.itemsize:
        expected = counted(count * dtype.itemsize, "byte")
        raise Refused(400, f"expected {expected} of numbers, as its header says, got {len(data)}")
    try:
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    except (ValueError, TypeError) as error:  # sides that no array has, beside one of 0; or True
        raise Refused(400, f"expected an array of three or four axes, got shape {brief(shape)}") from error


def from_picture(body: bytes, kind: str, facts: Facts, settings: Settings) -> np.ndarray:
    """One PNG or JPEG, float32 in [0, 1], shape (C, H, W)."""
    form = "PNG" if kind == PNG else "JPEG"
    try:
        with Image.open(io.BytesIO(body), formats=(form,)) as picture:
            check_header(picture, form, facts, settings)
            if form == "JPEG":
                check_scans(body, picture.width * picture.height, settings)
            picture.load()
            pixels = np.asarray(as_colours(shaped(picture, facts), facts.image[0]))
    except Refused:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refused(413, f"expected a picture of at most {settings.most_pixels} pixels, got more") from error
    except MemoryError:
        raise
    except Exception as error:  # whatever a decoder stumbles over in bytes that anybody may send
        raise Refused(400, f"expected a {form}, got bytes that are none, cut off or damaged") from error
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if pixels.shape != facts.image:
        raise Refused(400, f"expected a picture that becomes {facts.image}, got one that becomes {pixels.shape}")
    return as_floats(np.ascontiguousarray(pixels))


def check_header(picture: Image.Image, form: str, facts: Facts, settings: Settings) -> None:
    """Raise Refused for a picture that is not decoded at all."""
    (width, height), (_, rows, columns) = picture.size, facts.image
    if facts.resizes and width * height > settings.most_pixels:
        raise Refused(413, f"expected a picture of at most {settings.most_pixels} pixels, got {width} x {height}")
    if facts.resizes and math.prod(found := resized(width, height, facts.reading)) > settings.most_pixels:
        raise Refused(  # a thin one becomes very long where its shorter side is resized
            413,
            f"expected a picture of at most {settings.most_pixels} pixels, also when it is resized, got "
            f"{width} x {height}, which becomes {found[0]} x {found[1]}",
        )
    lying = facts.reading.exif_transpose and (height, width) == (columns, rows)  # until it is turned
    if not facts.resizes and (width, height) != (columns, rows) and not lying:
        raise Refused(
            400,
            f"expected a picture of {columns} x {rows} pixels (width x height), got {width} x {height}: "
            "this package does not say how others are resized",
        )
    if form == "PNG" and has_frames(picture):
        raise Refused(400, "expected one picture, got several frames")
    if any("16" in str(tile[3]) for tile in getattr(picture, "tile", ())):  # of which Pillow drops the lower half
        raise Refused(400, "expected a picture of 8 bits a channel, got one of 16")


def check_scans(body: bytes, pixels: int, settings: Settings) -> None:
    """Raise Refused for a JPEG of more scans than its size allows: each is a pass over all pixels, of hardly a byte.

    Scans of a preview within the file count too.
    """
    most = min(MOST_SCANS, MOST_PASSES * max(settings.most_pixels, pixels) // pixels)
    if (scans := body.count(b"\xff\xda")) > most:
        raise Refused(
            400,
            f"expected a JPEG of at most {most} scans for its {pixels} pixels, got {scans}: save it as a baseline JPEG",
        )


def shaped(picture: Image.Image, facts: Facts) -> Image.Image:
    """The picture as those of the data set were read: turned, resized and cut where the card says so."""
    turn = TURNS.get(orientation(picture, True)) if facts.reading.exif_transpose else None
    turned = picture if turn is None else picture.transpose(turn)
    return fitted(plain(turned), facts.reading) if facts.resizes else turned


def plain(picture: Image.Image) -> Image.Image:
    """Without a palette or single bits, which are resized without smoothing; a colour that is transparent as alpha."""
    clear = "transparency" in picture.info
    modes = {"P": "RGBA" if clear else "RGB", "1": "LA" if clear else "L"} | (
        {"L": "LA", "RGB": "RGBA"} if clear else {}
    )
    return picture.convert(modes[picture.mode]) if picture.mode in modes else picture


def as_colours(picture: Image.Image, channels: int) -> Image.Image:
    """The picture in the package's colours. Raises Refused where that would change what it shows."""
    want = {1: "L", 3: "RGB"}.get(channels)
    if want is None:
        raise Refused(415, f"a package of {channels} channels takes no pictures: send an array")
    found = plain(picture)
    if found.mode in ("RGBA", "LA") and found.getextrema()[-1][0] == 255:  # pyright: ignore (a pair for each band)
        found = found.convert(found.mode[:-1])
    if found.mode != want:
        colours = {"L": "grey", "RGB": "RGB"}[want]
        raise Refused(400, f"expected a picture in {colours}, 8 bits, without transparency, got mode {found.mode}")
    return found


def shown(text: str) -> str:
    return brief(one_line(text), 80)
