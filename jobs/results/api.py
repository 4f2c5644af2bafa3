"""The Python call for results: `results()`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


Asked = str | float | Sequence[str | float] | None  # what a column is asked for: a value, or several


def results(
    store: str = "sqlite:///.robustq/results.db",
    *,
    sweep: str | None = None,
    model: Asked = None,
    attack: Asked = None,
    eps: Asked = None,
    norm: Asked = None,
    arch: Asked = None,
    defence: Asked = None,
    dataset: Asked = None,
    seed: Asked = None,
    where: str | Sequence[str] = (),
    group: str | Sequence[str] | None = None,
    over_seeds: bool = False,
    pivot: bool = False,
    sort: str | Sequence[str] | None = None,
    best: str | None = None,
    compare: Sequence[str | int] | None = None,
) -> "pa.Table":
    """The rows that `robustq results` prints, as an Arrow table: fractions, with the columns of docs/schema.md.

    store: URL, or path of an SQLite file; it is opened for reading.  model to seed: a value or several of which one
    must fit, texts also by pattern.  where: conditions such as "robust_accuracy<0.5".  group to compare: as the options
    of these names.  Raises SpecError and StoreError.
    """
    given = dict(locals())  # the arguments by name
    from robustq.jobs.results.columns import FILTER_COLUMNS
    from robustq.jobs.results.export import rows_table
    from robustq.jobs.results.filters import make_filters
    from robustq.jobs.results.questions import answer, columns_of, make_question
    from robustq.jobs.store.connection import open_store

    named = {name: given[name] for name in FILTER_COLUMNS}
    shape = {"group": group, "over_seeds": over_seeds, "pivot": pivot, "sort": sort, "best": best, "compare": compare}
    asked = make_question(make_filters(sweep, named, where), **shape)
    opened = open_store(store)
    try:
        with opened.begin() as db:
            rows = answer(db, asked)
            return rows_table(rows, columns_of(rows, asked))
    finally:
        opened.engine.dispose()
