"""Which files are a split's, what a broken one is called, and that sets that are read as before keep their fingerprint."""

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from robustlib.datasets import load as data
from robustlib.datasets.source import Pictures
from tests.helpers.parquet_samples import STRUCT, Y, classes, images, load, png, write

SPLITS = ("train", "test", "validation")


pytestmark = pytest.mark.usefixtures("home")  # a cache of its own


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def put(folder: Path, *files: str) -> dict[str, int]:
    """Files that can be told apart by how many rows they have; which that is."""
    for k, file in enumerate(files):
        write(folder / file, {"label": [i % 2 for i in range(k + 2)]})
    return {file: k + 2 for k, file in enumerate(files)}


def sizes(folder: Path) -> dict[str, int]:
    found = {}
    for split in SPLITS:
        try:
            found[split] = len(load(folder, split))
        except ValueError as error:
            assert f"has no {split!r} split" in str(error)
    return found


LAYOUTS = {
    "as exported": (["data/train-00000-of-1.parquet", "data/test-00000-of-1.parquet"], {"train": 2, "test": 3}),
    "three": (["train.parquet", "test.parquet", "validation.parquet"], {"train": 2, "test": 3, "validation": 4}),
    "folders": (["train/0000.parquet", "test/0000.parquet", "test/0001.parquet"], {"train": 2, "test": 7}),
    "one set": (["default/train/0000.parquet", "default/val/0000.parquet"], {"train": 2, "validation": 3}),
    "words within": (["cifar10_test.parquet", "cifar10_Training.parquet"], {"test": 2, "train": 3}),
    "eval and dev": (["x.eval.parquet", "x-dev2.parquet"], {"test": 2, "validation": 3}),
    "numbers": (["train1.parquet", "train2.parquet", "test1.parquet"], {"train": 5, "test": 4}),
    "no words": (["test.parquet", "trainer.parquet", "contest.parquet", "extra.parquet"], {"test": 2}),
    "hidden": (["test.parquet", "._test.parquet", ".cache/train.parquet", ".train.parquet"], {"test": 2}),
    "backup beside": (["test.parquet", "old/test.parquet", "old/train.parquet"], {"test": 2}),
    "odd names elsewhere": (["test.parquet", "old/train-test.parquet", "train-val/a.parquet.txt"], {"test": 2}),
    "another prefix": (["train.parquet", "mini-train.parquet", "test.parquet"], {"train": 2, "test": 4}),
}


def test_linked_folders_and_files(folder: Path, tmp_path: Path):
    """As caches of downloads have them; a link back to the folder itself is no second set."""
    put(tmp_path / "store", "data/train-0.parquet", "blob")
    (folder / "data").symlink_to(tmp_path / "store" / "data")
    (folder / "test.parquet").symlink_to(tmp_path / "store" / "blob")
    (folder / "again").symlink_to(folder)
    assert sizes(folder) == {"train": 2, "test": 3}


@pytest.mark.slow
@pytest.mark.parametrize("files, expected", LAYOUTS.values(), ids=LAYOUTS)
def test_splits_by_the_words_in_their_names(files: list[str], expected: dict[str, int], folder: Path):
    put(folder, *files)
    assert sizes(folder) == expected


UNCLEAR = {
    "no word": (
        ["a.parquet", "b.parquet"],
        "found 2 files whose names say no split, such as a.parquet: rename them, or",
    ),
    "trainer": (["trainer.parquet"], "found 1 file whose name says no split, such as trainer.parquet"),
    "two sets": (["de/test.parquet", "fr/test.parquet"], r"holds 2 sets: de, fr: name one, as parquet:.*/set/de$"),
    "half here": (["validation.parquet", "de/train.parquet"], r"holds 2 sets: de, \.: name one, as parquet:.*/set/de$"),
    "two splits": (["train-val.parquet"], "train-val.parquet says train and validation: expected one split, so rename"),
    "folder and name": (["train/test.parquet"], "says test and train: expected one split"),
    "twice": (
        ["test.parquet", "data/test.parquet"],
        "files of one split lie in . and in data: expected one of the two",
    ),
    "two in one": (["a-test.parquet", "b-test.parquet"], "a-test.parquet and b-test.parquet in .* may be of two sets"),
}


