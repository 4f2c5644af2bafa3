"""Bodies that are no images of the package: refused in one line, before they take time or memory."""

import io
import pickle
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from robustlib.datasets.source import Reading
from robustq.jobs.serving.images import JPEG, JSON, NPY, PNG, SHORT_BYTES, most_bytes, read_images
from robustq.jobs.serving.refusals import Refused
from robustq.jobs.serving.settings import Settings
from tests.helpers.sent_images import FLOATS, SETTINGS, X, png, read, refusal, taking_less_than
from tests.helpers.served import FACTS, SHAPE, instances, npy, picture, some_images

SCAN = b"\xff\xda"  # begins one, of a JPEG
NAN = FLOATS.copy()
NAN[1, 2, 3, 4] = np.nan


@pytest.mark.parametrize(
    ("array", "line"),
    [
        (NAN, "expected numbers in [0, 1], got NaN; bytes are sent as an array of uint8"),
        (FLOATS * 255, "expected numbers in [0, 1], got values from 0 to 255; bytes"),
        (FLOATS - 0.5, "expected numbers in [0, 1], got values from -0.5 to 0.5; bytes"),
        (np.full_like(FLOATS, np.inf), "expected numbers in [0, 1], got values from inf to inf"),
        (FLOATS.astype(np.float64), "expected an array of uint8 or float32, got 'float64'"),
        (FLOATS.astype(">f4"), "expected an array of uint8 or float32, got '>f4'"),
        (X.astype(np.int64), "expected an array of uint8 or float32, got 'int64'"),
        (X.astype(np.int8), "expected an array of uint8 or float32, got 'int8'"),
        (X > 9, "expected an array of uint8 or float32, got 'bool'"),
        (X[:, :2], "got an array of shape (3, 2, 6, 5)"),
        (X[0, 0], "got an array of shape (6, 5)"),
        (X[:0], "got an array of shape (0, 3, 6, 5)"),
        (X[None], "expected an array of three or four axes, got shape (1, 3, 3, 6, 5)"),
        (np.float32(1), "got an array of shape ()"),
    ],
)
def test_an_array_of_anything_else_is_one_line(array, line):
    status, came = refusal(npy(np.asarray(array)), NPY[0])
    assert status == 400 and line in came


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (b"", "expected JSON, {"),
        (b"\xff\xfe{}", "expected JSON, {"),
        (b'{"instances": [', "expected JSON, {"),
        (b'{"instances": [NaN]}', "NaN is no number of JSON"),
        (b'{"instances": [Infinity]}', "Infinity is no number of JSON"),
        (b'{"instances": ' + b"9" * 5000 + b"}", "expected JSON, {"),
        (b"[[1]]", "got a list without such a list"),
        (b"{}", "got an object without such a list"),
        (b'{"inputs": []}', "got an object without such a list"),
        (b'{"instances": []}', "got lists of shape (0,)"),
        (b'{"instances": [[[[0.1], [0.1, 0.2]]]]}', "got lists of several lengths"),
        (b'{"instances": [[[["0.1"]]]]}', "expected numbers in nested lists"),
        (b'{"instances": [[[[null]]]]}', "expected numbers in nested lists"),
        (b'{"instances": [[[[true]]]]}', "expected numbers in nested lists"),
        (b'{"instances": [[[[{}]]]]}', "expected numbers in nested lists"),
        (b'{"instances": [[[[0.5, true]]]]}', "expected numbers in nested lists"),
        (b'{"instances": [[[[0.5, "0.5"]]]]}', "expected numbers in nested lists"),
        (b'{"instances": [[[[' + b"1" * 400 + b"]]]]}", "expected numbers in nested lists"),
        (b'{"instances": [[[[1e999]]]]}', "got an array of shape (1, 1, 1, 1)"),
        (b'{"instances": [{"b64": "QUJD"}]}', "expected numbers in nested lists"),
    ],
)
def test_json_of_anything_else_is_one_line(body, line):
    status, came = refusal(body, JSON)
    assert status == 400 and line in came


