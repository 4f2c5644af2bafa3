"""Hints beside an answer: what was left out, and names that no result has."""

import sqlalchemy as sa
from sqlalchemy import Connection, select

from robustlib.names import did_you_mean
from robustq.jobs.results.conditions_sql import conditions, view
from robustq.jobs.results.filters import TEXT_COLUMNS, Filters
from robustq.jobs.results.rows import chosen_rows
from robustq.jobs.store.schema import sweep, sweep_job
from robustq.jobs.store.sweeps import latest_sweeps


def unfitting(db: Connection, filters: Filters) -> list[str]:
    """For each group of conditions that no result fits even by itself, what its column has instead, in words."""
    found = []
    for group in filters.groups:
        column = group[0].column
        if column not in TEXT_COLUMNS or any(condition.operator != "=" for condition in group):
            continue
        if not chosen_rows(db, Filters(filters.sweep, (group,)), (column,)):
            there = {row[column] for row in chosen_rows(db, Filters(filters.sweep), (column,))}
            values = ", ".join(sorted(value for value in there if value is not None)) or "none"
            meant = did_you_mean(group[0].value, filter(None, there)) if len(group) == 1 else ""
            found.append(
                f"no result has {column} {' or '.join(one.value for one in group)}, there are: {values}{meant}"
            )
    return found


def of_earlier_versions(db: Connection, filters: Filters) -> int:
    """How many results fit but for belonging to no study's last version: `whole` leaves them out."""
    last = list(latest_sweeps(db).values())
    if len(last) == db.execute(select(sa.func.count()).select_from(sweep)).scalar_one():
        return 0
    rows = view()
    query = select(sa.func.count()).select_from(rows).where(*conditions(db, filters, rows))
    newer = select(sweep_job.c.job_id).where((sweep_job.c.job_id == rows.c.job_id) & sweep_job.c.sweep_id.in_(last))
    return db.execute(query.where(~newer.exists())).scalar_one()
