"""Which column is the label, and which the images: what files say, never the first that might be."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.helpers.parquet_samples import IMAGE, STRUCT, Y, classes, images, load, png, write

pytestmark = pytest.mark.usefixtures("home")  # a cache of its own


IDS = [1000 + 7 * k for k in range(12)]
AGES = [k % 4 for k in range(12)]
PLAIN = {
    "metadata": ({"image_id": IDS, "class": Y}, {"image": IMAGE, "class": classes(["a", "b", "c"])}, "abc"),
    "metadata before a name": ({"label": AGES, "kind": Y}, {"kind": classes(["a", "b", "c"])}, "abc"),
    "labeler": ({"labeler_id": AGES, "label": Y}, None, "012"),
    "num_labels": ({"num_labels": [1] * 12, "label": Y}, None, "012"),
    "target": ({"image_id": IDS, "width": AGES, "target": Y}, None, "012"),
    "y": ({"label_source": AGES, "y": Y}, None, "012"),
    "capital": ({"id": IDS, "Label": Y}, None, "012"),
    "only whole numbers": ({"kind": Y, "weight": [0.5] * 12, "path": ["a/1.png"] * 12}, None, "012"),
    "index of pandas": ({"kind": Y, "__index_level_0__": IDS}, None, "012"),
    "only text": ({"breed": ["abc"[k] for k in Y], "file_name": [f"{k}.png" for k in range(12)]}, None, "abc"),
    "a name before whole numbers": ({"label": ["abc"[k] for k in Y], "id": IDS}, None, "abc"),
    "lists beside": ({"label": Y, "boxes": [[1, 2]] * 12, "more": [{"a": 1}] * 12}, None, "012"),
}


@pytest.mark.slow
@pytest.mark.parametrize("columns, features, names", PLAIN.values(), ids=PLAIN)
def test_what_is_plain_is_taken(columns: dict, features: Any, names: str, tmp_path: Path):
    found = load(write(tmp_path / "a.parquet", columns, features))
    assert found.y.tolist() == Y and found.names == tuple(names)
    assert found.x[:, 0, 0, 0].tolist() == list(range(12))


LISTS = [[k, (k + 1) % 3] for k in Y]
UNCLEAR = {
    "two whole numbers": (
        {"image_id": IDS, "kind": Y},
        None,
        "more than one column may be the label: image_id, kind: ",
    ),
    "two described": (
        {"fine_label": Y, "coarse_label": Y},
        {"fine_label": classes(["a", "b", "c"]), "coarse_label": classes(["a", "b", "c"])},
        "more than one column may be the label: fine_label, coarse_label: ",
    ),
    "two names": ({"label": Y, "class": Y}, None, "more than one column may be the label: label, class: "),
    "two texts": ({"breed": ["a"] * 12, "town": ["b"] * 12}, None, "may be the label: breed, town: "),
    "none": (
        {"weight": [0.5] * 12},
        None,
        r"expected a column of labels, found none .* among image \(struct\), weight",
    ),
    "only a path": ({"image_path": ["a.png"] * 12}, None, "expected a column of labels, found none"),
    "an id": ({"image_id": list(range(12))}, None, "another value for each of 12 images, and nothing says that it is"),
    "captions": ({"caption": [f"no. {k}" for k in range(12)]}, None, "another value for each of 12 images"),
    "several labels": ({"labels": LISTS, "id": IDS}, None, r"column 'labels' holds lists of labels .* expected one"),
    "described as lists": (
        {"tags": LISTS, "id": IDS},
        {"tags": {"feature": classes(["a", "b", "c"]), "_type": "Sequence"}},
        "column 'tags' holds lists of labels",
    ),
    "dates": ({"label": pa.array([0] * 12, pa.date32())}, None, r"expected whole numbers or text, got date32\[day\]"),
    "bytes": ({"label": [b"a"] * 12}, None, "expected whole numbers or text, got binary"),
    "nulls alone": ({"label": [None] * 12}, None, "expected whole numbers or text, got null"),
}


@pytest.mark.parametrize("columns, features, message", UNCLEAR.values(), ids=UNCLEAR)
def test_what_leaves_a_choice_is_refused_with_the_option_that_makes_it(
    columns: dict, features: Any, message: str, tmp_path: Path
):
    path = write(tmp_path / "a.parquet", columns, features)
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert "`label: NAME` (--label NAME)" in str(caught.value) and "\n" not in str(caught.value)


def test_a_column_that_the_user_names(tmp_path: Path):
    columns = {"image_id": IDS, "kind": Y, "a.b": Y, "objects": [{"category": k, "boxes": [1]} for k in Y], "s": LISTS}
    path = write(tmp_path / "a.parquet", columns)
    for label in ("kind", "a.b", "objects.category"):
        assert load(path, label=label).y.tolist() == Y
    for label, message in {
        "knd": r"there is no column 'knd' to take as the label: expected one of image \(struct\), image_id ",
        "objects": "column 'objects': expected whole numbers or text, got struct",
        "objects.kind": r"column 'objects\.kind': expected whole numbers or text, got no such field",
        "objects.boxes": "holds lists of labels",
        "s": "holds lists of labels",
        "image": "column 'image': expected whole numbers or text, got struct",
    }.items():
        with pytest.raises(ValueError, match=message):
            load(path, label=label)


def test_a_note_says_what_was_taken_by_its_kind_alone(tmp_path: Path):
    assert load(write(tmp_path / "a.parquet", {"label": Y})).notes == ()
    columns = {"kind": Y, "jpg": [png(k) for k in range(12)]}
    assert load(write(tmp_path / "b.parquet", columns)).notes == (
        "labels are in column 'kind', the only one of whole numbers",
    )
    content = pa.array([png(k) for k in range(12)])
    found = load(write(tmp_path / "c.parquet", {"label": Y, "img": [0.5] * 12, "content": content}), image="content")
    assert found.notes == () and found.x[:, 0, 0, 0].tolist() == list(range(12))


ENCODED = [png(k) for k in range(12)]
PICTURES = {
    "bytes": {"jpg": pa.array(ENCODED)},
    "large bytes": {"image": pa.array(ENCODED, pa.large_binary())},
    "a struct of more": {"img": pa.array([{"id": 1, "bytes": b} for b in ENCODED])},
    "bytes beside": {"image": images(), "thumbnail": pa.array([b""] * 12)},
    "another name": {"img": [0.5] * 12, "picture_bytes": pa.array(ENCODED)},
}


@pytest.mark.parametrize("columns", list(PICTURES.values())[:4], ids=list(PICTURES)[:4])
def test_images(columns: dict, tmp_path: Path):
    found = load(write(tmp_path / "a.parquet", columns | {"label": Y}))
    assert found.x[:, 0, 0, 0].tolist() == list(range(12)) and found.y.tolist() == Y


def test_images_that_are_not_plain(tmp_path: Path):
    two = {"image": images(), "mask": images(12, 100), "label": Y}
    path = write(tmp_path / "two.parquet", two)
    with pytest.raises(
        ValueError, match=r"more than one column may be the image: image, mask: `image: NAME` \(--image"
    ):
        load(path)
    assert load(path, image="mask").x[:, 0, 0, 0].tolist() == list(range(100, 112))
    described = write(tmp_path / "described.parquet", two, {"mask": IMAGE, "label": classes(["a", "b", "c"])})
    assert load(described).x[0, 0, 0, 0] == 100
    lists = write(tmp_path / "lists.parquet", {"image": pa.array([[b"a"]] * 12), "label": Y})
    with pytest.raises(ValueError, match=r"column 'image': expected one image a row, .*, got lists: `image: NAME`"):
        load(lists)
    paths = write(tmp_path / "paths.parquet", {"image": ["a.png"] * 12, "label": Y})
    with pytest.raises(ValueError, match=r"column 'image': expected one image a row, .*, got string: "):
        load(paths)


NAMES = ("b", "a", "c")
CARD = [
    {"name": "image", "dtype": "image"},
    {"name": "label", "dtype": {"class_label": {"names": {"1": "a", "0": "b", "2": "c"}}}},
]
SHAPES = {
    "list": ({"label": classes(["b", "a", "c"])}, NAMES),
    "object": ({"label": classes({"10": "x"} | {str(k): "bac"[k] for k in range(3)})}, ("0", "1", "2")),
    "object by number": ({"label": classes({"2": "c", "0": "b", "1": "a"})}, NAMES),
    "card": (CARD, NAMES),
    "count": ({"label": classes(num_classes=4)}, ("0", "1", "2", "3")),
    "count and no names": ({"label": classes([], num_classes=4)}, ("0", "1", "2", "3")),
    "older": ({"label": classes(["b", "a", "c"], num_classes=3, names_file=None, id=None)}, NAMES),
    "numbers": ({"label": classes([7, 8, 9])}, ("7", "8", "9")),
    "names are text": ({"label": classes("bac")}, ("0", "1", "2")),
    "names are null": ({"label": classes(None, num_classes="many")}, ("0", "1", "2")),
    "label is text": ({"label": "ClassLabel"}, ("0", "1", "2")),
    "label is a list": ({"label": [1, 2]}, ("0", "1", "2")),
    "features are null": (None, ("0", "1", "2")),
    "features are a number": (7, ("0", "1", "2")),
    "features without names": ([{"dtype": "image"}, 3, None], ("0", "1", "2")),
}


@pytest.mark.slow
@pytest.mark.parametrize("features, names", SHAPES.values(), ids=SHAPES)
def test_names_in_all_shapes_of_the_metadata(features: Any, names: tuple[str, ...], tmp_path: Path):
    found = load(write(tmp_path / "a.parquet", {"label": Y}, metadata=json.dumps({"info": {"features": features}})))
    assert found.y.tolist() == Y and found.names == names


@pytest.mark.parametrize(
    "metadata", ["{", "[]", "null", '"info"', '{"info": []}', '{"info": {"features"', "[" * 100_000]
)
def test_metadata_that_are_damaged_say_nothing(metadata: str, tmp_path: Path):
    found = load(write(tmp_path / "a.parquet", {"label": Y}, metadata=metadata))
    assert found.y.tolist() == Y and found.names == ("0", "1", "2")


def test_a_column_that_a_file_has_twice(tmp_path: Path):
    import pyarrow.parquet as pq

    table = pa.table([images(), pa.array(Y), pa.array(AGES)], names=["image", "label", "label"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="more than one column may be the label: label: "):
        load(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="a file has several columns 'label': expected one of that name"):
        load(tmp_path / "a.parquet", label="label")


TYPES = [
    pa.array(Y, pa.uint8()),
    pa.array(Y, pa.int32()).dictionary_encode(),
    pa.array([float(k) for k in Y]),
    pa.array(Y).cast(pa.decimal128(30, 2)),
    pa.array([str(k) for k in Y]),
    pa.array([str(k) for k in Y], pa.large_string()),
    pa.array([str(k) for k in Y]).dictionary_encode(),
]


@pytest.mark.parametrize("labels", TYPES, ids=lambda labels: str(labels.type).partition("<")[0])
def test_types_that_hold_numbers_or_text(labels: pa.Array, tmp_path: Path):
    found = load(write(tmp_path / "a.parquet", {"label": labels, "id": IDS}))
    assert found.y.tolist() == Y and found.names == ("0", "1", "2")
    assert found.y.dtype == np.int64


def test_booleans_are_two_classes(tmp_path: Path):
    found = load(write(tmp_path / "a.parquet", {"label": [k == 1 for k in Y], "id": IDS}))
    assert found.y.tolist() == [int(k == 1) for k in Y] and found.names == ("0", "1")


def test_a_null_struct_is_named_as_an_image_that_is_missing(tmp_path: Path):
    cells = [None if k == 3 else {"bytes": png(k), "path": None} for k in range(12)]
    path = write(tmp_path / "a.parquet", {"image": pa.array(cells, STRUCT), "label": Y})
    with pytest.raises(ValueError, match=r"a\.parquet, row 3: expected PNG or JPEG bytes, got null$"):
        load(path)
