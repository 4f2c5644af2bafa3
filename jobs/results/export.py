"""Tables for export: Arrow IPC, Parquet and CSV, summary and per example, by the schema in docs/schema.md."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from sqlalchemy import Connection

from robustlib import KERNEL_VERSION, VERSION
from robustlib.number_text import counted
from robustq.jobs.results.columns import RESULT_COLUMNS, ResultRow
from robustq.jobs.results.export_examples import NAME, OutcomeReader, with_outcome_counts
from robustq.jobs.results.export_files import check_ending, check_folder, write_rows, write_text
from robustq.jobs.results.filters import Filters, check_columns
from robustq.jobs.results.lone_worst_cases import with_lone
from robustq.jobs.results.rows import chosen_rows
from robustq.jobs.store import example_outcomes
from robustq.jobs.text.tables import Row, csv_text

ALL = Filters()

# type, unit or meaning; the documentation is tested against this table.
COLUMN_TYPES: dict[str, tuple[pa.DataType, str]] = {
    "sweep": (NAME, "name of the study"),
    "model": (NAME, "the model's name in the study"),
    "arch": (NAME, "architecture, FILE.py:factory, or the name of an ONNX file or a package"),
    "defence": (NAME, "training objective, then the defences around the network; null for given weights without"),
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
    "verdict": (NAME, "the worst of its checks: pass, warn, fail; null where nothing was checked"),
    "why": (NAME, "what its checks found that warns or fails; null where nothing does"),
    "distance_median": (pa.float64(), "in norm, over misclassified images that an attack found"),
    "distance_median_low": (pa.float64(), "95 % interval of the median by order statistics; null below six distances"),
    "distance_median_high": (pa.float64(), "95 % interval of the median by order statistics; null below six distances"),
    "distance_mean": (pa.float64(), "in norm, over misclassified images that an attack found"),
    "queries": (pa.int64(), "of attacks without gradients, all examples, from the largest radius of a search down"),
    "queries_most": (pa.int64(), "of them the most that one example used at this radius"),
    "seconds": (pa.float64(), "seconds of wall clock"),
    "device": (NAME, "what it ran on"),
    "versions": (NAME, "JSON: python, torch, numpy, kernel, robustq"),
    "recorded_at": (pa.timestamp("ms", tz="UTC"), "when the result was stored"),
    "key": (pa.string(), "content key of the job, SHA-256"),
    "job_id": (pa.int64(), "number of the job in its store"),
}
EXAMPLE_IDENTITY = ("job_id", "model", "attack", "norm", "eps", "seed")
# What folders may be laid out by, and are where nothing else is asked for.
PARTITIONS = ("sweep", "model", "arch", "defence", "dataset", "attack", "norm", "eps", "seed")
FOLDER = ("model", "attack")
COUNTS = ("seeds", "rows", "only_first", "only_second", "first_job_id", "second_job_id")


def schema() -> pa.Schema:
    """Schema of the summary table, with versions in its metadata."""
    return pa.schema([pa.field(name, kind) for name, (kind, _) in COLUMN_TYPES.items()], metadata=table_metadata())


def table_metadata() -> dict[str, str]:
    return {"robustq": VERSION, "kernel": KERNEL_VERSION, "schema": "1"}


def summary_table(rows: Sequence[ResultRow]) -> pa.Table:
    """Result rows as an Arrow table."""
    return pa.Table.from_arrays([convert([row[f.name] for row in rows], f.type) for f in schema()], schema=schema())


def convert(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Values as they come from the store: objects become JSON, seconds since 1970 milliseconds."""
    if pa.types.is_dictionary(kind):
        texts = [json.dumps(v, sort_keys=True) if isinstance(v, dict) else v for v in values]
        return pa.array(texts, pa.string()).dictionary_encode().cast(kind)
    if pa.types.is_timestamp(kind):
        return pa.array([None if v is None else round(v * 1000) for v in values], pa.int64()).cast(kind)
    return pa.array(values, kind)


def example_schema() -> pa.Schema:
    """Schema of the per-example table: which evaluation, then what happened to the example."""
    identity = [pa.field(name, COLUMN_TYPES[name][0]) for name in EXAMPLE_IDENTITY]
    outcome = [field.with_type(NAME) if field.name == "broken_by" else field for field in example_outcomes.SCHEMA]
    return pa.schema([*identity, *outcome], metadata=table_metadata())


def rows_table(rows: Sequence[Row], names: Sequence[str]) -> pa.Table:
    """An answer's rows as an Arrow table: columns of results with their types, others as numbers or text."""
    arrays, fields = [], []
    for name in names:
        values = [row[name] for row in rows]
        if name in COLUMN_TYPES:
            kind = COLUMN_TYPES[name][0]
        elif any(isinstance(value, str) for value in values):
            kind = pa.string()
        else:
            kind = pa.int64() if name in COUNTS else pa.float64()
        arrays.append(convert(values, kind))
        fields.append(pa.field(name, kind))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=table_metadata()))


def export(
    db: Connection,
    path: Path,
    *,
    filters: Filters = ALL,
    per_example: bool = False,
    partition: Sequence[str] = (),
    spreadsheet: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> int:
    """Write the results to .arrow, .parquet or .csv; returns the number of rows. The file is whole or not there.

    partition: columns by whose values a folder of Parquet files is laid out, hive style; also where `path` has no
    ending, then by model and attack. spreadsheet: see `csv_text`. tell: is given what a reader ought to know besides.
    """
    columns = tuple(partition) or (FOLDER if not path.suffix else ())
    if columns:
        check_columns(columns, PARTITIONS)
        check_folder(path)
    else:
        check_ending(path)
    kind = example_schema() if per_example else schema()
    wanted = tuple(dict.fromkeys((*EXAMPLE_IDENTITY, *columns))) if per_example else RESULT_COLUMNS
    rows = chosen_rows(db, filters, wanted)
    rows = rows if per_example else with_lone(db, filters, rows, wanted)
    if per_example:
        with_outcomes = with_outcome_counts(db, rows)
        if missing := len(rows) - len(with_outcomes):
            have = counted(missing, "result has", "results have")
            tell(f"{have} no outcomes of single examples and {'is' if missing == 1 else 'are'} left out")
        return write_rows(path, with_outcomes, OutcomeReader(db, with_outcomes, kind).tables, kind, columns)
    if path.suffix == ".csv":  # the same bytes as `robustq results --format csv`
        write_text(path, csv_text(rows, RESULT_COLUMNS, spreadsheet=spreadsheet) + "\n")
        return len(rows)
    return write_rows(path, rows, summary_tables, kind, columns)


def summary_tables(rows: Sequence[ResultRow]) -> Iterator[pa.Table]:
    yield summary_table(rows)
