"""Bodies as images: each form gives the same numbers, and pictures are read as those of the data set were."""

import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from robustlib.datasets.decoding import Form, decode
from robustlib.datasets.source import Reading
from robustq.jobs.serving.images import JPEG, JSON, NPY, PNG
from tests.helpers.sent_images import FLOATS, X, chunk, png, read, refusal, taking_less_than
from tests.helpers.served import FACTS, SHAPE, instances, npy, picture, some_images

LAST = (0, 2, 3, 1)  # channels last


@pytest.mark.parametrize("kind", NPY)
def test_arrays_of_bytes_and_of_floats_are_the_same_images(kind):
    for array in (X, FLOATS, np.asfortranarray(X), np.asfortranarray(FLOATS)):
        assert np.array_equal(read(npy(array), kind), FLOATS)
    assert np.array_equal(read(npy(X[0]), kind), FLOATS[:1])


def test_channels_last_are_turned_where_that_is_asked_for():
    assert np.array_equal(read(npy(X.transpose(LAST)), NPY[0], "HWC"), FLOATS)
    assert np.array_equal(read(npy(X[0].transpose(1, 2, 0)), NPY[0], "HWC"), FLOATS[:1])
    assert np.array_equal(read(instances(FLOATS.transpose(LAST)), JSON, "HWC"), FLOATS)
    status, line = refusal(npy(X.transpose(LAST)), NPY[0])
    assert status == 400 and "expected one or more images of shape (3, 6, 5) (CHW; ?layout=HWC takes" in line


def test_numbers_of_json_come_back_to_the_bit():
    assert np.array_equal(read(instances(FLOATS), JSON), FLOATS)
    assert np.array_equal(read(instances((X > 100).astype(int)), JSON), (X > 100).astype(np.float32))
    spaced = b' { "signature_name" : "x", "instances"  :\n' + instances(FLOATS)[14:]
    assert np.array_equal(read(spaced, JSON), FLOATS)


def test_a_png_is_its_pixels_whatever_its_form():
    assert np.array_equal(read(picture(X[0]), PNG), FLOATS[:1])
    assert np.array_equal(read(picture(X[0], mode="RGBA"), PNG), FLOATS[:1])  # as a canvas of a browser makes it
    few = X[0] // 128 * 255
    assert np.array_equal(read(picture(few, mode="P"), PNG), few[None].astype(np.float32) / 255)


def test_a_jpeg_is_what_pillow_makes_of_it():
    body = picture(X[0], "JPEG", quality=90)
    expected = np.asarray(Image.open(io.BytesIO(body))).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    assert np.array_equal(read(body, JPEG)[0], expected)


def test_a_grey_package_takes_grey_pictures():
    grey = replace(FACTS, image=(1, 6, 5))
    assert np.array_equal(read(picture(X[0, :1]), PNG, facts=grey), FLOATS[:1, :1])
    black = X[0, :1] // 128 * 255
    assert np.array_equal(read(picture(black, mode="1"), PNG, facts=grey)[0] * 255, black)
    assert refusal(picture(X[0]), PNG, facts=grey) == (
        400,
        "expected a picture in grey, 8 bits, without transparency, got mode RGB",
    )


@pytest.mark.parametrize("mode", ["L", "LA", "1", "CMYK"])
def test_a_picture_in_other_colours_is_refused(mode):
    form = "JPEG" if mode == "CMYK" else "PNG"
    status, line = refusal(picture(X[0], form, mode), JPEG if form == "JPEG" else PNG)
    assert status == 400 and line.startswith("expected a picture in RGB, 8 bits, without transparency, got mode ")


def test_a_picture_that_can_be_looked_through_is_refused():
    veiled = np.concatenate([X[0], np.full((1, *SHAPE[1:]), 254, np.uint8)])
    assert refusal(picture(veiled), PNG)[1].endswith("got mode RGBA")


