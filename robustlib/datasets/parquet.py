"""Hugging Face image columns in Parquet files."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustlib.datasets.source import AS_IT_IS, Pictures, Reading, Source

ROWS_AT_ONCE = 64  # read together: a row group may be larger than memory


def parquet(path: Path, reading: Reading = AS_IT_IS) -> Source:
    """Hugging Face image columns: a folder with train*.parquet and test*.parquet (also in data/), or one file."""
    if path.is_file():
        files = {"test": [(path.name, path)]}
        return Source("parquet", files, ("test",), lambda split: read_parquet([path], [path], reading))
    found = {
        split: sorted([*path.glob(f"{split}*.parquet"), *path.glob(f"data/{split}*.parquet")])
        for split in ("train", "test")
    }
    splits = {split: files for split, files in found.items() if files}
    if not splits:
        raise FileNotFoundError(
            f"dataset parquet:{path}: expected train*.parquet and test*.parquet there, found neither"
        )
    files = {split: [(f"{split}/{file.name}", file) for file in listed] for split, listed in splits.items()}
    everything = [file for listed in splits.values() for file in listed]
    return Source("parquet", files, tuple(splits), lambda split: read_parquet(splits[split], everything, reading))


def read_parquet(files: list[Path], everything: list[Path], reading: Reading) -> Pictures:
    """The images in `files`; where the classes have no names, the labels in `everything` tell how many there are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = [pq.ParquetFile(file) for file in files]
    except pa.ArrowInvalid as error:
        raise ValueError(f"{files[0]} is no Parquet file: {error}") from error
    schema = opened[0].schema_arrow
    columns = {field.name: field.type for field in schema}
    image = next(
        (name for name, kind in columns.items() if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0),
        None,
    )
    labels = [name for name, kind in columns.items() if pa.types.is_integer(kind)]
    label = next((name for name in labels if "label" in name), labels[0] if labels else None)
    if image is None or label is None:
        raise ValueError(
            f"{files[0]}: expected an image column struct<bytes, path> and an integer label column, "
            f"got: {', '.join(columns)}"
        )
    names = class_names(schema.metadata, label)
    if names is None:
        names = numbered(pq.read_table(file, columns=[label]).column(label).to_numpy() for file in everything)
    y = np.concatenate([file.read(columns=[label]).column(label).to_numpy() for file in opened])
    sizes = [file.metadata.num_rows for file in opened]
    column = f"{image}.bytes"
    return Pictures(y, names, lambda rows: fetch(opened, column, rows), lambda row: where(files, sizes, row), reading)


def fetch(files: Sequence[Any], column: str, rows: np.ndarray) -> Iterator[bytes | None]:
    """The bytes of these rows, which rise, in turn; only the row groups that hold some of them are read."""
    start, wanted = 0, iter(rows.tolist())
    row = next(wanted, None)
    for file in files:
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            if row is not None and row < end:
                place = start
                for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[column]):
                    values = batch.column(0).field("bytes")
                    while row is not None and row < place + len(values):
                        yield values[row - place].as_py()
                        row = next(wanted, None)
                    place += len(values)
                    if row is None:
                        return
            start = end


def where(files: Sequence[Path], sizes: Sequence[int], row: int) -> str:
    """A row in words: its file, and its place there."""
    for file, size in zip(files, sizes, strict=True):
        if row < size:
            return f"{file}, row {row}"
        row -= size
    raise IndexError(row)


def numbered(labels: Iterable[np.ndarray]) -> list[str]:
    """Names for classes without: their numbers, the same for every split."""
    return [str(number) for number in range(max(int(y.max(initial=0)) for y in labels) + 1)]


def class_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str] | None:
    """The names in the schema's metadata, as Hugging Face writes them."""
    about = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    names = about.get("info", {}).get("features", {}).get(label, {}).get("names")
    return list(names) if names else None
