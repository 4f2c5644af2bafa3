"""Class folders as people have them: splits by any of their names, wrappers, litter; what is not plain is refused."""

import io
import os
import shutil
import time
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from robustlib.datasets import load


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ROBUSTQ_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "set"


def png(level: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (level, 0, 0)).save(file, "PNG")
    return file.getvalue()


def noise() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((30, 20), 90).save(file, "PNG")
    return file.getvalue()


NOISE = noise()


def plant(place: Path, *names: str, content: bytes | None = None) -> Path:
    """Files of these names, and empty folders where a name ends in a slash; each picture has a level of its own."""
    for k, name in enumerate(names):
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            file.mkdir()
        else:
            file.write_bytes(png(k) if content is None else content)
    return place


def taken(place: Path, split: str) -> tuple[tuple[str, ...], list[int]]:
    """The classes, and the labels of a split."""
    found = load.load(f"folder:{place}", split)
    assert found.x.shape[1:] == (3, 2, 3)
    return found.names, found.y.tolist()


def splits(place: Path) -> tuple[str, ...]:
    return load.source_of(f"folder:{place}").splits


def notes(place: Path) -> tuple[str, ...]:
    return load.source_of(f"folder:{place}").notes


def refusal(place: Path, split: str = "test") -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load.load(f"folder:{place}", split)
    return str(error.value).removeprefix(f"dataset folder:{place}")


TRAIN, TEST = ("train", "training", "Train", "TRAINING", "seg_train", "Training Images"), (
    "test", "testing", "eval", "evaluation", "Test", "EVAL", "seg_test", "my-test.set",
)  # fmt: skip
VALIDATION = ("validation", "valid", "dev", "val", "Val", "DEV", "imagenet_val")


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [*((train, "test") for train in TRAIN), *(("train", test) for test in TEST), ("Training", "Testing")]
)
def test_splits_by_each_of_their_names(names: tuple[str, str], place: Path):
    plant(place, *(f"{name}/{label}/{k}.png" for name in names for label in ("cat", "dog") for k in range(2)))
    assert splits(place) == ("train", "test")
    for split in splits(place):
        assert taken(place, split) == (("cat", "dog"), [0, 0, 1, 1])
    said = f"read as splits: train from {names[0]}/, test from {names[1]}/"
    assert notes(place) == (() if names == ("train", "test") else (said,))


@pytest.mark.slow
@pytest.mark.parametrize("name", VALIDATION)
def test_a_validation_split_is_one_of_its_own(name: str, place: Path):
    plant(place, f"{name}/cat/0.png", f"{name}/dog/0.png", f"{name}/dog/1.png")
    there = " has no 'test' split, it has: validation: `split: validation` evaluates on that"
    assert refusal(place) == there
    assert taken(place, "validation") == (("cat", "dog"), [0, 1, 1])
    plant(place, "train/cat/0.png", "train/dog/0.png", "test/cat/0.png")
    assert splits(place) == ("train", "test", "validation") and taken(place, "test") == (("cat", "dog"), [0])
    assert taken(place, "validation") == (("cat", "dog"), [0, 1, 1])


@pytest.mark.parametrize("around", ["flowers/", "flowers/images/", "a/b/c/"], ids=["one wrapper", "two", "three"])
@pytest.mark.parametrize("inside", ["", "train/", "Testing/"])
def test_wrappers_are_looked_into(around: str, inside: str, place: Path):
    plant(place, f"{around}{inside}cat/0.png", f"{around}{inside}dog/0.png", f"{around}{inside}dog/deep/1.png")
    plant(place, "README.md", "labels.csv", f"{around}LICENSE", "docs/paper.pdf", content=b"words")
    split = "train" if inside == "train/" else "test"
    assert splits(place) == (split,) and taken(place, split) == (("cat", "dog"), [0, 1, 1])
    said = f"read as splits: {split} from {around}{inside}" if inside else f"the classes are taken from {around}"
    assert notes(place) == (said,)


def test_wrappers_within_splits(place: Path):
    """Intel's image classification as it is unpacked, with its pictures without classes."""
    plant(place, *(f"seg_{s}/seg_{s}/{label}/0.jpg" for s in ("train", "test") for label in ("forest", "sea")))
    plant(place, "seg_pred/seg_pred/1.jpg")
    assert taken(place, "train") == taken(place, "test") == (("forest", "sea"), [0, 1])
    where = "read as splits: train from seg_train/seg_train/, test from seg_test/seg_test/"
    assert notes(place) == (where, "passed over beside the splits: seg_pred")


def test_a_class_that_one_split_has_alone_is_no_wrapper(place: Path):
    plant(place, "train/cat/a/0.png", "train/dog/0.png", "test/cat/a/0.png", "test/cat/b/0.png")
    assert taken(place, "test") == (("cat", "dog"), [0, 0])


