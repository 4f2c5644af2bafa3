"""Per-example outcomes as Arrow: the blob that travels with a result and the table that is exported."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from sqlalchemy import Connection, select

from robustq.jobs.errors import SpecError
from robustq.jobs.store.schema import example_blob

SCHEMA = pa.schema(
    [
        pa.field("index", pa.int32(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("clean_prediction", pa.int32(), nullable=False),
        pa.field("adversarial_prediction", pa.int32(), nullable=False),
        pa.field("success", pa.bool_(), nullable=False),
        pa.field("distance", pa.float32()),
        pa.field("broken_by", pa.dictionary(pa.int8(), pa.string())),
        pa.field("clean_correct", pa.float32(), nullable=False),
        pa.field("adversarial_correct", pa.float32(), nullable=False),
        pa.field("adversarial_survived", pa.bool_(), nullable=False),
        pa.field("queries", pa.int32()),
        pa.field("radius_queries", pa.int32()),
    ]
)
# Columns that outcomes stored by earlier versions may lack; -1 there is none.
COUNTED = ("queries", "radius_queries")


def to_table(columns: dict[str, np.ndarray]) -> pa.Table:
    """Arrays by column as a table; a NaN distance, an empty broken_by and queries of -1 become nulls, as do those that
    were not counted.
    """
    arrays: list[Any] = []
    for field in SCHEMA:
        if field.name in COUNTED and field.name not in columns:
            arrays.append(pa.nulls(len(columns["index"]), field.type))
            continue
        values = columns[field.name]
        if field.name == "broken_by":
            texts = pa.array([text or None for text in values.tolist()], pa.string())
            arrays.append(texts.dictionary_encode().cast(field.type))
        elif field.name in COUNTED:
            arrays.append(pa.array(values, field.type, mask=values < 0))
        else:
            arrays.append(pa.array(values, field.type, from_pandas=True))
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def to_columns(table: pa.Table) -> dict[str, np.ndarray]:
    """The reverse of `to_table`."""
    columns: dict[str, np.ndarray] = {}
    for field in SCHEMA:
        column = table.column(field.name)
        if field.name == "broken_by":
            columns[field.name] = np.array([text or "" for text in column.cast(pa.string()).to_pylist()])
        elif field.name in COUNTED:
            columns[field.name] = column.fill_null(-1).to_numpy()
        else:
            columns[field.name] = column.to_numpy()
    return columns


def encode(table: pa.Table) -> bytes:
    """Arrow IPC file bytes, compressed with zstd."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def decode(data: bytes) -> pa.Table:
    """The reverse of `encode`. Outcomes that were stored before queries were counted get columns of nulls."""
    table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
    for name in COUNTED:
        if name not in table.column_names:
            table = table.append_column(SCHEMA.field(name), pa.nulls(len(table), pa.int32()))
    return table


def numbers_of(db: Connection, job_id: int, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Some of the columns of numbers that are never null, of a finished evaluation: the others are not unpacked.

    Raises SpecError where the store lost them.
    """
    places = sorted(SCHEMA.get_field_index(name) for name in names)
    options = pa.ipc.IpcReadOptions(included_fields=places, use_threads=False)
    data = db.execute(select(example_blob.c.data).where(example_blob.c.job_id == job_id)).scalar()
    if data is None:
        raise SpecError(LOST.format(job_id, "missing"))
    try:
        table = pa.ipc.open_file(pa.BufferReader(data), options=options).read_all()
        return {name: table.column(name).to_numpy() for name in names}
    except (pa.ArrowException, OSError, KeyError) as error:
        raise SpecError(LOST.format(job_id, "damaged")) from error


def examples_of(db: Connection, job_id: int) -> Any:
    """Per-example outcomes of a finished evaluation, as a pyarrow Table. Raises SpecError where the store lost them."""
    data = db.execute(select(example_blob.c.data).where(example_blob.c.job_id == job_id)).scalar()
    try:
        if data is not None:
            return decode(data)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise SpecError(LOST.format(job_id, "damaged")) from error
    raise SpecError(LOST.format(job_id, "missing"))


LOST = "the outcomes of the single images of job {0} are {1} in the store: robustq retry {0} evaluates it again"
