"""The Python call for explanations: `explanations()`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustq.jobs.results.api import Asked

if TYPE_CHECKING:
    import pyarrow as pa


def explanations(
    store: str = "sqlite:///.robustq/results.db",
    *,
    sweep: str | None = None,
    model: Asked = None,
    method: Asked = None,
    against: Asked = None,
    norm: Asked = None,
    eps: Asked = None,
    dataset: Asked = None,
    seed: Asked = None,
    where: str | Sequence[str] = (),
    per_example: bool = False,
    compare: Sequence[str] | None = None,
) -> "pa.Table":
    """The rows that `robustq results --explanations` prints, as an Arrow table with the columns of docs/schema.md.

    store: URL, or path of an SQLite file; it is opened for reading.  model to seed: a value or several of which one
    must fit, texts also by pattern.  where: conditions such as "top_intersection<0.5".  per_example: a row an image and
    thing done to it.  compare: two models, or two things done to images.  Raises SpecError and StoreError.
    """
    named = {"model": model, "method": method, "against": against, "norm": norm, "eps": eps}
    named |= {"dataset": dataset, "seed": seed}
    from robustq.jobs.errors import SpecError
    from robustq.jobs.results.explanations import export
    from robustq.jobs.results.explanations.columns import EXPLANATION_COLUMNS
    from robustq.jobs.results.explanations.compare import compare as compared
    from robustq.jobs.results.export import rows_table
    from robustq.jobs.results.filters import make_filters
    from robustq.jobs.store.connection import open_store

    if compare is not None and (per_example or len(compare) != 2):
        raise SpecError(f"expected two names to compare, and not per_example besides, got {compare!r}")
    filters = make_filters(sweep, named, where, EXPLANATION_COLUMNS)
    opened = open_store(store)
    try:
        with opened.begin() as db:
            if compare is None:
                return export.table_of(db, filters, per_example=per_example)
            rows = compared(db, filters, compare)
            return rows_table(rows, list(rows[0]))
    finally:
        opened.engine.dispose()
