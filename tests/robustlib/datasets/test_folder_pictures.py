"""Pictures in class folders: their order, which of them are read and how, and the fingerprint of all of them."""

import os
import shutil
import time
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from robustlib.datasets import load
from tests.helpers.class_folders import NOISE, plant

pytestmark = pytest.mark.usefixtures("home")  # a cache of its own


def test_order_and_labels_are_torchvisions(place: Path):
    labels = ["b", "a", "A-b", "A", "10", "9", "a b", "é", "B"]
    plant(
        place, *(f"{label}/{name}" for label in labels for name in ("1.png", "10.png", "2.JPG", "a-b/0.png", "a/0.png"))
    )
    peer = ImageFolder(str(place))
    found = load.load(f"folder:{place}", "test")
    assert list(found.names) == peer.classes and found.y.tolist() == peer.targets
    # Within a class ours sorts files and folders together, torchvision the folders first: the same files in both.
    paths = [path for _, path in load.source_of(f"folder:{place}").files["test"]]
    assert {(str(path), y) for path, y in zip(paths, found.y, strict=True)} == set(peer.samples)
    assert paths == sorted(paths)


def test_one_grey_picture_among_rgb(place: Path):
    plant(place, "test/cat/0.png", "test/cat/1.png", "test/dog/2.png")
    Image.new("L", (3, 2), 77).save(place / "test/dog/2.png")
    found = load.load(f"folder:{place}", "test")
    assert found.x[:, :, 0, 0].tolist() == [[0, 0, 0], [1, 0, 0], [77, 77, 77]]
    assert found.notes == ("1 grey of 3 images become RGB as in torchvision",)


@pytest.mark.parametrize(
    "content, message",
    [
        (NOISE[:-200], "the PNG is cut off or damaged: "),
        (NOISE[:20], "expected PNG or JPEG bytes, got a PNG that is cut off or damaged"),
        (b"", "expected PNG or JPEG bytes, got nothing"),
        (b"<!doctype html><html>", "expected PNG or JPEG bytes, got an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1", "expected PNG or JPEG bytes, got a Git LFS pointer: fetch the"),
        (bytes(99), "expected PNG or JPEG bytes, got 99 bytes that begin with zeros alone"),
    ],
    ids=["cut off", "cut header", "empty", "page", "pointer", "zeros"],
)
def test_a_file_that_is_no_picture_is_named(content: bytes, message: str, place: Path):
    plant(place, "cat/0.png", "dog/1.png", content=NOISE)
    plant(place, "dog/0.png", content=content)
    with pytest.raises(ValueError) as error:
        _ = load.load(f"folder:{place}", "test").x
    assert str(error.value).startswith(f"{place}/dog/0.png: {message}")


def test_pictures_with_wrong_endings_are_read_by_what_they_are(place: Path):
    plant(place, "cat/0.png", "dog/0.jpg", "owl/0.bmp")
    assert load.load(f"folder:{place}", "test").x[:, 0, 0, 0].tolist() == [0, 1, 2]


USUAL = {
    "both": ["train/cat/0.png", "train/dog/1.png", "test/cat/0.png", "test/dog/0.png"],
    "one": ["cat/0.png", "dog/0.png"],
    "test alone": ["test/cat/0.png", "test/dog/0.png"],
    "order": ["a-b/0.png", "a/b/0.png", "a/b.png", "a/b-c/0.JPG", "A/0.png", "a b/0.png"],
    "more beside": ["train/cat/0.png", "train/dog/1.png", "test/cat/0.png", "val/cat/0.png", "extra/0.png", "a.csv"],
    "litter": ["cat/0.png", "cat/Thumbs.db", "dog/0.png", "dog/notes.txt", "README.md", ".git/x.png"],
}
# As the code before splits and wrappers were looked for gave them (commit 69fa14d).
RECORDED = {
    "both": "800e1eea12ba5a98ec6e26084f1311ac059c0bd76fd3bf07b6beed1aaa4bdfcc",
    "one": "6c09951f3f0d258bed9f4a47cd755c337882e9beea3e23d4e5b9915182890068",
    "test alone": "8752bcea10c8f0ba76e01944edc1aa9529e06f14e1165b2cc257f9c0522cd05b",
    "order": "1bf2c53a9d0c90d0caa18e68726274f95208bdcf4b527020b094ee484ac0403e",
    "more beside": "dddcb6a03b43a6bd4f47b14b5c4ba6c674a78308426b9adbf74fb549e4baf590",
    "litter": "6c09951f3f0d258bed9f4a47cd755c337882e9beea3e23d4e5b9915182890068",
}


@pytest.mark.parametrize("name", USUAL)
def test_what_is_read_as_before_keeps_its_fingerprint(name: str, place: Path):
    for file in USUAL[name]:
        plant(place, file, content=file.encode())
    assert load.fingerprint(f"folder:{place}") == RECORDED[name]


OTHERWISE = {
    "other names": ["Training/cat/0.png", "Training/dog/0.png", "Testing/cat/0.png", "Testing/dog/0.png"],
    "wrapped": ["flowers/cat/0.png", "flowers/dog/0.png"],
    "one of two": ["train/cat/0.png", "train/dog/0.png", "Testing/cat/0.png", "Testing/dog/0.png"],
    "wrapped within": ["train/train/cat/0.png", "train/train/dog/0.png", "test/test/cat/0.png", "test/test/dog/0.png"],
    "code beside": ["cat/0.png", "dog/0.png", "__pycache__/a.pyc"],
    "texts beside": ["cat/0.png", "dog/0.png", "boxes/0.xml"],
    "hidden ones": ["cat/0.png", "dog/0.png", "dog/._0.png"],
    "validation": ["val/cat/0.png", "val/dog/0.png"],
}
RECORDED_OTHERWISE = {
    "other names": "8db7c5046bff09c107b3593029606d8b294876bd7cecfd190079f675db942eb7",
    "wrapped": "0d35475ab595fb4d7370a2fbc70744e74b300eec84752fdf71b090af15f2e535",
    "one of two": "8626a3983c2b26d4b5195269c3a3ede0a48b0237c6f361b9c391cf837402e710",
    "wrapped within": "e2e8455a8b1ee0a458411e2623e492a7efe773e6a433b57552045cc1287ece20",
    "code beside": "6c09951f3f0d258bed9f4a47cd755c337882e9beea3e23d4e5b9915182890068",
    "texts beside": "6c09951f3f0d258bed9f4a47cd755c337882e9beea3e23d4e5b9915182890068",
    "hidden ones": "40d90a5273cce453096e68038c62a7626d50bf259ba68a4d2ea222831e1d7877",
    "validation": "4a56d944965edbbc149938b282cc3a2123253acae09b0049c4a57cb92b2bc206",
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_is_read_otherwise_has_another_fingerprint(name: str, place: Path):
    for file in OTHERWISE[name]:
        plant(place, file, content=file.encode())
    split = "validation" if name == "validation" else "test"
    assert load.fingerprint(f"folder:{place}", split) != RECORDED_OTHERWISE[name]


@pytest.mark.slow
def test_many_files_are_listed_quickly(place: Path):
    from robustlib.datasets import folder_tree

    plant(place, "cat/0.png")
    for k in range(20_000):
        folder = place / f"class{k % 100:03}"
        folder.mkdir(exist_ok=True)
        os.link(place / "cat/0.png", folder / f"{k}.png")
    start = time.perf_counter()
    found = folder_tree.read_tree(place).files()
    assert len(found) == 20_001 and time.perf_counter() - start < 2  # a tenth of it on an idle machine
    shutil.rmtree(place)
