"""Parquet files, looked at by their footers: what they hold, or why they cannot be read."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robustlib.datasets.labels import Labels
from robustlib.datasets.pictures import what

MAGIC = b"PAR1"
MOST_BYTES = 64  # of a file's beginning, by which it is named


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


def look(path: Path) -> Shard:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("rb") as file:  # with the system's own errors
        begins = file.read(MOST_BYTES)
    try:
        with pq.ParquetFile(path) as file:
            return Shard(path, file.metadata, file.schema_arrow)
    except (pa.ArrowException, OSError) as error:
        return Shard(path, broken=f"{path} is no Parquet file: {what_instead(begins, path, error)}")


def what_instead(begins: bytes, path: Path, error: Exception) -> str:
    if begins.startswith(MAGIC):
        return f"it is cut off or damaged, it begins as one: {first_line(error)}"
    size = path.stat().st_size
    named = what(begins)
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
    with readable(shard.path), pq.ParquetFile(shard.path, metadata=shard.metadata, pre_buffer=False) as file:
        table = file.read(columns=[name], use_threads=False)
    values = field(table.column(0), path[1:])
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    numeric = not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
    try:
        values = values.cast(kind).cast(pa.int64() if numeric else pa.string())
    except pa.ArrowInvalid as error:
        raise ValueError(f"{shard.path}, column {name!r}: expected whole numbers: {first_line(error)}") from error
    return encode(shard.path, values)


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
