"""Pictures of every kind come out as torchvision's loader gives them; what is broken, or none, is named."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps, PngImagePlugin
from torchvision import transforms
from torchvision.datasets.folder import pil_loader

from robustlib.datasets import pictures
from robustlib.datasets.file_types import describe_bytes
from robustlib.datasets.source import AS_IT_IS, Pictures, Reading

RNG = np.random.default_rng(0)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A picture with detail at every scale, so that a shift by a pixel shows."""
    small = RNG.integers(0, 256, (max(1, height // 2), max(1, width // 2), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(picture: Image.Image, kind: str = "PNG", **how) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


def split(*data: bytes | None, reading: Reading = AS_IT_IS) -> Pictures:
    return Pictures(
        np.zeros(len(data), np.int64), ["a"], lambda rows: (data[row] for row in rows), lambda row: f"p{row}", reading
    )


def read(*data: bytes | None, reading: Reading = AS_IT_IS) -> tuple[np.ndarray, tuple[str, ...]]:
    """All pictures as the data set gives them, (N, C, H, W), and what is said."""
    form = pictures.common_form(split(*data, reading=reading))
    x = np.stack([pictures.decode(some, f"p{row}", form, reading) for row, some in enumerate(data)])
    assert x.shape[1:] == form.shape and x.dtype == np.uint8
    return x, form.notes


def refusal(*data: bytes | None, reading: Reading = AS_IT_IS) -> str:
    with pytest.raises(ValueError) as error:
        read(*data, reading=reading)
    return str(error.value)


def torchvisions(data: bytes, tmp_path: Path, *steps) -> np.ndarray:
    """The same by torchvision's loader and transforms, (3, H, W)."""
    (tmp_path / "picture").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of palettes
        return np.asarray(transforms.Compose(steps)(pil_loader(str(tmp_path / "picture")))).transpose(2, 0, 1)


SHAPES = [
    (64, 64),
    (64, 48),
    (48, 64),
    (63, 47),
    (47, 63),
    (33, 32),
    (1, 1),
    (1, 9),
    (9, 1),
    (300, 20),
    (20, 301),
    (7, 640),
]
SIZES = [1, 7, 16, 31, 32, 33, 64, (16, 16), (31, 17), (1, 40), (64, 48)]


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_resized_and_cut_as_torchvision_does(size: int | tuple[int, int], tmp_path: Path):
    resize = transforms.Resize(size if isinstance(size, int) else list(size))
    short = size if isinstance(size, int) else min(size)
    for width, height in SHAPES:
        data = encoded(noise(width, height))
        middle = [] if isinstance(size, tuple) else [transforms.CenterCrop(size)]  # a size alone is a square's
        x, _ = read(data, reading=Reading(size=size))
        assert np.array_equal(x[0], torchvisions(data, tmp_path, resize, *middle)), (width, height)
        for crop in {1, max(1, short // 2), max(1, short - 1), short}:
            x, _ = read(data, reading=Reading(size=size, crop=crop))
            assert np.array_equal(x[0], torchvisions(data, tmp_path, resize, transforms.CenterCrop(crop)))


def test_a_crop_alone_is_cut_from_the_middle(tmp_path: Path):
    for width, height in SHAPES:
        for crop in {1, min(width, height), max(1, min(width, height) - 1)}:
            data = encoded(noise(width, height))
            x, _ = read(data, reading=Reading(crop=crop))
            assert np.array_equal(x[0], torchvisions(data, tmp_path, transforms.CenterCrop(crop)))


def test_pictures_of_mixed_sizes(tmp_path: Path):
    data = [encoded(noise(*shape, "L")) for shape in SHAPES] + [encoded(noise(40, 30), "JPEG")]
    x, notes = read(*data, reading=Reading(size=36, crop=32))
    steps = transforms.Resize(36), transforms.CenterCrop(32)
    assert np.array_equal(x, [torchvisions(some, tmp_path, *steps) for some in data])
    assert notes == ("12 grey of 13 images become RGB as in torchvision",)
    grey, notes = read(*data[:-1], reading=Reading(size=36, crop=32))  # grey alone stays grey, and is the same
    assert grey.shape[1] == 1 and np.array_equal(grey[:, 0], x[:-1, 0]) and notes == ()


def test_sizes_that_do_not_do():
    one, other = encoded(noise(8, 6)), encoded(noise(6, 8))
    mend = "expected all alike, or `size: N` and `crop: N`, which resize them and cut out their middle"
    assert refusal(one, other) == f"p1: image of 8x6 pixels, the first is 6x8: {mend}"
    assert refusal(one, other, reading=Reading(crop=7)) == (
        "p0: image of 6x8 pixels, expected at least the crop of 7: `size: 7` or more enlarges it"
    )
    assert refusal(one, reading=Reading(size=5, crop=6)) == (
        "p0: image of 5x6 pixels after resizing, expected at least the crop of 6: `size: 6` or more enlarges it"
    )
    assert refusal(encoded(noise(1, 30_000)), reading=Reading(size=224)) == (
        "p0: image of 30000x1 pixels, which would be 6720000x224 after resizing: expected at most 89478485 pixels. It is "
        "too narrow for `size: 224`"
    )


def with_orientation(picture: Image.Image, kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(picture, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "PNG, at the end", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_turns_only_where_it_is_asked_to(orientation: int, kind: str):
    data = with_orientation(noise(7, 5), kind.partition(",")[0], orientation)
    if kind == "PNG, at the end":
        start, end = data.index(b"eXIf") - 4, data.index(b"IDAT") - 4
        data = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    stored = Image.open(io.BytesIO(data))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert upright is not None
    x, notes = read(data)
    said = "1 of 1 image is not upright by its EXIF data: `exif_transpose: true` turns it"
    assert np.array_equal(x[0], np.asarray(stored).transpose(2, 0, 1))  # a TIFF as well: Pillow always turns it
    assert notes == ((said,) if 2 <= orientation <= 8 and kind not in ("TIFF", "PNG, at the end") else ())
    x, notes = read(data, reading=Reading(exif_transpose=True))
    assert np.array_equal(x[0], np.asarray(upright).transpose(2, 0, 1)) and notes == ()
    assert (x.shape[2:] == (7, 5)) == (5 <= orientation <= 8)


@pytest.mark.parametrize(
    "block", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + bytes(99), bytes(9)]
)
@pytest.mark.parametrize("turned", [False, True])
def test_damaged_exif_and_profiles_stop_nothing(block: bytes, turned: bool):
    picture, plain = noise(7, 5), Reading(exif_transpose=turned)
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encoded(picture, kind, exif=block, icc_profile=b"no profile")
        assert np.array_equal(read(data, reading=plain)[0], read(encoded(picture, kind))[0])


def wide(kind: str) -> bytes:
    values = RNG.integers(0, 65536, (5, 7))
    return {
        "I;16": lambda: encoded(Image.fromarray(values.astype(np.uint16))),
        "I;16B": lambda: encoded(Image.frombytes("I;16B", (7, 5), values.astype(">u2").tobytes()), "TIFF"),
        "I": lambda: encoded(Image.fromarray(values.astype(np.int32)), "TIFF"),
        "F": lambda: encoded(Image.fromarray((values / 99).astype(np.float32)), "TIFF"),
    }[kind]()


def palette(**how) -> bytes:
    return encoded(noise(7, 5).quantize(16), **how)


OTHERS = {
    "black and white": lambda: encoded(noise(7, 5, "1")),
    "grey": lambda: encoded(noise(7, 5, "L")),
    "grey with transparency": lambda: encoded(noise(7, 5, "LA")),
    "palette": palette,
    "palette, one colour transparent": lambda: palette(transparency=3),
    "palette, transparent by bytes": lambda: palette(transparency=bytes(range(16))),
    "RGB with transparency": lambda: encoded(noise(7, 5, "RGBA")),
    "CMYK": lambda: encoded(noise(7, 5, "CMYK"), "JPEG"),
    "YCbCr": lambda: encoded(noise(7, 5, "YCbCr"), "TIFF"),
    "LAB": lambda: encoded(Image.merge("LAB", [noise(7, 5, "L")] * 3), "TIFF"),
    "16-bit grey": lambda: wide("I;16"),
    "16-bit grey, big-endian": lambda: wide("I;16B"),
    "32-bit grey": lambda: wide("I"),
    "float grey": lambda: wide("F"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_others_among_rgb_become_what_torchvision_makes_of_them(name: str, tmp_path: Path):
    data, rgb = OTHERS[name](), encoded(noise(7, 5))
    try:
        Image.open(io.BytesIO(data)).load()
    except OSError:
        pytest.skip("a Pillow that cannot read what it has written itself: before 13, TIFF in YCbCr")
    x, notes = read(rgb, data, data)
    assert np.array_equal(x, [torchvisions(some, tmp_path) for some in (rgb, data, data)])
    clipped = ", values above 255 clipped" if "bit grey" in name or "float" in name else ""
    assert notes == (f"2 {name.split(',')[0]} of 3 images become RGB as in torchvision{clipped}",)


def test_conversions_are_said_together():
    data = [OTHERS[name]() for name in ("grey", "grey", "CMYK", "16-bit grey", "16-bit grey, big-endian")]
    assert read(*data, encoded(noise(7, 5)))[1] == (
        "1 CMYK, 2 16-bit grey, 2 grey of 6 images become RGB as in torchvision, values above 255 clipped",
    )
    assert read(encoded(noise(7, 5)))[1] == () and read(data[0])[1] == ()


@pytest.mark.parametrize("kind", ["I;16", "I", "F"])
@pytest.mark.parametrize("beside", [(), ("grey",)], ids=["alone", "with grey"])
def test_wide_pictures_without_colour_are_refused(kind: str, beside: tuple[str, ...]):
    row = len(beside)
    assert refusal(*(OTHERS[name]() for name in beside), wide(kind)) == (
        f"p{row}: expected an 8-bit image, got mode {kind!r}: values outside 0 to 255: divide them to that range "
        "yourself (65535 / 257 = 255) and save the images with 8 bits"
    )


@pytest.mark.parametrize("kind, how", [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_of_several_frames_the_first_is_taken(kind: str, how: dict, tmp_path: Path):
    frames = [noise(7, 5) for _ in range(3)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **how)
    x, notes = read(data)
    assert np.array_equal(x[0], torchvisions(data, tmp_path))
    assert np.array_equal(x, read(encoded(frames[0], kind, **how))[0])
    assert notes[-1] == "1 of 1 image has several frames or pages: the first is taken"


KINDS = [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {"lossless": True}), ("GIF", {}),
         ("BMP", {}), ("PPM", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})]  # fmt: skip


@pytest.mark.parametrize("kind, how", KINDS, ids=str)
def test_cut_off_anywhere_it_is_named_or_all_pixels_are_there(kind: str, how: dict):
    data = encoded(noise(60, 40), kind, **how)
    whole, _ = read(data)
    named = f"a {kind.replace('WEBP', 'WebP')} that is cut off or damaged", f"the {kind} is cut off or damaged: "
    early = 12, 20, 40, len(data) // 4, len(data) // 2, len(data) * 9 // 10
    for cut in (*early, *range(len(data) - 40, len(data), 3)):
        try:
            assert np.array_equal(read(data[:cut])[0], whole), cut
        except ValueError as error:
            assert any(words in str(error) for words in named), (cut, str(error))
        else:
            assert cut > len(data) - 40  # what follows the pixels is missed by nobody


@pytest.mark.slow
@pytest.mark.parametrize("kind, how", KINDS, ids=str)
def test_damaged_anywhere_it_is_a_picture_or_a_line(kind: str, how: dict):
    """No flipped byte gets another error than one that names the picture."""
    whole = encoded(noise(30, 20), kind, **how)
    for _ in range(150):
        data = bytearray(whole)
        for place in RNG.integers(0, min(len(data), 400), 3):
            data[place] ^= int(RNG.integers(1, 256))
        for reading in (AS_IT_IS, Reading(size=8, exif_transpose=True)):
            try:
                read(bytes(data), reading=reading)
            except ValueError as error:
                assert str(error).startswith("p0: ")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(data: bytes, added: bytes) -> bytes:
    """A PNG with a chunk after its header."""
    return data[:33] + added + data[33:]


def test_pictures_that_need_too_much_memory_are_refused_by_headers():
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )
    told = "p1: expected an image of at most 89478485 pixels, got one of 900000000 by its header"
    assert refusal(encoded(noise(7, 5)), bomb) == told
    assert refusal(encoded(noise(7, 5)), bomb, reading=Reading(size=8)) == told
    between = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)  # where Pillow only warns
    assert "got one of 100000000 by its header" in refusal(
        bomb.replace(chunk(b"IHDR", header), chunk(b"IHDR", between))
    )


def test_texts_and_profiles_that_would_take_too_much_memory():
    plain = encoded(noise(7, 5))
    much = zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK + 1))
    for added in (chunk(b"zTXt", b"Comment\0\0" + much), chunk(b"iCCP", b"ICC\0\0" + much)):
        assert refusal(with_chunk(plain, added)) == (
            "p0: expected PNG or JPEG bytes, got a PNG that is cut off or damaged: Decompressed data too large for "
            "PngImagePlugin.MAX_TEXT_CHUNK"
        )


def mp4(brand: bytes) -> bytes:
    return b"\0\0\0\x18ftyp" + brand + bytes(90)


NONE = {
    "null": None,
    "nothing": b"",
    "a Git LFS pointer: fetch the file itself with `git lfs pull`": b"version https://git-lfs.github.com/spec/v1\noid ",
    "an HTML page": b"\n<!doctype HTML>\n<html><body>404",
    "an SVG drawing": b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- x --><svg xmlns="http://www.w3.org/2000/svg"/>',
    "XML": b'<?xml version="1.0"?><annotation/>',
    "a PDF": b"%PDF-1.4 ...",
    "a PostScript drawing": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "macOS metadata (a `._` file), which belongs to no data set": b"\0\x05\x16\x07" + bytes(120),
    "a ZIP archive": b"PK\x03\x04" + bytes(30),
    "a video (MP4 or MOV)": mp4(b"isom"),
    "a video (AVI)": b"RIFF\0\0\0\0AVI LIST",
    "a Matroska or WebM video": b"\x1aE\xdf\xa3" + bytes(30),
    "a HEIC photo: save it as PNG or JPEG": mp4(b"heic"),
    "a DICOM file: save it as PNG": bytes(128) + b"DICM" + bytes(30),
    "a NumPy array": b"\x93NUMPY\x01\0" + bytes(80),
    "500 bytes that begin with zeros alone": bytes(500),
    "a PNG that is cut off or damaged": b"\x89PNG\r\n\x1a\n\0\0",
    "a JPEG that is cut off or damaged": b"\xff\xd8\xff\xe0\0\x10JFIF",
    "12 bytes of something else, beginning with b'What is '": b"What is it??",
}


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_picture_is_named(name: str, tmp_path: Path):
    assert refusal(NONE[name]) == f"p0: expected PNG or JPEG bytes, got {name}"
    if (data := NONE[name]) is not None:
        (tmp_path / "file").write_bytes(data)
        assert describe_bytes(tmp_path / "file") == name


def test_postscript_is_not_executed(monkeypatch: pytest.MonkeyPatch):
    """Pillow has Ghostscript run it."""
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    assert refusal(encoded(noise(7, 5), "EPS")) == "p0: expected PNG or JPEG bytes, got a PostScript drawing"
