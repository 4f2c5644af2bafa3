"""Parquet files, looked at by their footers: what they hold, or why they cannot be read."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robustlib.datasets.file_types import describe_bytes
from robustlib.datasets.labels import Labels
from robustlib.number_text import counted

MAGIC = b"PAR1"
MOST_BYTES = 64  # of a file's beginning, by which it is named
MOST_LABEL_BYTES = 2**16  # of a text that names a class
# What a file may declare, by its size: pictures hardly shrink, and there is one for each row.
TIMES, SMALL_BYTES, SMALL_ROWS = 1000, 2**30, 1_000_000


@dataclass(frozen=True, eq=False)
class Shard:
    """A Parquet file. metadata, schema: pyarrow's, None where it is broken.  broken: why, in words."""

    path: Path
    metadata: Any = None
    schema: Any = None
    broken: str = ""

    def __len__(self) -> int:
        return 0 if self.metadata is None else self.metadata.num_rows

    def check(self) -> None:
        if self.broken:
            raise ValueError(self.broken)


def read_footer(path: Path) -> Shard:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("rb") as file:  # with the system's own errors
        begins = file.read(MOST_BYTES)
    try:
        with pq.ParquetFile(path) as file:
            if problem := oversize_problem(file.metadata, path.stat().st_size):
                return Shard(path, broken=f"{path} is damaged, or no data set: {problem}")
            return Shard(path, file.metadata, file.schema_arrow)
    except (pa.ArrowException, OSError, ValueError) as error:  # the last for names that are no UTF-8
        return Shard(path, broken=f"{path} is no Parquet file: {describe_file(begins, path, error)}")


def oversize_problem(about: Any, size: int) -> str | None:
    """Why a file of this size cannot hold what its footer declares, in words; None where it can."""
    groups = [about.row_group(place) for place in range(about.num_row_groups)]
    rows, unpacked = sum(group.num_rows for group in groups), sum(group.total_byte_size for group in groups)
    if about.num_rows < 0 or any(group.num_rows < 0 for group in groups) or rows != about.num_rows:
        return f"its footer counts {counted(about.num_rows, 'row')}, its row groups {rows}"
    if rows > TIMES * size + SMALL_ROWS:
        return f"it declares {rows} rows in {size} bytes"
    if unpacked > TIMES * size + SMALL_BYTES:
        return f"it declares {unpacked >> 20} MB that {size} bytes unpack to"
    return None


def describe_file(begins: bytes, path: Path, error: Exception) -> str:
    if begins.startswith(MAGIC):
        return f"it is cut off or damaged, it begins as one: {first_line(error)}"
    size = path.stat().st_size
    named = describe_bytes(begins)
    return (
        named if size <= MOST_BYTES or "something else" not in named else f"{size} bytes beginning with {begins[:8]!r}"
    )


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """What pyarrow finds wrong within a file becomes a ValueError that names it."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, StopIteration) as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise ValueError(f"{path} is cut off or damaged: {first_line(error) or 'rows are missing'}") from error


def field(values: Any, path: Sequence[str]) -> Any:
    """A field within structs, null where one of them is."""
    from pyarrow import compute

    return compute.call_function("struct_field", [values], compute.StructFieldOptions(list(path))) if path else values


def read_labels(shard: Shard, path: tuple[str, ...]) -> Labels:
    """A column's numbers or texts. Raises ValueError for a shard without it, or with numbers that are not whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shard.check()
    name = ".".join(path)
    if len(shard) == 0:
        return Labels(shard.path, [], np.zeros(0, np.int64))
    if path[0] not in shard.schema.names:
        raise ValueError(f"{shard.path} has no column {path[0]!r}, as others of the data set have")
    # Texts as a dictionary: a few long ones would else stand in memory once for each row.
    how: Any = {"metadata": shard.metadata, "pre_buffer": False, "read_dictionary": [name]}
    with readable(shard.path), pq.ParquetFile(shard.path, **how) as file:
        table = file.read(columns=[name], use_threads=False)
    values = field(table.column(0), path[1:])
    if pa.types.is_dictionary(values.type) and is_text(values.type.value_type):
        return encode_texts(shard.path, name, values)
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    numeric = not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
    try:
        values = values.cast(kind).cast(pa.int64() if numeric else pa.string())
    except pa.ArrowInvalid as error:
        raise ValueError(f"{shard.path}, column {name!r}: expected whole numbers: {first_line(error)}") from error
    return encode(shard.path, values)


def is_text(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def encode_texts(path: Path, name: str, values: Any) -> Labels:
    """From a column of text as dictionaries. Raises ValueError for a text that is too long to name a class."""
    places: dict[str, int] = {}
    codes = [np.zeros(0, np.int64)]
    for chunk in values.chunks:
        found = chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        numbers = np.full(len(chunk.dictionary) + 1, -1)  # the last stands for null
        for code in np.unique(found[found >= 0]).tolist():
            text = chunk.dictionary[code].as_py()
            if text and len(text) > MOST_LABEL_BYTES:
                raise ValueError(f"{path}, column {name!r}: expected labels, got a text of {len(text)} letters")
            numbers[code] = places.setdefault(text, len(places)) if text else -1
        codes.append(numbers[found])
    return Labels(path, list(places), np.concatenate(codes))


def encode(path: Path, values: Any) -> Labels:
    """From a column of int64 or of text, of which an empty one is no label, as in CSV files."""
    import pyarrow as pa
    from pyarrow import compute

    if pa.types.is_string(values.type):
        values = compute.call_function("if_else", [compute.call_function("equal", [values, ""]), None, values])
    coded = values.combine_chunks().dictionary_encode()
    coded = coded.combine_chunks() if hasattr(coded, "combine_chunks") else coded
    codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return Labels(path, coded.dictionary.to_pylist(), codes)