def scan_lines(depth: int, kind: int, values: bytes, clear: bytes = b"") -> bytes:
    """A PNG of 5 x 6 pixels that all have these bytes. clear: of the colour that is transparent."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 6, depth, kind, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress((b"\0" + 5 * values) * 6))
    return b"\x89PNG\r\n\x1a\n" + head + (chunk(b"tRNS", clear) if clear else b"") + data + chunk(b"IEND", b"")


def test_a_colour_that_hides_what_has_it_is_transparency():
    """One that no pixel has is dropped, as alpha that hides nothing."""
    body = scan_lines(8, 2, b"\7\7\7", clear=struct.pack(">HHH", 7, 7, 7))
    assert refusal(body, PNG)[1] == "expected a picture in RGB, 8 bits, without transparency, got mode RGBA"
    grey = replace(FACTS, image=(1, 6, 5))
    assert refusal(scan_lines(8, 0, b"\7", clear=b"\0\7"), PNG, facts=grey)[1].endswith("got mode LA")
    for body, facts in (
        (scan_lines(8, 2, b"\7\7\7", clear=struct.pack(">HHH", 7, 7, 8)), FACTS),
        (scan_lines(8, 0, b"\7", clear=b"\0\x08"), grey),
    ):
        assert np.array_equal(read(body, PNG, facts=facts), np.full((1, *facts.image), 7, np.float32) / np.float32(255))


def test_a_picture_of_16_bits_is_refused_rather_than_cut_to_8():
    grey = replace(FACTS, image=(1, 6, 5))
    for body, facts in ((scan_lines(16, 2, b"\7\xff" * 3), FACTS), (scan_lines(16, 0, b"\7\xff"), grey)):
        assert refusal(body, PNG, facts=facts) == (400, "expected a picture of 8 bits a channel, got one of 16")


@pytest.mark.parametrize(
    ("reading", "size"),
    [(Reading(size=(6, 5)), (40, 31)), (Reading(size=8, crop=None), (8, 8)), (Reading(size=7, crop=5), (20, 33))],
    ids=str,
)
def test_pictures_are_resized_as_the_data_set_was(reading, size):
    """Beside the reader of data sets, on the same bytes."""
    height, width = reading.size if isinstance(reading.size, tuple) else 2 * (reading.crop or reading.size,)
    side = (3, height, width)
    body = picture(np.random.default_rng(1).integers(0, 256, (3, *size), np.uint8))
    expected = decode(body, "it", Form("RGB", side), reading).astype(np.float32) / np.float32(255)
    assert np.array_equal(read(body, PNG, facts=replace(FACTS, image=side, reading=reading))[0], expected)


def test_single_bits_are_resized_as_those_of_the_data_set():
    """As grey values, smoothed: Pillow takes the nearest bit otherwise."""
    reading, side = Reading(size=(6, 5)), (1, 6, 5)
    body = picture(some_images(8).reshape(1, 40, 18)[:, :, :17] // 128 * 255, mode="1")
    expected = decode(body, "it", Form("L", side), reading).astype(np.float32) / np.float32(255)
    assert len(np.unique(expected)) > 2
    assert np.array_equal(read(body, PNG, facts=replace(FACTS, image=side, reading=reading))[0], expected)


def test_a_thin_picture_is_refused_before_it_becomes_long():
    """Its shorter side would become 224, its longer one 44,800,000."""
    facts = replace(FACTS, image=(3, 224, 224), reading=Reading(size=224, crop=224))
    for size, becomes in (((1, 200_000), "224 x 44800000"), ((200_000, 1), "44800000 x 224")):
        with taking_less_than(2**20):
            status, line = refusal(png(*size), PNG, facts=facts)
        assert status == 413 and line.endswith(f"got {size[0]} x {size[1]}, which becomes {becomes}")


def test_a_picture_is_turned_only_where_the_card_says_so():
    exif = Image.Exif()
    exif[0x0112] = 3
    body = picture(X[0], exif=exif)
    assert np.array_equal(read(body, PNG), FLOATS[:1])
    turned = read(body, PNG, facts=replace(FACTS, reading=Reading(exif_transpose=True)))
    assert np.array_equal(turned, FLOATS[:1, :, ::-1, ::-1])


def test_a_picture_that_lies_on_its_side_has_the_size_that_it_is_turned_to():
    facts, exif = replace(FACTS, reading=Reading(exif_transpose=True)), Image.Exif()
    exif[0x0112] = 6
    lying = np.rot90(X[0], axes=(1, 2))
    assert np.array_equal(read(picture(lying, exif=exif), PNG, facts=facts), FLOATS[:1])
    for body in (picture(lying), picture(X[0], exif=exif)):
        assert refusal(body, PNG, facts=facts)[1].endswith("becomes (3, 6, 5), got one that becomes (3, 5, 6)")


def test_another_size_is_refused_unless_the_card_says_how_to_resize():
    status, line = refusal(picture(some_images(1)[0].transpose(0, 2, 1)), PNG)
    assert status == 400 and line.startswith("expected a picture of 5 x 6 pixels (width x height), got 6 x 5")
