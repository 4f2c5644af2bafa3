"""Outcomes of single images, read from the store once: confusions, classes, which attack broke which image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from sqlalchemy import Connection, select

from robustlib.metrics import confusion_matrix
from robustq.jobs.errors import SpecError
from robustq.jobs.store import example_outcomes
from robustq.jobs.store.bulk_insert import chunks
from robustq.jobs.store.example_outcomes import examples_of
from robustq.jobs.store.schema import example_blob

FIRST_IMAGES = 10  # images of which label and predictions are kept at hand


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


def read_outcomes(db: Connection, job_id: int) -> dict[str, np.ndarray] | None:
    """The columns of an evaluation's outcomes; None where the store lost them, which the page then says."""
    try:
        return example_outcomes.to_columns(examples_of(db, job_id))
    except SpecError:
        return None


def outcome_of(columns: dict[str, np.ndarray], classes: int) -> Outcome:
    """The columns of an evaluation of a data set with so many classes, in numbers."""
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
        index=columns["index"][:FIRST_IMAGES].tolist(),
        first=tuple(zip(*(columns[name][:FIRST_IMAGES].tolist() for name in names), strict=True)),
    )


def matrix(label: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray | None:
    fits = len(label) and max(label.max(), prediction.max()) < classes
    return confusion_matrix(label, prediction.astype(np.int64), classes) if fits else None


def query_totals(db: Connection, job_ids: Sequence[int]) -> dict[int, int | None]:
    """By evaluation the images that attacks without gradients showed the model in all; None where none were counted,
    or the store lost them.
    """
    totals: dict[int, int | None] = dict.fromkeys(job_ids)
    for ids in chunks(job_ids):
        found = db.execute(select(example_blob.c.job_id, example_blob.c.data).where(example_blob.c.job_id.in_(ids)))
        totals |= {id_: total_queries(data) for id_, data in found}
    return totals


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