@pytest.mark.parametrize("files, message", UNCLEAR.values(), ids=UNCLEAR)
def test_what_is_not_plain_is_refused(files: list[str], message: str, folder: Path):
    put(folder, *files)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(folder)


def test_a_set_without_a_test_split_says_which_one_chooses(folder: Path):
    put(folder, "data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet")
    expected = r"has no 'test' split, it has: train, validation: `split: validation` evaluates on that$"
    with pytest.raises(ValueError, match=expected):
        load(folder)


def test_notes_say_what_was_taken(folder: Path):
    put(folder, "data/train-0.parquet", "data/test-0.parquet")
    assert load(folder).notes == ()
    put(folder, "data/valid-0.parquet", "other.parquet")
    assert load(folder).notes == (
        "splits: train data/train-0.parquet, test data/test-0.parquet, validation data/valid-0.parquet",
        "passed over: other.parquet",
    )


def test_notes_say_where_files_may_be_too_many_or_too_few(folder: Path):
    put(folder, "test.parquet", "test-mini.parquet", "train-00001-of-00003.parquet")
    found = load(folder)
    assert len(found) == 5
    assert found.notes == (
        "splits: train train-00001-of-00003.parquet, test 2 files in .",
        "train: only 1 of 3 files is there",
    )


def test_a_shard_that_is_a_link_to_nowhere_is_named(folder: Path):
    put(folder, "test-0.parquet", "__MACOSX/train-0.parquet")
    assert sizes(folder) == {"test": 2}
    (folder / "test-1.parquet").symlink_to(folder / "nowhere")
    with pytest.raises(ValueError, match=r"cannot read .*test-1\.parquet: No such file"):
        load(folder)


def test_shards_that_differ_in_columns_that_nobody_needs(folder: Path):
    write(folder / "test-0.parquet", {"label": pa.array(Y, pa.int64())})
    write(folder / "test-1.parquet", {"extra": ["a"] * 12, "label": pa.array(Y, pa.int32())})
    write(folder / "test-2.parquet", {"extra": [1.5] * 12, "label": pa.array(Y, pa.uint8()).dictionary_encode()})
    write(folder / "test-3.parquet", {"label": []})
    assert load(folder).y.tolist() == Y * 3 and load(folder).x[:, 0, 0, 0].tolist() == list(range(12)) * 3
    write(folder / "test-4.parquet", {"label": [str(k) for k in Y]})
    with pytest.raises(ValueError, match="column 'label' holds numbers in some files and text in others"):
        load(folder)


def test_shards_that_lack_what_is_needed_or_say_otherwise(folder: Path):
    write(folder / "test-0.parquet", {"label": Y}, {"label": classes(["a", "b", "c"])})
    write(folder / "test-1.parquet", {"kind": Y})
    with pytest.raises(ValueError, match=r"test-1\.parquet has no column 'label', as others of the data set have$"):
        load(folder)
    pq.write_table(pa.table({"label": Y}), folder / "test-1.parquet")
    with pytest.raises(ValueError, match=r"test-1\.parquet has no column 'image', as others of the data set have$"):
        load(folder)
    write(folder / "test-1.parquet", {"label": Y}, {"label": classes(["b", "a", "c"])})
    with pytest.raises(
        ValueError, match=r"test-0\.parquet and .*test-1\.parquet name the classes of column 'label' oth"
    ):
        load(folder)


def spoiled(path: Path, how: str) -> None:
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[4:300] = bytes(296)
    content = {
        "empty": b"",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "page": b"<!DOCTYPE html><html>" + b" " * 200,
        "cut off": whole[:-300],
        "cut at once": whole[:5],
        "other": b"something of more than sixty-four bytes that is not a Parquet file at all",
        "within": bytes(damaged),
    }
    path.write_bytes(content[how])


