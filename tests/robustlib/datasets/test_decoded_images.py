"""The cache of images: filled as they are asked for, checked before they are used, made again where it is damaged."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from robustlib.datasets import load
from robustlib.datasets.choose import choose
from robustlib.datasets.lazy_images import LazyImages
from robustlib.datasets.source import DataChanged
from tests.robustlib.datasets.test_load import COLOUR, LABELS, encode, write_parquet

pytestmark = pytest.mark.usefixtures("home")  # a cache of its own


@pytest.fixture
def name(tmp_path: Path) -> str:
    return f"parquet:{write_parquet(tmp_path / 'a.parquet', [encode(image) for image in COLOUR], LABELS)}"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which rows were decoded, as they are."""
    rows: list[int] = []
    before = load.Undecoded.decode

    def counted(self, chosen):
        rows.extend(chosen.tolist())
        return before(self, chosen)

    monkeypatch.setattr(load.Undecoded, "decode", counted)
    return rows


def folder_of(home: Path) -> Path:
    (folder,) = home.glob("datasets/*")
    return folder


def test_only_what_is_asked_for_is_decoded_and_only_once(name: str, decoded: list[int]):
    found = load.load(name, "test")
    assert decoded == []
    assert np.array_equal(found.images[[4, 1, 4]], COLOUR[[4, 1, 4]]) and decoded == [1, 4]
    assert np.array_equal(found.images[1:3], COLOUR[1:3]) and decoded == [1, 4, 2]
    again = load.load(name, "test")
    assert np.array_equal(again.images[np.array([2, 4])], COLOUR[[2, 4]]) and decoded == [1, 4, 2]
    assert np.array_equal(again.x, COLOUR) and sorted(decoded) == list(range(6))


def test_lazy_images_are_indexed_as_a_tensor_is(name: str):
    lazy, twin = LazyImages(load.load(name, "test").images), torch.from_numpy(COLOUR)
    assert lazy.shape == twin.shape and len(lazy) == 6 and lazy.dtype == twin.dtype and lazy.ndim == 4
    for rows in (slice(2), slice(1, 5, 2), torch.tensor([3, 0, 3]), torch.tensor([True, False] * 3), slice(0, 0)):
        assert torch.equal(lazy[rows], twin[rows])
    given = lazy[:2]
    given.zero_()
    assert torch.equal(lazy[:2], twin[:2])  # what is given is the caller's own


@pytest.mark.parametrize("where", ["image", "sum"])
def test_a_flipped_bit_is_found_and_the_image_decoded_again(where: str, name: str, home: Path, decoded: list[int]):
    assert np.array_equal(load.load(name, "test").x, COLOUR)
    decoded.clear()
    path = folder_of(home) / ("x.bin" if where == "image" else "x.sums")
    content = bytearray(path.read_bytes())
    row_bytes = COLOUR[0].nbytes if where == "image" else 16
    content[len(content) - 2 * row_bytes] ^= 1  # in the last row but one
    path.write_bytes(content)
    assert np.array_equal(load.load(name, "test").x, COLOUR) and decoded == [4]


@pytest.mark.slow
@pytest.mark.parametrize("file", ["y.npy", "facts.json", "x.bin", "x.sums"])
@pytest.mark.parametrize("how", ["flipped", "flipped at once", "gone", "cut off"])
def test_a_damaged_cache_is_made_again(file: str, how: str, name: str, home: Path):
    before = load.load(name, "test")
    assert np.array_equal(before.x, COLOUR)
    path = folder_of(home) / file
    content = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "cut off":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2 if how == "flipped" else 8] ^= 1
        path.write_bytes(content)
    found = load.load(name, "test")
    assert np.array_equal(found.x, COLOUR) and np.array_equal(found.y, LABELS)
    assert found.names == before.names and found.notes == before.notes


def test_flipped_moments_are_counted_again(name: str, home: Path):
    mean = load.load(name, "test").mean
    path = folder_of(home) / "moments.json"
    told = json.loads(path.read_text())
    told["facts"][0][0] += 0.25
    path.write_text(json.dumps(told))
    assert load.load(name, "test").mean == mean == pytest.approx((COLOUR / 255).mean((0, 2, 3)))


def test_images_that_change_while_a_set_is_open_are_refused(name: str, tmp_path: Path):
    found = load.load(name, "test")
    assert np.array_equal(found.images[:2], COLOUR[:2])
    path = write_parquet(tmp_path / "a.parquet", [encode(255 - image) for image in COLOUR], LABELS)
    os.utime(path, ns=(1, 1))
    assert np.array_equal(found.images[:2], COLOUR[:2])
    with pytest.raises(ValueError, match=r"a\.parquet has changed since it was opened: submit the study again$"):
        found.images[2:]


def test_a_decoder_that_stops_half_way_leaves_what_it_gave(name: str, monkeypatch: pytest.MonkeyPatch):
    """As a process does that is killed: whole rows with their hashes, and the others to be decoded."""
    monkeypatch.setattr("robustlib.datasets.decoded_images.ROWS_AT_ONCE", 2)
    before = load.Undecoded.decode

    def stops(self, rows):
        for n, image in enumerate(before(self, rows)):
            if n == 3:
                raise KeyboardInterrupt
            yield image

    monkeypatch.setattr(load.Undecoded, "decode", stops)
    with pytest.raises(KeyboardInterrupt):
        _ = load.load(name, "test").x
    monkeypatch.setattr(load.Undecoded, "decode", before)
    assert np.array_equal(load.load(name, "test").x, COLOUR)