def test_numbers_of_json_out_of_range_are_refused():
    for value in (1.0000001, -1e-9, 255, 1e300, 10**30, 1e999):
        images = FLOATS[:1].astype(object)
        images[0, 0, 0, 0] = value
        body = instances(images).replace(b"Infinity", b"1e999")
        assert refusal(body, JSON)[1].startswith(("expected numbers in [0, 1]", "expected numbers in nested lists"))


class Trap:
    """What a pickle runs when it is read."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self) -> Any:
        return Path.touch, (self.place,)


def test_no_pickle_is_read(tmp_path: Path):
    place = tmp_path / "touched"
    with_objects = np.empty((1, *SHAPE), object)
    with_objects[:] = Trap(place)
    assert refusal(npy(with_objects, allow_pickle=True), NPY[0]) == (
        400,
        "expected an array of uint8 or float32, got 'object'",
    )
    for kind in (*NPY, JSON, PNG, JPEG):
        assert refusal(pickle.dumps(Trap(place)), kind)[0] == 400
    packed = io.BytesIO()
    np.savez(packed, X)
    assert "bytes that do not begin like one" in refusal(packed.getvalue(), NPY[0])[1]
    assert not place.exists()


def header(text: str, version: int = 1) -> bytes:
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes((version, 0)) + size + text.encode()


@pytest.mark.parametrize(
    "body",
    [
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 3, 6, 5)}\n"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 3, 6, 5)}\n") + bytes(10),
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 3, 6, 5)}\n") + bytes(90),
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (%s, 3, 6, 5)}\n" % ("9" * 300)),
        header("{'descr': '|u1', 'fortran_order': 1, 'shape': ()}\n"),
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (%s, 0, 6, 5)}\n" % ("9" * 30)),
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (True, 3, 6, 5)}\n") + bytes(90),
        header("__import__('os').getpid()\n"),
        header("(" * 900),
        header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1, 3, 6, 5)}\n") + bytes(360),
        header("{}", version=2), header("x" * 5000, version=2), header("{}", version=3), header("{}", version=9),
        b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff", b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
    ],
    ids=range(17),
)  # fmt: skip
def test_a_header_that_lies_is_one_line_and_takes_no_memory(body):
    with taking_less_than(2**20):
        assert refusal(body, NPY[0])[0] == 400


def test_a_bomb_is_refused_by_its_header():
    """40,000 pixels square, and one whose rows unpack to more than the header says."""
    longer = png(5, 6, zlib.compress(bytes(10**7), 9))
    with taking_less_than(2**20):
        for size in (6000, 12_000, 40_000, 2**31 - 1):
            assert refusal(png(size, size), PNG)[0] in (400, 413)
        status, line = refusal(png(6000, 6000), PNG, facts=replace(FACTS, reading=Reading(size=(6, 5))))
        assert (status, line) == (413, "expected a picture of at most 16777216 pixels, got 6000 x 6000")
        assert np.array_equal(read(longer, PNG), np.zeros((1, *SHAPE), np.float32))


def test_a_jpeg_of_very_many_scans_is_refused():
    body = picture(X[0], "JPEG", progressive=True)
    assert read(body, JPEG).shape == (1, *SHAPE) and body.count(SCAN) > 1
    scan = body[body.rindex(SCAN) : -2]
    told = f"expected a JPEG of at most 200 scans for its {SHAPE[1] * SHAPE[2]} pixels, got {300 + body.count(SCAN)}"
    assert refusal(body[:-2] + 300 * scan + body[-2:], JPEG) == (400, f"{told}: save it as a baseline JPEG")


def test_scans_are_counted_against_the_pixels_that_each_goes_through():
    """190 scans of 4096 x 4096 pixels took two seconds; of few pixels as many are nothing."""
    body = picture(np.random.default_rng(2).integers(0, 256, (3, 40, 50), np.uint8), "JPEG", progressive=True)
    scan, facts = body[body.rindex(SCAN) : -2], replace(FACTS, image=(3, 8, 8), reading=Reading(size=(8, 8)))
    small = replace(SETTINGS, most_pixels=2000)  # 16 scans of all of them
    for more, refused in ((16 - body.count(SCAN), False), (17 - body.count(SCAN), True)):
        longer = body[:-2] + more * scan + body[-2:]
        assert read_images(longer, JPEG, facts, SETTINGS, "CHW").shape == (1, 3, 8, 8)
        if refused:
            assert refusal(longer, JPEG, facts=facts, settings=small)[1].startswith(
                "expected a JPEG of at most 16 scans for its 2000 pixels, got 17"
            )
        else:
            read_images(longer, JPEG, facts, small, "CHW")


def test_pictures_that_are_none_are_one_line():
    good, photo = picture(X[0]), picture(X[0], "JPEG")
    for body, kind in (
        (good, JPEG),
        (photo, PNG),
        (good[:60], PNG),
        (photo[:-200], JPEG),
        (b"", PNG),
        (b"GIF89a", PNG),
    ):
        form = "PNG" if kind == PNG else "JPEG"
        assert refusal(body, kind) == (400, f"expected a {form}, got bytes that are none, cut off or damaged")


def test_a_moving_picture_is_refused():
    frames = [Image.fromarray(x.transpose(1, 2, 0)) for x in X]
    file = io.BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    assert refusal(file.getvalue(), PNG) == (400, "expected one picture, got several frames")


def test_lists_without_end_cost_no_memory():
    """An empty list takes two letters and fifty bytes: a long body of them is refused before it is read, a short one as
    no images.
    """
    settings = Settings(request_images=64)
    most = most_bytes(JSON, FACTS, settings)
    assert most > SHORT_BYTES
    for part in (b"[],", b"{},", b'"",', b"0,"):
        body = b'{"instances": [' + part * ((most - 20) // len(part)) + b"0]}"
        with taking_less_than(len(body)):
            status, line = refusal(body, JSON, settings=settings)
        assert status == 413 and "of at most 64 images of shape (3, 6, 5), got one with more in it" in line
        short = body[: SHORT_BYTES - 9] + b"0]}"
        with taking_less_than(40 * SHORT_BYTES):
            assert refusal(short, JSON, settings=settings)[0] == 400
    assert refusal(b"[" * most, JSON, settings=settings)[0] == 413
    assert refusal(b"[" * SHORT_BYTES, JSON)[0] == 400


@pytest.mark.parametrize(("letters", "numbers"), [(60_000, 30_000), (1_000_000, 1000)])
def test_a_text_among_the_numbers_costs_no_memory(letters, numbers):
    """As an array of texts the short body of them would take seven gigabytes."""
    body = b'{"instances": ["' + b"a" * letters + b'"' + b",1" * numbers + b"]}"
    facts = replace(FACTS, image=(3, 32, 32))
    with taking_less_than(20 * len(body)):
        status, line = refusal(body, JSON, facts=facts, settings=Settings())
    assert len(body) <= most_bytes(JSON, facts, Settings())
    assert (status, line) == (400, "expected numbers in nested lists, got something else among them")


def test_more_images_than_a_request_may_have_are_refused():
    assert refusal(npy(some_images(9)), NPY[0]) == (413, "expected at most 8 images a request, got 9")
    assert refusal(instances(some_images(9) / 255), JSON)[0] == 413
    assert len(read(npy(some_images(8)), NPY[0])) == 8


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "image/gif", "x" * 500])
def test_other_types_of_bodies_are_named(kind):
    with pytest.raises(Refused, match=r"^expected a body of Content-Type application/json, image/png, ") as error:
        most_bytes(kind, FACTS, SETTINGS)
    assert error.value.status == 415 and len(error.value.line) < 350