@pytest.mark.parametrize(
    "how, message",
    {
        "empty": "is no Parquet file: nothing$",
        "pointer": "is no Parquet file: a Git LFS pointer: fetch the file itself with `git lfs pull`$",
        "page": "is no Parquet file: an HTML page$",
        "cut off": "is no Parquet file: it is cut off or damaged, it begins as one: ",
        "cut at once": "is no Parquet file: it is cut off or damaged, it begins as one: ",
        "other": "is no Parquet file: 73 bytes beginning with b'somethin'$",
        "within": "is cut off or damaged: ",
    }.items(),
)
def test_a_broken_file_is_named(how: str, message: str, folder: Path):
    put(folder, "test-0.parquet", "test-1.parquet", "train.parquet")
    spoiled(folder / "test-1.parquet", how)
    with pytest.raises(ValueError, match=rf"test-1\.parquet {message}") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_with_named_classes_a_broken_file_of_another_split_is_no_matter(folder: Path):
    """As `git lfs pull --include 'test*'` leaves a folder."""
    for split in ("train", "test"):
        write(folder / f"{split}.parquet", {"label": Y}, {"label": classes(["a", "b", "c"])})
    spoiled(folder / "train.parquet", "pointer")
    assert load(folder).y.tolist() == Y
    with pytest.raises(ValueError, match=r"train\.parquet is no Parquet file: a Git LFS pointer"):
        load(folder, "train")


def before(reader: str, *files: tuple[str, Path]) -> str:
    """A fingerprint as it always was: over the reader's name, and each file's name and hash in turn."""
    listed = "".join(f"{name}={hashlib.sha256(path.read_bytes()).hexdigest()}\n" for name, path in files)
    return hashlib.sha256(f"{reader}/1{listed}".encode()).hexdigest()


def parts(folder: Path, *names: str) -> list[tuple[str, Path]]:
    return [(f"{name.partition('-')[0]}/{name}", next(folder.rglob(name))) for name in names]


ABC = {"label": classes(["a", "b", "c"])}
SAME: dict[str, tuple[dict[str, Any], Any]] = {
    "names": ({"label": Y}, ABC),
    "numbers": ({"id": Y, "label": Y}, None),
    "only": ({"kind": Y}, None),
    "labels": ({"labels": Y}, None),
    "only one described": ({"fine_label": Y, "id": Y}, {"fine_label": classes(["a", "b", "c"])}),
}


@pytest.mark.parametrize("columns, features", SAME.values(), ids=SAME)
def test_a_set_that_is_read_as_before_keeps_its_fingerprint(columns: dict, features: Any, folder: Path, tmp_path: Path):
    for name in ("train-1", "train-0", "test-0"):
        write(folder / "data" / f"{name}.parquet", columns, features)
    names = "train-0.parquet", "train-1.parquet", "test-0.parquet"
    assert data.fingerprint(f"parquet:{folder}") == before("parquet", *parts(folder, *names))
    write(tmp_path / "one.parquet", columns, features)
    alone = before("parquet", ("one.parquet", tmp_path / "one.parquet"))
    assert data.fingerprint(f"parquet:{tmp_path / 'one.parquet'}") == alone


def test_a_validation_split_leaves_the_fingerprint_of_the_others_alone(folder: Path):
    for name in ("train-0", "test-0", "validation-0"):
        write(folder / f"{name}.parquet", {"label": Y})
    old = before("parquet", *parts(folder, "train-0.parquet", "test-0.parquet"))
    assert data.fingerprint(f"parquet:{folder}") == old
    assert data.fingerprint(f"parquet:{folder}", "validation") != old
    write(folder / "validation-0.parquet", {"label": [*Y[:11], 3]})  # a class that the others lack
    assert data.fingerprint(f"parquet:{folder}") != old and load(folder).num_classes == 4


