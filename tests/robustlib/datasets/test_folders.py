"""Class folders as people have them: splits by any of their names, wrappers, litter; what is not plain is refused."""

import os
from pathlib import Path

import pytest

from robustlib.datasets import load
from tests.helpers.class_folders import notes, plant, png, refusal, splits, taken

pytestmark = pytest.mark.usefixtures("home")  # a cache of its own


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
        "passed over: 1 link that leads nowhere, or back",
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