def test_what_is_nothing(place: Path):
    plant(place, "flowers/rose/0.png", "flowers/tulip/0.JPG", "flowers/tulip/deep/1.Png")
    clean = load.fingerprint(f"folder:{place}")
    plant(
        place, "__MACOSX/flowers/rose/._0.png", "._flowers", ".DS_Store", "flowers/.git/x.png", "flowers/rose/._0.png",
        "flowers/rose/Thumbs.db", "flowers/rose/desktop.ini", "flowers/__pycache__/a.pyc", "flowers/tulip/.hidden.png",
        "flowers/tulip/__MACOSX/._1.png", "flowers/notes.txt", content=b"no picture",
    )  # fmt: skip
    assert taken(place, "test") == (("rose", "tulip"), [0, 1, 1])
    assert notes(place) == ("the classes are taken from flowers/",) and load.fingerprint(f"folder:{place}") == clean


@pytest.mark.parametrize(
    "names, message",
    [
        (
            ["train/cat/0.png", "train/dog/0.png", "cat/0.png", "dog/0.png"],
            ": 'train' is the train split's folder by its name, but there are images in cat, dog beside it: expected "
            "splits or classes. If all are classes, move them into a folder `test`; if not, move what is no split elsewhere",
        ),
        (
            ["val/0.png", "cat/0.png", "dog/0.png"],
            ": 'val' is the validation split's folder by its name, but there are images in cat, dog beside it: expected "
            "splits or classes. If all are classes, move them into a folder `test`; if not, move what is no split elsewhere",
        ),
        (
            ["val/cat/0.png", "val/dog/0.png", "valid/cat/0.png", "valid/dog/0.png", "train/cat/0.png", "train/dog/0.png"],
            ": val, valid are each a validation split: expected one, move the others elsewhere",
        ),
        (
            ["Test/cat/0.png", "Test/dog/0.png", "test/cat/0.png", "test/dog/0.png"],
            ": Test, test are each a test split: expected one, move the others elsewhere",
        ),
        (
            ["0.png", "1.png"],
            ": expected a folder for each class there, found 2 images without: move those of each class into a folder "
            "of its own, test/CLASS",
        ),
        (
            ["train/cat/0.png", "train/dog/0.png", "val/0.JPEG", "val/1.JPEG", "val/2.JPEG"],
            "/val: expected a folder for each class there, found 3 images without: move those of each class into a "
            "folder of its own, CLASS",
        ),
        (
            ["train/train/cat/0.png", "train/train/dog/0.png", "test/test/0.png"],
            "/test: the test split has no class in common with the train split: it has test, expected cat, dog",
        ),
        (
            ["cat/train/0.png", "cat/test/0.png", "dog/train/0.png", "dog/test/0.png"],
            "/cat holds test, train: expected SPLIT/CLASS/IMAGE, got CLASS/SPLIT/IMAGE",
        ),
        (["cat/0.png", "dog/0.HEIC", "dog/1.heic", "dog/2.gif"], "/dog holds only 1 .gif, 2 .heic: convert them to PNG or JPEG"),
        (["cat/a.txt", "dog/b.csv", "dog/c"], ": expected images (.png, .jpg, .jpeg, .bmp, .ppm, .pgm, .tif, .tiff, .webp) there, found none but 1 without an ending, 1 .csv, 1 .txt"),
        (["images/train/0.png", "images/train/1.png", "labels/train/0.txt"], "/images/train: expected a folder for each class there, found 2 images without: move those of each class into a folder of its own, CLASS"),
    ],
    ids=["split beside classes", "class val", "val and valid", "Test and test", "flat", "flat val", "flat within",
         "splits within classes", "unread kinds", "no image", "boxes"],
)  # fmt: skip
def test_what_is_not_plain_is_refused(names: list[str], message: str, place: Path):
    assert refusal(plant(place, *names)) == message
    assert not list(place.parent.glob("home/datasets/*"))


def test_folders_named_like_splits_that_are_classes(place: Path):
    """A name that only contains a keyword is a class's beside others; and within a split every name is."""
    plant(place, "test_tube/0.png", "dev_board/0.png", "training-shoe/0.png", "flask/0.png", "valley/0.png")
    assert splits(place) == ("test",)
    assert taken(place, "test")[0] == ("dev_board", "flask", "test_tube", "training-shoe", "valley")
    moved = plant(place.parent / "moved", "test/test/0.png", "test/val/0.png", "test/cat/0.png")
    assert taken(moved, "test") == (("cat", "test", "val"), [0, 1, 2])


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (["train_images/0.png", "test_images/0.png"], "test_images, train_images would be classes, but are named as"),
        (["set/train_images/0.png", "set/test_images/0.png"], "set: test_images, train_images would be classes"),
        (["trainA/0.png", "testA/0.png", "trainB/0.png", "testB/0.png"], "testA, trainA, testB, trainB would be"),
        (["ISIC_Training_Input/0.png"], "ISIC_Training_Input would be classes, but are named as splits are"),
        (["rose/0.png", "lily/0.png", "all/rose/0.png", "all/lily/0.png"], "all holds lily, rose, which are classes"),
        (
            ["set/rose/0.png", "set/lily/0.png", "preview.png"],
            "found set alone, which holds folders, and 1 image beside it: move it",
        ),
    ],
)
def test_what_would_be_no_classes_is_refused(files: list[str], problem: str, place: Path):
    plant(place, *files)
    with pytest.raises(ValueError, match=problem):
        splits(place)
    moved = plant(place.parent / "moved", *(f"test/{file}" for file in files if "train" in file.lower()))
    if moved.exists():  # within a split every name is a class's
        assert splits(moved) == ("test",)


