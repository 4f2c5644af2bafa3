"""Per-example outcomes of many evaluations, read in pieces of bounded size."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from sqlalchemy import Connection, select

from robustlib.settings import STAGES
from robustq.jobs.results.columns import ResultRow
from robustq.jobs.store import example_outcomes
from robustq.jobs.store.bulk_insert import chunks
from robustq.jobs.store.schema import example_blob

NAME = pa.dictionary(pa.int32(), pa.string())
# Rows of a piece, and so of a row group: DuckDB hands out row groups to its threads, and its own have about as many.
PIECE = 131_072


class Vocabulary:
    """The words of a dictionary column, in the order in which they came. Words are only added: an IPC file may extend a
    dictionary but not replace it.
    """

    def __init__(self, words: Sequence[str]):
        self.places: dict[str | None, int] = {word: i for i, word in enumerate(words)} | {None: -1}

    def indices(self, words: Sequence[str | None]) -> np.ndarray:
        return np.array([self.places.setdefault(word, len(self.places) - 1) for word in words], np.int32)

    def array(self, indices: np.ndarray) -> pa.DictionaryArray:
        """Indices as a column, -1 as null."""
        words = pa.array([word for word in self.places if word is not None], pa.string())
        return pa.DictionaryArray.from_arrays(pa.array(indices, mask=indices < 0), words)


class EvaluationRow(ResultRow):
    """examples: of how many the store has outcomes."""

    examples: int


def with_outcome_counts(db: Connection, rows: Sequence[ResultRow]) -> list[EvaluationRow]:
    """Those of the rows that the store has per-example outcomes of, with their number as `examples`."""
    numbers: dict[int, int] = {}
    for ids in chunks([row["job_id"] for row in rows]):
        chosen = select(example_blob.c.job_id, example_blob.c.n).where(example_blob.c.job_id.in_(ids))
        numbers |= {id_: n for id_, n in db.execute(chosen)}
    return [{**row, "examples": numbers[row["job_id"]]} for row in rows if row["job_id"] in numbers]


class OutcomeReader:
    """Outcomes of evaluations as tables of one schema, the same dictionaries throughout.

    rows: all evaluations that will be asked for, with their number of `examples`.
    """

    def __init__(self, db: Connection, rows: Sequence[EvaluationRow], kind: pa.Schema):
        self.db = db
        self.kind = kind
        names = [field.name for field in kind if pa.types.is_dictionary(field.type) and field.name != "broken_by"]
        words = {name: sorted({row[name] for row in rows if row[name] is not None}) for name in names}
        words["broken_by"] = sorted({"clean", *STAGES, *words["attack"]})
        self.words = {name: Vocabulary(some) for name, some in words.items()}

    def tables(self, rows: Sequence[EvaluationRow]) -> Iterator[pa.Table]:
        """Tables of about PIECE rows, or one evaluation where that has more; the next is unpacked beside the caller's
        work on this one.
        """
        with ThreadPoolExecutor(1) as pool:
            ahead = None
            for piece in pieces(rows):
                ids = [row["job_id"] for row in piece]
                chosen = select(example_blob.c.job_id, example_blob.c.data).where(example_blob.c.job_id.in_(ids))
                blobs = {id_: data for id_, data in self.db.execute(chosen)}
                following = pool.submit(self.table, piece, [blobs[id_] for id_ in ids])
                if ahead is not None:
                    yield ahead.result()
                ahead = following
            if ahead is not None:
                yield ahead.result()

    def table(self, rows: Sequence[EvaluationRow], blobs: Sequence[bytes]) -> pa.Table:
        """The outcomes of some evaluations, one after the other."""
        found = [example_outcomes.decode(data) for data in blobs]
        outcome = pa.concat_tables(found).unify_dictionaries().combine_chunks()
        counts = np.array([len(table) for table in found])
        return pa.Table.from_arrays(
            [self.column(field, rows, counts, outcome) for field in self.kind], schema=self.kind
        )

    def column(self, field: pa.Field, rows: Sequence[EvaluationRow], counts: np.ndarray, outcome: pa.Table) -> Any:
        if field.name == "broken_by":
            given = outcome.column(field.name).combine_chunks()
            places = np.append(self.words[field.name].indices(given.dictionary.to_pylist()), -1)
            return self.words[field.name].array(places[given.indices.fill_null(-1).to_numpy()].astype(np.int32))
        if field.name in outcome.column_names:
            return outcome.column(field.name)
        values = [row[field.name] for row in rows]
        if pa.types.is_dictionary(field.type):
            return self.words[field.name].array(np.repeat(self.words[field.name].indices(values), counts))
        missing = np.repeat([value is None for value in values], counts)
        numbers = np.repeat(np.array([value or 0 for value in values], field.type.to_pandas_dtype()), counts)
        return pa.array(numbers, field.type, mask=missing)


def pieces(rows: Sequence[EvaluationRow]) -> Iterator[list[EvaluationRow]]:
    """Evaluations that together have PIECE examples, or as many more as the last of them brings."""
    some: list[EvaluationRow] = []
    held = 0
    for row in rows:
        some.append(row)
        held += row["examples"]
        if held >= PIECE:
            yield some
            some, held = [], 0
    if some:
        yield some
