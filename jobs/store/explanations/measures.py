"""Per-example measures of explanations as Arrow: the blob of an explanation job, in the place of an evaluation's.

A row is one image and what was done to it; all rows of an image stand together, the clean image's first:

    index  label  explained  against             prediction  top_intersection  ...  deletion  random_weights  gain
    0      7      7          clean               7           null              ...  0.21      0.08            0.43
    0      7      7          noise               7           0.81              ...  0.22      null            null
    0      7      7          pgd                 3           0.50              ...  0.20      null            null
    0      7      7          explanation-attack  7           0.33              ...  0.22      null            null

`robustlib.evaluation.explanation_stability.stability_batches` says what each column is; NaN there is null here.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from sqlalchemy import Connection, select

from robustlib.settings import EXPLANATION_MEASURES, EXPLANATION_SANITY
from robustq.jobs.errors import SpecError
from robustq.jobs.store import example_outcomes
from robustq.jobs.store.example_outcomes import LOST
from robustq.jobs.store.schema import example_blob

WORDS = pa.dictionary(pa.int8(), pa.string())
SCHEMA = pa.schema(
    [
        pa.field("index", pa.int32(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("explained", pa.int32(), nullable=False),
        pa.field("against", WORDS, nullable=False),
        pa.field("prediction", pa.int32(), nullable=False),
        *(pa.field(name, pa.float64()) for name in (*EXPLANATION_MEASURES, *EXPLANATION_SANITY)),
    ]
)


def to_table(columns: dict[str, np.ndarray]) -> pa.Table:
    """Arrays by column as a table; NaN becomes null."""
    arrays: list[Any] = []
    for field in SCHEMA:
        values = columns[field.name]
        if field.name == "against":
            arrays.append(pa.array(values.tolist(), pa.string()).dictionary_encode().cast(WORDS))
        else:
            arrays.append(pa.array(values, field.type, from_pandas=True))
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def to_columns(table: pa.Table) -> dict[str, np.ndarray]:
    """The reverse of `to_table`."""
    columns: dict[str, np.ndarray] = {}
    for field in SCHEMA:
        column = table.column(field.name)
        if field.name == "against":
            columns[field.name] = np.array(column.cast(pa.string()).to_pylist())
        elif field.type == pa.float64():
            columns[field.name] = column.fill_null(float("nan")).to_numpy()
        else:
            columns[field.name] = column.to_numpy()
    return columns


def encode(columns: dict[str, np.ndarray]) -> bytes:
    """Arrow IPC file bytes, compressed with zstd."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(to_table(columns))
    return sink.getvalue().to_pybytes()


def decode(data: bytes) -> pa.Table:
    """The table of `encode`."""
    return pa.ipc.open_file(pa.BufferReader(data)).read_all()


def measures_of(db: Connection, job_id: int) -> dict[str, np.ndarray]:
    """The per-example measures of a finished explanation job. Raises SpecError where the store lost them."""
    data = db.execute(select(example_blob.c.data).where(example_blob.c.job_id == job_id)).scalar()
    if data is None:
        raise SpecError(LOST.format(job_id, "missing"))
    try:
        return to_columns(decode(data))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise SpecError(LOST.format(job_id, "damaged")) from error


def columns_of(db: Connection, job_id: int) -> dict[str, np.ndarray]:
    """What a finished evaluation or explanation job stored of single images. Raises SpecError where that was lost."""
    table = table_of(db, job_id)
    return to_columns(table) if "explained" in table.column_names else example_outcomes.to_columns(table)


def table_of(db: Connection, job_id: int) -> pa.Table:
    """The same as a table."""
    data = db.execute(select(example_blob.c.data).where(example_blob.c.job_id == job_id)).scalar()
    if data is not None and is_of_explanation(data):
        return to_table(measures_of(db, job_id))
    return example_outcomes.examples_of(db, job_id)


def is_of_explanation(data: bytes) -> bool:
    """Whether these bytes hold measures of explanations, and not outcomes of an evaluation."""
    try:
        return "explained" in pa.ipc.open_file(pa.BufferReader(data)).schema.names
    except (pa.ArrowException, OSError):
        return False
