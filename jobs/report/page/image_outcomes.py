"""Outcomes of single images, read from the store once: confusions, classes, which attack broke which image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from sqlalchemy import Connection, select

from robustlib.metrics import confusion_matrix
from robustq.jobs.errors import SpecError
from robustq.jobs.store import example_outcomes
from robustq.jobs.store.bulk_insert import chunks
from robustq.jobs.store.example_outcomes import examples_of
from robustq.jobs.store.schema import example_blob

SHOWN = 10  # images of which label and predictions are kept at hand


@dataclass(frozen=True)
class Outcome:
    """An evaluation's images in numbers, by true class where they are arrays.

    clean, attacked: confusion matrices, shape (classes, classes), None where a model names classes that the data lacks.
    counts: images by class.  clean_right, attacked_right: accuracies by class, fractions, NaN without images.
    broken_by: images by the attack that broke them, "clean" for those wrong at first, "" for those that stand.
    index, first: places in the split, and label and predictions, of the first images, clean and attacked.
    """

    clean: np.ndarray | None
    attacked: np.ndarray | None
    counts: np.ndarray
    clean_right: np.ndarray
    attacked_right: np.ndarray
    broken_by: dict[str, int]
    index: list[int]
    first: tuple[tuple[int, int, int], ...]


# What was read already, by job: a stored outcome never changes, so a page that is shown again need not read it again.
Kept = dict[Any, Any]


def outcome(db: Connection, job_id: int, classes: int, kept: Kept) -> Outcome | None:
    """The outcome of an evaluation of a data set with so many classes; None where the store lost it."""
    name = ("outcome", job_id, classes)
    if name not in kept and (columns := read(db, job_id)) is not None:
        kept[name] = summed(columns, classes)
    return kept.get(name)


def read(db: Connection, job_id: int) -> dict[str, np.ndarray] | None:
    """The columns of an evaluation's outcomes; None where the store lost them, which the page then says."""
    try:
        return example_outcomes.to_columns(examples_of(db, job_id))
    except SpecError:
        return None


def summed(columns: dict[str, np.ndarray], classes: int) -> Outcome:
    label = columns["label"].astype(np.int64)
    counts = np.bincount(label, minlength=classes)
    by_class = {
        name: np.bincount(label, weights=columns[name], minlength=classes) / np.where(counts == 0, np.nan, counts)
        for name in ("clean_correct", "adversarial_correct")
    }
    names = ("label", "clean_prediction", "adversarial_prediction")
    breakers, times = np.unique(columns["broken_by"], return_counts=True)
    return Outcome(
        clean=matrix(label, columns["clean_prediction"], classes),
        attacked=matrix(label, columns["adversarial_prediction"], classes),
        counts=counts,
        clean_right=by_class["clean_correct"],
        attacked_right=by_class["adversarial_correct"],
        broken_by={str(name): int(n) for name, n in zip(breakers, times, strict=True)},
        index=columns["index"][:SHOWN].tolist(),
        first=tuple(zip(*(columns[name][:SHOWN].tolist() for name in names), strict=True)),
    )


def matrix(label: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray | None:
    fits = len(label) and max(label.max(), prediction.max()) < classes
    return confusion_matrix(label, prediction.astype(np.int64), classes) if fits else None


def queries(db: Connection, job_ids: Sequence[int], kept: Kept) -> dict[int, int | None]:
    """By evaluation the images that attacks without gradients showed the model in all; None where none were counted,
    or the store lost them.
    """
    for ids in chunks([id_ for id_ in job_ids if ("queries", id_) not in kept]):
        kept |= {("queries", id_): None for id_ in ids}
        found = db.execute(select(example_blob.c.job_id, example_blob.c.data).where(example_blob.c.job_id.in_(ids)))
        kept |= {("queries", id_): total_queries(data) for id_, data in found}
    return {id_: kept["queries", id_] for id_ in job_ids}


def total_queries(data: bytes) -> int | None:
    """Reads nothing but that column: a page asks every outcome for it."""
    place = example_outcomes.SCHEMA.get_field_index("queries")
    options = pa.ipc.IpcReadOptions(included_fields=[place], use_threads=False)
    try:
        file = pa.ipc.open_file(pa.BufferReader(data), options=options)
        columns = [file.get_batch(i).column("queries") for i in range(file.num_record_batches)]
    except (pa.ArrowException, OSError, KeyError):
        return None  # stored before queries were counted, or damaged
    counted = [column for column in columns if column.null_count < len(column)]
    return sum(column.sum().as_py() for column in counted) if counted else None
