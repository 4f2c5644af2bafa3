"""Tables out: Arrow IPC, Parquet and CSV, summary and per example, by the schema that docs/schema.md describes."""

import json
import os
import uuid
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv
from sqlalchemy import Connection

from jobs import examples
from jobs.errors import SpecError
from jobs.query import RESULT_COLUMNS, examples_of, results
from robustlib import KERNEL_VERSION
from robustlib.settings import STAGES

NAME = pa.dictionary(pa.int32(), pa.string())

# type, unit or meaning; the documentation is tested against this table.
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "sweep": (NAME, "name of the study"),
    "model": (NAME, "the model's name in the study"),
    "arch": (NAME, "architecture, or FILE.py:factory"),
    "defence": (NAME, "training objective; null for given weights"),
    "dataset": (NAME, "data set as the study names it"),
    "attack": (NAME, "attack; worst-case is the worst over the model's attacks within eps"),
    "norm": (NAME, "Linf, L2 or L1; null for clean"),
    "eps": (pa.float64(), "radius, images in [0, 1]; null for none"),
    "seed": (pa.int64(), "of training and attack"),
    "recipe": (NAME, "the attack with all its parameters"),
    "n": (pa.int64(), "examples"),
    "clean_accuracy": (pa.float64(), "fraction"),
    "clean_accuracy_low": (pa.float64(), "fraction, Wilson 95 %"),
    "clean_accuracy_high": (pa.float64(), "fraction, Wilson 95 %"),
    "robust_accuracy": (pa.float64(), "fraction"),
    "robust_accuracy_low": (pa.float64(), "fraction, Wilson 95 %"),
    "robust_accuracy_high": (pa.float64(), "fraction, Wilson 95 %"),
    "any_draw_accuracy": (pa.float64(), "fraction right in every draw; equals robust_accuracy for fixed models"),
    "distance_median": (pa.float64(), "in norm, over misclassified images that an attack found"),
    "distance_mean": (pa.float64(), "in norm, over misclassified images that an attack found"),
    "seconds": (pa.float64(), "seconds of wall clock"),
    "device": (NAME, "what it ran on"),
    "versions": (NAME, "JSON: python, torch, numpy, kernel"),
    "recorded_at": (pa.timestamp("ms", tz="UTC"), "when the result was stored"),
    "key": (pa.string(), "content key of the job, SHA-256"),
    "job_id": (pa.int64(), "number of the job in its store"),
}
IDENTITY = ("job_id", "model", "attack", "norm", "eps", "seed")


def schema() -> pa.Schema:
    """Schema of the summary table, with versions in its metadata."""
    return pa.schema([pa.field(name, kind) for name, (kind, _) in COLUMNS.items()], metadata=metadata())


def metadata() -> dict[str, str]:
    return {"robustq": version("robustq"), "kernel": KERNEL_VERSION, "schema": "1"}


def summary_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Result rows as an Arrow table."""
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in RESULT_COLUMNS}
    columns["versions"] = [json.dumps(value, sort_keys=True) for value in columns["versions"]]
    columns["recorded_at"] = [round(value * 1000) for value in columns["recorded_at"]]
    return pa.Table.from_arrays([convert(columns[f.name], f.type) for f in schema()], schema=schema())


def convert(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(values, pa.string()).dictionary_encode().cast(kind)
    return pa.array(values, pa.int64()).cast(kind) if pa.types.is_timestamp(kind) else pa.array(values, kind)


def example_schema() -> pa.Schema:
    """Schema of the per-example table: which evaluation, then what happened to the example."""
    identity = [pa.field(name, COLUMNS[name][0]) for name in IDENTITY]
    outcome = [field.with_type(NAME) if field.name == "broken_by" else field for field in examples.SCHEMA]
    return pa.schema([*identity, *outcome], metadata=metadata())


def example_tables(db: Connection, rows: list[dict[str, Any]]) -> Iterator[pa.Table]:
    """Per-example outcomes, an evaluation at a time, with the same dictionaries: an IPC file allows one a column."""
    wanted = example_schema()
    words = {name: pa.array(sorted({row[name] for row in rows if row[name]}), pa.string()) for name in IDENTITY[1:4]}
    words["broken_by"] = pa.array(sorted({"clean", *STAGES, *words["attack"].to_pylist()}), pa.string())
    for row in rows:
        outcome = examples_of(db, row["job_id"])
        arrays: list[pa.Array] = []
        for field in wanted:
            if field.name in IDENTITY:
                column = pa.repeat(pa.scalar(row[field.name], plain_type(field.type)), len(outcome))
            else:
                column = outcome.column(field.name).combine_chunks().cast(plain_type(field.type))
            if pa.types.is_dictionary(field.type):
                indices = pc.index_in(column, value_set=words[field.name])  # pyright: ignore[reportAttributeAccessIssue]
                column = pa.DictionaryArray.from_arrays(indices, words[field.name])
            arrays.append(column)
        yield pa.Table.from_arrays(arrays, schema=wanted)


def export(db: Connection, path: Path, *, sweep_id: int | None = None, per_example: bool = False) -> int:
    """Write the results to .arrow, .parquet or .csv; returns the number of rows. The file is whole or not there."""
    rows = results(db, sweep_id)
    tables = example_tables(db, rows) if per_example else iter([summary_table(rows)])
    return write(path, tables, example_schema() if per_example else schema())


def write(path: Path, tables: Iterator[pa.Table], kind: pa.Schema) -> int:
    """Write tables one after the other into one file, by its ending."""
    if path.suffix not in (".arrow", ".parquet", ".csv"):
        raise SpecError(f"expected a file ending in .arrow, .parquet or .csv, got {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    total = 0
    try:
        with open_writer(temporary, path.suffix, kind) as writer:
            for table in tables:
                writer.write_table(plain(table) if path.suffix == ".csv" else table)
                total += len(table)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return total


def open_writer(path: Path, suffix: str, kind: pa.Schema) -> Any:
    match suffix:
        case ".arrow":
            return pa.ipc.new_file(str(path), kind, options=pa.ipc.IpcWriteOptions(compression="zstd"))
        case ".parquet":
            return pq.ParquetWriter(str(path), kind, compression="zstd")
    return csv.CSVWriter(str(path), plain(kind.empty_table()).schema)


def plain(table: pa.Table) -> pa.Table:
    """Dictionaries as plain strings, for CSV."""
    return table.cast(pa.schema([field.with_type(plain_type(field.type)) for field in table.schema]))


def plain_type(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_dictionary(kind) else kind
