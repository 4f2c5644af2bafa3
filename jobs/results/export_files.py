"""Tables into files: each whole or not there, a folder of them too."""

import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from robustlib import durable_files
from robustq.jobs.errors import SpecError
from robustq.jobs.results.columns import ResultRow

R = TypeVar("R", bound=ResultRow)

ENDINGS = (".arrow", ".parquet", ".csv")
NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"  # what Hive, Arrow and DuckDB read as null


def check_ending(path: Path) -> None:
    if path.suffix not in ENDINGS:
        raise SpecError(f"expected a file ending in .arrow, .parquet or .csv, got {path}")


def check_folder(path: Path) -> None:
    if path.suffix in ENDINGS:
        raise SpecError(f"--partition writes a folder of Parquet files: expected a name without ending, got {path}")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise SpecError(
            f"{path} exists already: files of two exports side by side would count twice; name a new folder"
        )


def write_rows(
    path: Path,
    rows: Sequence[R],
    tables_of: Callable[[Sequence[R]], Iterator[pa.Table]],
    kind: pa.Schema,
    columns: Sequence[str],
) -> int:
    """Write the tables of these rows, with `columns` as a folder of files; returns the number of rows."""
    return write_folder(path, rows, tables_of, kind, columns) if columns else write_file(path, tables_of(rows), kind)


def write_file(path: Path, tables: Iterable[pa.Table], kind: pa.Schema) -> int:
    """Write tables one after the other into one file, by its ending; returns the number of rows."""
    with replacing(path) as temporary:
        return write_tables(temporary, path.suffix, tables, kind)


def write_text(path: Path, text: str) -> None:
    """Write a text with plain line ends, whichever are usual here."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        durable_files.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_folder(
    path: Path,
    rows: Sequence[R],
    tables_of: Callable[[Sequence[R]], Iterator[pa.Table]],
    kind: pa.Schema,
    columns: Sequence[str],
) -> int:
    """Write a Parquet file for each combination of the columns' values, hive style: model=a/attack=pgd/part-0.parquet.

    rows: what is written, each row wholly in one file; tables_of: their tables. The columns are in the names of the
    folders, as hive has it, and not in the files.
    """
    parts: dict[tuple[Any, ...], list[R]] = {}
    for row in rows:
        parts.setdefault(tuple(row[column] for column in columns), []).append(row)
    kept = [field.name for field in kind if field.name not in columns]
    inner = pa.schema([kind.field(name) for name in kept], metadata=kind.metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    total = 0
    try:
        temporary.mkdir()
        for values, mine in parts.items():
            folder = temporary.joinpath(*map(segment, columns, values))
            folder.mkdir(parents=True)
            tables = (table.select(kept) for table in tables_of(mine))
            total += write_tables(folder / "part-0.parquet", ".parquet", tables, inner)
            durable_files.sync(folder / "part-0.parquet")
        durable_files.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return total


def segment(column: str, value: Any) -> str:
    """A value as the name of a folder, with what file systems and URLs set apart escaped as in URLs."""
    return f"{column}={NULL_FOLDER if value is None else quote(str(value), safe=' ')}"


def write_tables(path: Path, suffix: str, tables: Iterable[pa.Table], kind: pa.Schema) -> int:
    total = 0
    with open_writer(path, suffix, kind) as writer:
        for table in tables:
            writer.write_table(plain_strings(table) if suffix == ".csv" else table)
            total += len(table)
    return total


def open_writer(path: Path, suffix: str, kind: pa.Schema) -> Any:
    match suffix:
        case ".arrow":
            options = pa.ipc.IpcWriteOptions(compression="zstd", emit_dictionary_deltas=True)
            return pa.ipc.new_file(str(path), kind, options=options)
        case ".parquet":
            texts = [field.name for field in kind if pa.types.is_dictionary(field.type)]
            options: Any = {"use_dictionary": texts}  # pyarrow's annotations know no list of columns
            return pq.ParquetWriter(str(path), kind, compression="zstd", **options)
    return csv.CSVWriter(str(path), plain_strings(kind.empty_table()).schema)


def plain_strings(table: pa.Table) -> pa.Table:
    """Dictionaries as plain strings, for CSV."""
    return table.cast(pa.schema([field.with_type(plain_type(field.type)) for field in table.schema]))


def plain_type(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_dictionary(kind) else kind