def test_first_and_stratified_examples():
    y = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2])
    assert choose(y, 4).tolist() == [0, 1, 2, 3] and choose(y, "all").tolist() == choose(y, 11).tolist() == [*range(10)]
    # 5 of 10: shares 3, 1.5 and 0.5; the largest remainders are equal, and the lower class comes first.
    assert choose(y, 5, "stratified").tolist() == [0, 1, 2, 6, 7]
    assert choose(y, 10, "stratified").tolist() == [*range(10)]
    shuffled = np.random.default_rng(0).permutation(np.repeat(np.arange(7), [3, 50, 11, 8, 90, 1, 37]))
    for n in range(1, 200):
        rows = choose(shuffled, n, "stratified")
        counts, whole = np.bincount(shuffled[rows], minlength=7), np.bincount(shuffled)
        assert len(rows) == n and (np.diff(rows) > 0).all()
        assert (np.abs(counts - whole * n / 200) < 1).all()  # within one of the exact share
        for k in range(7):  # the first of each class
            assert rows[shuffled[rows] == k].tolist() == np.flatnonzero(shuffled == k)[: counts[k]].tolist()


@pytest.mark.parametrize("how", ["edit", "replace"])
@pytest.mark.parametrize("n", [0, 4])
def test_a_picture_changed_while_its_folder_is_open_is_never_cached(how: str, n: int, tmp_path: Path):
    for i, image in enumerate(COLOUR):
        path = tmp_path / "set" / "test" / f"c{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(image))
    found, name = load.load(f"folder:{tmp_path / 'set'}", "test"), f"folder:{tmp_path / 'set'}"
    assert np.array_equal(found.images[:1], COLOUR[:1])
    path, other = tmp_path / "set" / "test" / "c0" / f"{n}.png", encode(255 - COLOUR[n])
    if how == "edit":
        path.write_bytes(other)
    else:
        (tmp_path / "new.png").write_bytes(other)
        (tmp_path / "new.png").replace(path)
    row = [0, 2, 4, 1, 3, 5].index(n)  # by class
    if n == 0:
        assert np.array_equal(found.images[row], COLOUR[n])  # decoded before
    else:
        with pytest.raises(ValueError, match=r"4\.png has changed since it was opened: submit the study again$"):
            found.images[[row]]
    assert np.array_equal(load.load(name, "test").images[[row]][0], 255 - COLOUR[n])


def test_files_that_change_while_labels_are_read_are_refused(name: str, tmp_path: Path, monkeypatch, home: Path):
    from robustlib.datasets import pictures

    before = pictures.common_form

    def slow(found):
        write_parquet(tmp_path / "a.parquet", [encode(255 - image) for image in COLOUR], LABELS)
        return before(found)

    monkeypatch.setattr(pictures, "common_form", slow)
    with pytest.raises(ValueError, match=r"has changed since it was opened"):
        load.load(name, "test")
    assert not list(home.glob("datasets/*"))


def test_a_bit_that_flips_while_a_set_is_open_is_found(name: str, home: Path, decoded: list[int]):
    found = load.load(name, "test")
    assert np.array_equal(found.images[:], COLOUR)
    decoded.clear()
    path = folder_of(home) / "x.bin"
    content = bytearray(path.read_bytes())
    content[COLOUR[0].nbytes * 3] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    assert np.array_equal(found.images[:], COLOUR) and decoded == [3]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["made again", "removed", "cut off", "sums cut off", "a file in its place"])
@pytest.mark.parametrize("seen", [0, 3, 6])  # images that were asked for before
def test_a_cache_that_others_change_while_it_is_open_gives_what_it_should(how: str, seen: int, name: str, home: Path):
    """What is mapped is the file that was, which nothing is written to any more."""
    found = load.load(name, "test")
    assert np.array_equal(found.images[:seen], COLOUR[:seen])
    folder = folder_of(home)
    if how == "made again":
        (folder / "y.npy").write_bytes(b"damaged")
        assert np.array_equal(load.load(name, "test").images[1:2], COLOUR[1:2])
    elif how == "removed":
        shutil.rmtree(folder)
    elif how == "cut off":
        os.truncate(folder / "x.bin", 10)
    elif how == "sums cut off":
        os.truncate(folder / "x.sums", 10)
    else:
        (folder / "x.bin").rename(folder / "other")
        (folder / "x.bin").write_bytes(b"")
    assert np.array_equal(found.images[:], COLOUR)
    assert np.array_equal(found.x, COLOUR)
    assert np.array_equal(load.load(name, "test").images[:], COLOUR)


def test_a_disk_that_keeps_nothing_is_said(name: str, home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("robustlib.datasets.decoded_images.write", lambda *_: None)
    with pytest.raises(ValueError, match=r"does not keep what is written there: look to the disk"):
        load.load(name, "test").images[:1]


def test_a_damaged_picture_of_a_changed_file_is_reported_as_changed(name: str, tmp_path: Path):
    found = load.load(name, "test")
    path = write_parquet(tmp_path / "a.parquet", [b"\x89PNG\r\n\x1a\n cut off" for _ in COLOUR], LABELS)
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataChanged, match=r"a\.parquet has changed since it was opened"):
        found.images[:]