def test_what_else_lies_there_is_said(place: Path):
    plant(place, "train/cat/0.png", "train/dog/0.png", "test/cat/0.png", "test/dog/0.png", "test/owl/0.png")
    plant(place, "test/stray.png", "extra/cat/0.png", "extra/9.png", "train/bee/", "test/bee/", "docs/a.txt")
    plant(place, "train/cat/1.gif", "test/boxes/0.xml")
    (place / "train/dog/gone.png").symlink_to(place / "nowhere.png")
    assert taken(place, "train") == (("bee", "cat", "dog", "owl"), [1, 2])
    assert taken(place, "test") == (("bee", "cat", "dog", "owl"), [1, 2, 3])
    assert notes(place) == (
        "passed over beside the splits: extra",
        "passed over: 1 image directly in test/, in no class's folder",
        "no classes, as there are no images in them: test/boxes",
        "passed over, as they are not read: 1 .gif",
        "passed over: 1 links that lead nowhere, or back",
        "classes without an image: bee",
        "classes that are in test but not in train: owl",
    )


def test_a_single_class_is_said(place: Path):
    plant(place, "flowers/0.png", "flowers/1.png")
    assert taken(place, "test") == (("flowers",), [0, 0])
    assert notes(place) == ("there is only one class, flowers: whatever a model of it answers is right",)


def test_an_empty_folder_is_a_class_that_the_fingerprint_knows(place: Path):
    """Labels count it: the same files without it are another data set."""
    plant(place, "cat/0.png", "owl/0.png")
    without, labels = load.fingerprint(f"folder:{place}"), taken(place, "test")
    plant(place, "dog/")
    assert labels == (("cat", "owl"), [0, 1]) and taken(place, "test") == (("cat", "dog", "owl"), [0, 2])
    assert load.fingerprint(f"folder:{place}") != without


def test_validation_has_no_classes_that_the_others_lack(place: Path):
    plant(place, "train/cat/0.png", "train/dog/0.png", "test/dog/0.png", "val/cat/0.png", "val/owl/0.png")
    assert taken(place, "test")[0] == ("cat", "dog")
    assert refusal(place, "validation") == ": the validation split has classes that the others lack: owl"


def test_links_are_followed_and_loops_are_not(place: Path):
    plant(place.parent / "elsewhere", "0.png", "more/1.png")
    plant(place, "cat/0.png", "cat/deep/1.png")
    (place / "dog").symlink_to(place.parent / "elsewhere")
    (place / "cat/deep/up").symlink_to(place)
    (place / "cat/self").symlink_to("self")
    (place / "cat/2.png").symlink_to(place / "cat/0.png")
    assert taken(place, "test") == (("cat", "dog"), [0, 0, 0, 1, 1])
    assert notes(place) == ("passed over: 2 links that lead nowhere, or back",)


def test_names_that_are_no_utf8(place: Path):
    for name in (b"caf\xe9/\xff.png", b"dog/0.png"):
        file = os.path.join(os.fsencode(place), name)
        os.makedirs(os.path.dirname(file), exist_ok=True)
        Path(os.fsdecode(file)).write_bytes(png())
    assert taken(place, "test") == (("caf\\xe9", "dog"), [0, 1])
    assert len(load.fingerprint(f"folder:{place}")) == 64
    Path(os.fsdecode(os.path.join(os.fsencode(place), b"caf\xe9/\xff.png"))).write_bytes(b"")
    assert refusal(place).endswith("caf\\xe9/\\xff.png: expected PNG or JPEG bytes, got nothing")


def test_a_file_is_no_folder(place: Path):
    plant(place.parent, "set.zip")
    message = ": expected a folder, got a file: unpack it, or use parquet:PATH for a Parquet file"
    assert refusal(place.parent / "set.zip") == message


def test_folders_without_end(place: Path):
    plant(place, "cat/0.png", "dog/" + "a/" * 70 + "0.png")
    assert "more than 64 folders within one another" in refusal(place)


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