OTHER: dict[str, tuple[dict[str, Any], Any]] = {
    "another label": ({"labeler_id": Y, "label": Y}, None),
    "another label described": ({"image_id": Y, "class": Y}, {"class": classes(["a", "b", "c"])}),
    "another image": ({"thumbnail": images(), "image": images(), "label": Y}, ABC | {"image": {"_type": "Image"}}),
    "names by number": ({"label": Y}, {"label": classes({"0": "a", "1": "b", "2": "c"})}),
    "names counted": ({"label": Y}, {"label": classes(num_classes=5)}),
    "text": ({"id": Y, "label": ["abc"[k] for k in Y]}, None),
}


@pytest.mark.parametrize("columns, features", OTHER.values(), ids=OTHER)
def test_a_set_that_is_read_otherwise_has_another_fingerprint(columns: dict, features: Any, tmp_path: Path):
    path = write(tmp_path / "one.parquet", columns, features)
    assert data.fingerprint(f"parquet:{path}") != before("parquet", ("one.parquet", path))
    assert load(path).y.tolist() == Y


def test_what_was_read_from_another_column_is_another_set(tmp_path: Path):
    path = write(tmp_path / "a.parquet", {"a": Y, "b": Y[::-1], "label": Y})
    assert load(path).y.tolist() == load(path, label="a").y.tolist() == Y
    assert load(path, label="b").y.tolist() == Y[::-1]


@pytest.mark.parametrize("group", [1, 5, 200])
def test_rows_are_fetched_in_any_pieces(group: int, tmp_path: Path):
    """Ahead, back, over the ends of files and row groups, and by two at a time."""
    n = 200
    table = pa.table({"image": images(n), "label": pa.array([k % 2 for k in range(n)])})
    for k, (first, last) in enumerate([(0, 70), (70, 70), (70, 200)]):
        pq.write_table(table[first:last], tmp_path / f"test-{k}.parquet", row_group_size=group)
    found = data.source_of(f"parquet:{tmp_path}").read("test")
    assert isinstance(found, Pictures)
    expected = [png(k) for k in range(n)]
    for rows in ([0, 1, 69, 70, 199], [3], [4, 5], [5], [100, 150], [149, 199], list(range(n)), [199], [0]):
        assert list(found.fetch(np.array(rows))) == [expected[row] for row in rows]
    one, other = found.fetch(np.arange(0, 200)), found.fetch(np.arange(50, 200))
    for row in range(150):
        assert (next(one), next(other)) == (expected[row], expected[row + 50])
    assert found.where(69).endswith("test-0.parquet, row 69") and found.where(70).endswith("test-2.parquet, row 0")


def noise(k: int, side: int = 224) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(k).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


PEAK = """
import resource, sys
from pathlib import Path
import numpy as np
from robustlib.datasets import load
from robustlib.datasets import pictures
found = load.source_of("parquet:" + sys.argv[1]).read("test")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert sum(len(image) for image in found.fetch(np.arange(100))) > 0 and pictures.common_form(found).shape == (3, 224, 224)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_memory_holds_no_row_group(tmp_path: Path):
    """One of 270 MB; pyarrow by itself takes all of it."""
    encoded = [noise(k) for k in range(20)]
    image = pa.array([{"bytes": encoded[k % 20], "path": None} for k in range(1800)], STRUCT)
    table = pa.table({"image": image, "label": pa.array([k % 2 for k in range(1800)])})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1800, use_dictionary=False)
    assert (tmp_path / "a.parquet").stat().st_size > 250 * 2**20
    place = {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PEAK, str(tmp_path / "a.parquet")]
    grown = subprocess.run(command, env=os.environ | place, check=True, capture_output=True, text=True)
    assert float(grown.stdout) < 120
    (tmp_path / "a.parquet").unlink()


def test_metadata_of_the_features_are_read_as_json(tmp_path: Path):
    about = json.dumps({"info": {"features": {"label": classes(["ä", "b", "c"])}}})
    assert load(write(tmp_path / "a.parquet", {"label": Y}, metadata=about)).names == ("ä", "b", "c")
