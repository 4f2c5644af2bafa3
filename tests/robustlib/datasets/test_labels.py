"""Labels become classes: those from 0 on, texts in their order; whatever would make false classes is refused."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.helpers.parquet_samples import Y, classes, load, write

pytestmark = pytest.mark.usefixtures("home")  # a cache of its own


REMAP = "`classes: remap` numbers those that there are, rising$"
REFUSED = {
    "huge": (
        [10_000_000_000 + k for k in Y],
        rf"from 10000000000 to 10000000002, 3 different ones: .* 0 to 2 .*{REMAP}",
    ),
    "holes": (
        [7 * (k == 2) + (k == 1) for k in Y],
        rf"labels from 0 to 7, 3 different ones: expected 0 to 2 .*{REMAP}",
    ),
    "one missing": ([2 * k for k in Y], rf"labels from 0 to 4, 3 different ones: .*{REMAP}"),
    "from 1": ([k + 1 for k in Y], rf"labels from 1 to 3, 3 different ones: expected 0 to 2 .*{REMAP}"),
    "negative": ([k - 1 for k in Y], "labels from -1 to 1, expected 0 to 1; -1 often marks an image without a label$"),
    "unlabelled": ([-1] * 12, r"every label of the test split is -1, it is unlabelled: `split: NAME` \(--split NAME\)"),
    "one null": (
        [None, *Y[1:]],
        r"1 of 12 labels is null or empty, the first in .*a\.parquet, row 0: expected a label for each",
    ),
    "nulls": ([*Y[:10], None, None], r"2 of 12 labels are null or empty, the first in .*a\.parquet, row 10: "),
    "all null": (
        pa.array([None] * 12, pa.int64()),
        "every label of the test split is null or empty, it is unlabelled: ",
    ),
    "not whole": ([0.5, *Y[1:]], r"a\.parquet, column 'label': expected whole numbers: Float value 0\.5"),
    "not a number": ([float("nan"), *Y[1:]], r"a\.parquet, column 'label': expected whole numbers: "),
    "infinite": ([float("inf"), *Y[1:]], r"a\.parquet, column 'label': expected whole numbers: "),
    "beyond 64 bits": (pa.array([2**64 - 1, *Y[1:]], pa.uint64()), r"expected whole numbers: Integer value 1844674407"),
    "empty text": (["", *("abc"[k] for k in Y[1:])], "1 of 12 labels is null or empty, the first in .*, row 0"),
    "null text": ([None, *("abc"[k] for k in Y[1:])], "1 of 12 labels is null or empty"),
}


@pytest.mark.parametrize("labels, message", REFUSED.values(), ids=REFUSED)
def test_labels_that_are_not_classes_are_refused_in_one_line(labels: Any, message: str, tmp_path: Path, home: Path):
    path = write(tmp_path / "a.parquet", {"label": labels})
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value) and "label" in str(caught.value)
    assert not list(home.glob("datasets/*"))


NAMED = {
    "beyond": ([*Y[:11], 3], "labels from 0 to 3, expected 0 to 2$"),
    "from 1": ([k + 1 for k in Y], "labels from 1 to 3, expected 0 to 2$"),
    "unlabelled": ([-1] * 12, "every label of the test split is -1"),
    "other text": (["a", "b", "d"] * 4, "'d' in the test split is none of the 3 classes$"),
}


@pytest.mark.parametrize("labels, message", NAMED.values(), ids=NAMED)
def test_labels_beyond_the_names(labels: Any, message: str, tmp_path: Path):
    path = write(tmp_path / "a.parquet", {"label": labels}, {"label": classes(["a", "b", "c"])})
    with pytest.raises(ValueError, match=message):
        load(path)


def test_named_classes_may_be_without_an_image(tmp_path: Path):
    path = write(tmp_path / "a.parquet", {"label": [2 * k for k in Y]}, {"label": classes(["a", "b", "c", "d", "e"])})
    assert load(path).y.tolist() == [2 * k for k in Y] and load(path).names == ("a", "b", "c", "d", "e")
    assert load(path, classes="remap").y.tolist() == Y and load(path, classes="remap").names == ("a", "c", "e")


def test_remap_numbers_what_there_is_over_all_splits(tmp_path: Path):
    write(tmp_path / "train.parquet", {"label": [7, 100, 10_000_000_000]})
    write(tmp_path / "test.parquet", {"label": [10_000_000_000, 7]})
    write(tmp_path / "validation.parquet", {"label": [-3, 7, 7]})
    for split, y in {"train": [1, 2, 3], "test": [3, 1], "validation": [0, 1, 1]}.items():
        found = load(tmp_path, split, classes="remap")
        assert found.y.tolist() == y and found.names == ("-3", "7", "100", "10000000000")


def test_a_hole_is_what_no_split_has(tmp_path: Path):
    write(tmp_path / "train.parquet", {"label": [0, 1, 2, 3]})
    write(tmp_path / "test.parquet", {"label": [0, 3]})
    assert load(tmp_path).y.tolist() == [0, 3] and load(tmp_path).names == ("0", "1", "2", "3")
    write(tmp_path / "train.parquet", {"label": [0, 1, 5]})
    with pytest.raises(ValueError, match="labels from 0 to 5, 4 different ones"):
        load(tmp_path)


@pytest.mark.parametrize("names", [None, ["0", "1", "2"]])
def test_a_split_without_labels_leaves_the_others_alone(names: list[str] | None, tmp_path: Path):
    features = None if names is None else {"label": classes(names)}
    write(tmp_path / "train.parquet", {"label": Y}, features)
    write(tmp_path / "validation.parquet", {"label": Y}, features)
    for unlabelled in ({"label": [-1] * 12}, {"label": pa.array([None] * 12, pa.int64())}, {"label": [None] * 12}):
        write(tmp_path / "test.parquet", unlabelled, features)
        assert load(tmp_path, "validation").y.tolist() == Y and load(tmp_path, "train").names == ("0", "1", "2")
        with pytest.raises(ValueError, match=r"every label of the test split is .*, it is unlabelled: `split: NAME`"):
            load(tmp_path)
    write(tmp_path / "test.parquet", {"id": Y}, {})
    assert load(tmp_path, "validation", label="label").y.tolist() == Y
    with pytest.raises(ValueError, match=r"test\.parquet has no column 'label', as others of the data set have$"):
        load(tmp_path, label="label")


def test_texts_are_classes_in_their_order_over_all_splits(tmp_path: Path):
    write(tmp_path / "train.parquet", {"label": ["owl", "cat", "owl"]})
    write(tmp_path / "test.parquet", {"label": ["owl"]})
    write(tmp_path / "validation.parquet", {"label": ["dog", "owl"]})
    for split, y in {"train": [2, 0, 2], "test": [2], "validation": [1, 2]}.items():
        assert load(tmp_path, split).y.tolist() == y and load(tmp_path, split).names == ("cat", "dog", "owl")


def test_numbers_as_text_are_ordered_as_numbers(tmp_path: Path):
    texts = [str(k) for k in (10, 2, 9, 1)]
    found = load(write(tmp_path / "a.parquet", {"label": texts}))
    assert found.y.tolist() == [3, 1, 2, 0] and found.names == ("1", "2", "9", "10")
    found = load(write(tmp_path / "b.parquet", {"label": [*texts, "x"]}))
    assert found.names == ("1", "10", "2", "9", "x")


def test_text_where_the_metadata_name_the_classes(tmp_path: Path):
    features = {"label": classes(["owl", "cat", "dog"])}
    found = load(write(tmp_path / "a.parquet", {"label": ["cat", "owl", "cat"]}, features))
    assert found.y.tolist() == [1, 0, 1] and found.names == ("owl", "cat", "dog")
    assert load(tmp_path / "a.parquet", classes="remap").names == ("owl", "cat")
