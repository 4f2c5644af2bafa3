"""Explanations as files: a row for each thing done to a job's images, or for each image; see docs/schema.md."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from sqlalchemy import Connection

from robustlib.settings import EXPLANATION_MEASURES
from robustq.jobs.results.explanations.columns import EXPLANATION_COLUMNS, ExplanationRow
from robustq.jobs.results.explanations.rows import explanation_rows
from robustq.jobs.results.export import COLUMN_TYPES, convert, table_metadata
from robustq.jobs.results.export_files import check_ending, write_file, write_text
from robustq.jobs.results.filters import Filters
from robustq.jobs.store.explanations import measures
from robustq.jobs.text.tables import csv_text

MEASURE_WORDS = {
    "top_intersection": "share of the top pixels that the map has in common with that of the clean image",
    "near_top_intersection": "the same, pixels nearby counted as common",
    "spearman": "rank correlation with the map of the clean image",
    "ssim": "structural similarity with the map of the clean image",
    "deletion": "area under the explained class's probability as the map's pixels are hidden, the largest first",
    "insertion": "the same as they are brought back",
}
# type, unit or meaning; the documentation is tested against these tables.
OWN: dict[str, tuple[pa.DataType, str]] = {
    "attack": (pa.string(), "explain"),
    "method": (pa.string(), "the explanation"),
    "target": (pa.string(), "the class that is explained: predicted, of each image as it then is, or true"),
    "against": (pa.string(), "clean, noise, explanation-attack, or an attack on the class"),
    "recipe": (pa.string(), "method, attacks and measures with all their parameters"),
    "n": (pa.int64(), "images that were explained"),
    "kept": (pa.int64(), "of them those that still have the explained class"),
    "verdict": (pa.string(), "the worst of its checks: pass, warn, fail"),
}
for name, words in MEASURE_WORDS.items():
    OWN[name] = (pa.float64(), f"{words}; mean over images")
    OWN |= {f"{name}_{end}": (pa.float64(), "95 % interval of that mean, Student") for end in ("low", "high")}
OF_IMAGES: dict[str, tuple[pa.DataType, str]] = {
    "index": (pa.int32(), "place in the split, from 0"),
    "label": (pa.int32(), "true class"),
    "explained": (pa.int32(), "class that is explained on the clean image"),
    "against": OWN["against"],
    "prediction": (pa.int32(), "class that the model as given gives the image then"),
    **{name: (pa.float64(), MEASURE_WORDS[name]) for name in EXPLANATION_MEASURES},
    "random_weights": (
        pa.float64(),
        "rank correlation, with signs, with the map of randomised weights; clean rows",
    ),
    "gain": (pa.float64(), "insertion less deletion; clean rows"),
    "random_gain": (pa.float64(), "the same of a random order of pixels; clean rows"),
}
IDENTITY = ("job_id", "model", "method", "target", "norm", "eps", "seed")


def types_of(names: Sequence[str]) -> dict[str, tuple[pa.DataType, str]]:
    """Types and meanings of columns of rows, texts as plain strings."""
    known = {name: OWN.get(name) or COLUMN_TYPES[name] for name in names}
    return {name: (pa.string() if pa.types.is_dictionary(t) else t, words) for name, (t, words) in known.items()}


ROW_TYPES = types_of(EXPLANATION_COLUMNS)
EXAMPLE_TYPES = types_of(IDENTITY) | OF_IMAGES


def schema_of(types: dict[str, tuple[pa.DataType, str]]) -> pa.Schema:
    return pa.schema([pa.field(name, kind) for name, (kind, _) in types.items()], metadata=table_metadata())


def export(
    db: Connection, path: Path, *, filters: Filters, per_example: bool = False, spreadsheet: bool = False
) -> int:
    """Write explanations to .arrow, .parquet or .csv; returns the number of rows. The file is whole or not there.

    per_example: a row an image and thing done to it.  spreadsheet: see `csv_text`.
    """
    check_ending(path)
    rows = explanation_rows(db, filters)
    if per_example:
        kind = schema_of(EXAMPLE_TYPES)
        return write_file(path, (image_table(db, mine, kind) for mine in jobs_of(rows)), kind)
    if path.suffix == ".csv":  # the same bytes as `robustq results --explanations --format csv`
        write_text(path, csv_text(rows, EXPLANATION_COLUMNS, spreadsheet=spreadsheet) + "\n")
        return len(rows)
    kind = schema_of(ROW_TYPES)
    return write_file(path, [rows_table(rows, kind)], kind)


def table_of(db: Connection, filters: Filters, *, per_example: bool) -> pa.Table:
    """What the filters leave, as one table."""
    rows = explanation_rows(db, filters)
    kind = schema_of(EXAMPLE_TYPES if per_example else ROW_TYPES)
    if not per_example:
        return rows_table(rows, kind)
    return pa.concat_tables([kind.empty_table(), *(image_table(db, mine, kind) for mine in jobs_of(rows))])


def jobs_of(rows: Sequence[ExplanationRow]) -> list[ExplanationRow]:
    """One row a job."""
    return list({row["job_id"]: row for row in rows}.values())


def rows_table(rows: Sequence[Any], kind: pa.Schema) -> pa.Table:
    """Rows of explanations as an Arrow table."""
    return pa.Table.from_arrays([column(rows, field) for field in kind], schema=kind)


def column(rows: Sequence[Any], field: pa.Field) -> Any:
    if field.type == pa.string():
        return convert([row[field.name] for row in rows], pa.dictionary(pa.int32(), pa.string())).cast(pa.string())
    return convert([row[field.name] for row in rows], field.type)


def image_table(db: Connection, row: ExplanationRow, kind: pa.Schema) -> pa.Table:
    """The measures of one job's images, with what tells the job."""
    found = measures.to_table(measures.measures_of(db, row["job_id"]))
    about: Any = row
    arrays = [
        found.column(field.name).cast(field.type)
        if field.name in OF_IMAGES
        else pa.array([about[field.name]] * len(found), field.type)
        for field in kind
    ]
    return pa.Table.from_arrays(arrays, schema=kind)
