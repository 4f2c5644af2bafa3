"""Data sets read from files written here: PNG, JPEG, IDX and folders come back as they were, broken ones are named."""

import gzip
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from robustlib.datasets import load

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 1, 5, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (6, 3, 5, 7), dtype=np.uint8)
LABELS = np.array([0, 2, 1, 1, 0, 2])


pytestmark = pytest.mark.usefixtures("home")  # a cache of its own


def encode(image: np.ndarray, kind: str = "PNG") -> bytes:
    picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def write_parquet(path: Path, encoded: list[bytes], labels, names: list[str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pa.array(
        [{"bytes": b, "path": None} for b in encoded], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    table = pa.table({"img": image, "label": pa.array(labels, pa.int64())})
    if names is not None:
        about = {"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(table, path)
    return path


def write_idx(folder: Path, x: np.ndarray, y: np.ndarray, suffix: str = "") -> Path:
    """The whole family of four: the same images for training and testing."""
    folder.mkdir(parents=True, exist_ok=True)
    for prefix in ("train", "t10k"):
        for part, values in (("images-idx3", x[:, 0]), ("labels-idx1", y.astype(np.uint8))):
            content = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()
            (folder / f"{prefix}-{part}-ubyte{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    return folder


def write_folders(place: Path, x: np.ndarray, names: list[str]) -> Path:
    for i, image in enumerate(x):
        folder = place / names[LABELS[i]]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(encode(image))
    return place


def digits() -> tuple[np.ndarray, np.ndarray]:
    bunch: Any = load_digits()
    return bunch.images, bunch.target


def test_digits():
    train, test, images, targets = load.load("digits", "train"), load.load("digits", "test"), *digits()
    assert train.x.shape == (1348, 1, 8, 8) and test.x.shape == (449, 1, 8, 8)
    assert train.x.dtype == np.uint8 and train.y.dtype == np.int64 and train.x.max() == 255
    assert train.names == tuple("0123456789") and train.num_classes == 10
    assert (train.in_channels, train.image_size) == (1, (8, 8))
    for split, remainders in ((train, (0, 1, 2)), (test, (3,))):
        chosen = [i for i in range(1797) if i % 4 in remainders]
        assert split.y.tolist() == [targets[i] for i in chosen]
        assert np.array_equal(split.x[:, 0], [np.rint(images[i] / 16 * 255) for i in chosen])
    assert not {image.tobytes() for image in train.x} & {image.tobytes() for image in test.x}
    assert train.mean == pytest.approx([(train.x / 255).mean()]) and train.std == pytest.approx([(train.x / 255).std()])


@pytest.mark.parametrize("x", [GREY, COLOUR], ids=["grey", "colour"])
def test_png_in_parquet_comes_back_exactly(x: np.ndarray, tmp_path: Path):
    path = write_parquet(tmp_path / "a.parquet", [encode(image) for image in x], LABELS)
    found = load.load(f"parquet:{path}", "test")
    assert np.array_equal(found.x, x) and np.array_equal(found.y, LABELS) and found.names == ("0", "1", "2")
    assert found.mean == pytest.approx((x / 255).mean((0, 2, 3))) and found.std == pytest.approx(
        (x / 255).std((0, 2, 3))
    )


def test_jpeg_in_parquet_is_what_pillow_decodes(tmp_path: Path):
    encoded = [encode(image, "JPEG") for image in COLOUR]
    path = write_parquet(tmp_path / "a.parquet", encoded, LABELS)
    expected = [np.asarray(Image.open(io.BytesIO(b))).transpose(2, 0, 1) for b in encoded]
    assert np.array_equal(load.load(f"parquet:{path}", "test").x, expected)


@pytest.mark.parametrize("inner", ["", "data"])
def test_a_folder_of_parquet_files_with_class_names(inner: str, tmp_path: Path):
    encoded, names, folder = [encode(image) for image in COLOUR], ["ant", "bee", "cat"], tmp_path / "set"
    write_parquet(folder / inner / "train-00001-of-2.parquet", encoded[4:], LABELS[4:], names)
    write_parquet(folder / inner / "train-00000-of-2.parquet", encoded[:4], LABELS[:4], names)
    write_parquet(folder / inner / "test.parquet", encoded[:2], [1, 0], names)
    train, test = load.load(f"parquet:{folder}", "train"), load.load(f"parquet:{folder}", "test")
    assert np.array_equal(train.x, COLOUR) and train.y.tolist() == LABELS.tolist()
    assert np.array_equal(test.x, COLOUR[:2]) and test.y.tolist() == [1, 0]
    assert train.names == test.names == ("ant", "bee", "cat")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_comes_back_exactly(suffix: str, tmp_path: Path):
    folder = write_idx(tmp_path / "set", GREY, LABELS, suffix)
    for split in ("train", "test"):
        found = load.load(f"idx:{folder}", split)
        assert np.array_equal(found.x, GREY) and np.array_equal(found.y, LABELS) and found.names == ("0", "1", "2")


def test_class_folders(tmp_path: Path):
    names = ["ant", "bee", "cat"]
    for split in ("train", "test"):
        write_folders(tmp_path / "both" / split, COLOUR, names)
    write_folders(tmp_path / "one", GREY, names)
    order = np.argsort(LABELS, kind="stable")  # by class, then by file name
    for place, split, x in (("both", "train", COLOUR), ("both", "test", COLOUR), ("one", "test", GREY)):
        found = load.load(f"folder:{tmp_path / place}", split)
        assert np.array_equal(found.x, x[order]) and np.array_equal(found.y, LABELS[order])
        assert found.names == ("ant", "bee", "cat")


def test_class_folders_hold_other_files_too(tmp_path: Path):
    """Notes and thumbnails beside the images, and a folder that an editor left behind."""
    write_folders(tmp_path / "set", GREY, ["ant", "bee", "cat"])
    clean, x = load.fingerprint(f"folder:{tmp_path / 'set'}"), load.load(f"folder:{tmp_path / 'set'}", "test").x
    for name in ("ant/Thumbs.db", "bee/notes.txt", ".ipynb_checkpoints/0.png"):
        path = tmp_path / "set" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image")
    assert load.fingerprint(f"folder:{tmp_path / 'set'}") == clean
    assert np.array_equal(load.load(f"folder:{tmp_path / 'set'}", "test").x, x)


@pytest.mark.parametrize("kind", ["parquet", "idx"])
def test_splits_agree_on_the_classes(kind: str, tmp_path: Path):
    """A test split that lacks the last class: a network for its classes would not be the one that was trained."""
    folder = tmp_path / "set"
    if kind == "parquet":
        write_parquet(folder / "train.parquet", [encode(image) for image in GREY], LABELS)
        write_parquet(folder / "test.parquet", [encode(image) for image in GREY], LABELS % 2)
    else:
        write_idx(folder, GREY, LABELS)
        labels = folder / "t10k-labels-idx1-ubyte"
        labels.write_bytes(labels.read_bytes()[:8] + bytes((LABELS % 2).tolist()))
    assert load.load(f"{kind}:{folder}", "test").names == load.load(f"{kind}:{folder}", "train").names


GREY16 = Image.fromarray(np.arange(35, dtype=np.uint16).reshape(5, 7) * 1000)


def png16() -> bytes:
    file = io.BytesIO()
    GREY16.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "encoded, labels, names, message",
    [
        ([encode(GREY[0])] * 2, [0, 3], ["a", "b"], r"column 'label': labels from 0 to 3, expected 0 to 1$"),
        ([encode(GREY[0])] * 2, [-1, 1], ["a", "b"], r"column 'label': labels from -1 to 1, expected 0 to 1; -1 often"),
        (
            [encode(GREY[0]), encode(GREY[0][:, :4])],
            [0, 1],
            None,
            r"a\.parquet, row 1: image of 4x7 pixels, the first is 5x7: expected all alike, or `size: N` and `crop: N`, ",
        ),
        (
            [encode(GREY[0]), png16()],
            [0, 1],
            None,
            r"a\.parquet, row 1: expected an 8-bit image, got mode 'I;16': values outside 0 to 255: divide them to ",
        ),
        (
            [b"GIF, or so"],
            [0],
            None,
            r"a\.parquet, row 0: expected PNG or JPEG bytes, got 10 bytes of something else, beginning with b'GIF, or '$",
        ),
        (
            [encode(GREY[0])[:20]],
            [0],
            None,
            r"a\.parquet, row 0: expected PNG or JPEG bytes, got a PNG that is cut off or damaged$",
        ),
        ([None], [0], None, r"a\.parquet, row 0: expected PNG or JPEG bytes, got null$"),
        ([b""], [0], None, r"a\.parquet, row 0: expected PNG or JPEG bytes, got nothing$"),
        ([], [], None, r"^the dataset holds no image: .*a\.parquet has no row$"),
    ],
    ids=["beyond", "negative", "size", "16 bit", "no image", "cut header", "null", "empty bytes", "empty"],
)
def test_parquet_that_does_not_fit(encoded, labels, names, message: str, tmp_path: Path, home: Path):
    path = write_parquet(tmp_path / "a.parquet", encoded, labels, names)
    with pytest.raises(ValueError, match=message):
        load.load(f"parquet:{path}", "test")
    assert not list(home.glob("datasets/*"))  # nothing half-finished is left in the cache


def test_a_picture_that_is_cut_off_is_named_when_it_is_needed(tmp_path: Path):
    encoded = [encode(image) for image in COLOUR]
    path = write_parquet(tmp_path / "a.parquet", [*encoded[:4], encoded[4][:-40], encoded[5]], LABELS)
    found = load.load(f"parquet:{path}", "test")
    assert np.array_equal(found.images[[0, 3, 5]], COLOUR[[0, 3, 5]])
    with pytest.raises(ValueError, match=r"a\.parquet, row 4: the PNG is cut off or damaged: "):
        found.images[3:5]
    with pytest.raises(ValueError, match=r"a\.parquet, row 4: the PNG is cut off or damaged: "):
        _ = load.load(f"parquet:{path}", "test").x


def test_parquet_without_images_or_that_is_none(tmp_path: Path):
    pq.write_table(pa.table({"pixels": [1, 2], "label": [0, 1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"expected a column of images as bytes .* among pixels \(int64\), label "):
        load.load(f"parquet:{tmp_path / 'a.parquet'}", "test")
    (tmp_path / "b.parquet").write_text("not Parquet")
    with pytest.raises(ValueError, match=r"b\.parquet is no Parquet file: "):
        load.load(f"parquet:{tmp_path / 'b.parquet'}", "test")


def whole(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    "content, message",
    [
        (whole(GREY[:, 0])[:-10], r" is cut off: its header promises 210 bytes, 200 are there$"),
        (whole(GREY[:, 0])[:16], r" is cut off: its header promises 210 bytes, 0 are there$"),
        (whole(GREY[:, 0])[:9], r" is cut off"),
        (
            b"\0\0\x0d\x03" + whole(GREY[:, 0])[4:],
            r": expected unsigned bytes \(IDX type 0x08\), got type 0x0D: images",
        ),
        (b"PNG, or so", r" is no IDX file: it does not start with two zero bytes$"),
        (whole(GREY[:4, 0]), r"train-images-idx3-ubyte(\.gz)? holds 4 images, .* 6 labels$"),
        (whole(GREY[:1, 0]), r"train-images-idx3-ubyte(\.gz)? holds 1 image, .* 6 labels$"),
    ],
    ids=["cut off", "header alone", "cut header", "floats", "no idx", "fewer images", "one image"],
)
def test_idx_that_does_not_fit(suffix: str, content: bytes, message: str, tmp_path: Path):
    folder = write_idx(tmp_path / "set", GREY, LABELS, suffix)
    (folder / f"train-images-idx3-ubyte{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(ValueError, match=message):
        load.load(f"idx:{folder}", "train")


def test_a_gzipped_idx_that_is_cut_off(tmp_path: Path):
    """As a download that broke off leaves it."""
    folder = write_idx(tmp_path / "set", GREY, LABELS, ".gz")
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is cut off"):
        load.load(f"idx:{folder}", "train")


def test_names_and_places_that_do_not_exist(tmp_path: Path):
    known = "digits, mnist, fashion-mnist, cifar10, cifar100, svhn, parquet:PATH, idx:PATH, folder:PATH, tar:PATH"
    near = ": did you mean 'cifar10' or 'cifar100'\\?"
    for name, meant in (("cifar11", near), ("csv:somewhere", ""), ("parqet:x", ": did you mean 'parquet:'\\?")):
        with pytest.raises(ValueError, match=rf"^unknown dataset '{name}', expected one of: {known}{meant}$"):
            load.load(name, "test")
    for kind in ("parquet", "idx", "folder"):
        with pytest.raises(FileNotFoundError, match=rf"^dataset {kind}:.*: there is no .*nowhere$"):
            load.load(f"{kind}:{tmp_path / 'nowhere'}", "test")
    (tmp_path / "empty").mkdir()
    for kind, expected in (
        ("parquet", r"expected train\*\.parquet and test\*\.parquet there, found neither"),
        ("idx", r"expected train-images-idx3-ubyte or train-images-idx3-ubyte\.gz there, found neither"),
        ("folder", r"expected a folder for each class there, found none"),
    ):
        with pytest.raises(FileNotFoundError, match=rf"^dataset {kind}:.*empty: {expected}$"):
            load.load(f"{kind}:{tmp_path / 'empty'}", "test")
    (tmp_path / "empty" / "ant").mkdir()
    with pytest.raises(FileNotFoundError, match=r"expected images \(\.png, .*\) there, found none$"):
        load.load(f"folder:{tmp_path / 'empty'}", "test")
    with pytest.raises(ValueError, match=r"^cannot read .*x{300}: File name too long$"):
        load.load(f"folder:{tmp_path / ('x' * 300)}", "test")
    path = write_parquet(tmp_path / "a.parquet", [encode(GREY[0])], [0])
    with pytest.raises(ValueError, match=r"a\.parquet has no 'train' split, it has: test$"):
        load.load(f"parquet:{path}", "train")
