"""The text that `diff` and `replay` print."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustq.jobs.commands import terminal_rows
from robustq.jobs.commands.results_text import rows_text
from robustq.jobs.results.filters import Filters
from robustq.jobs.store.connection import open_store

if TYPE_CHECKING:
    from robustq.jobs.verification.diff import Change
    from robustq.jobs.verification.replay import Replayed


def changes_between(url: str, old: str, new: str, versions: str | None, filters: Filters) -> "list[Change]":
    """What changed between two stores, or with `versions` between the rows of two versions in the store `url`."""
    from robustq.jobs.verification.diff import Side, diff, of_version

    if versions is not None:
        with open_store(url).begin() as db:
            return diff(*(Side(db, of_version(filters, versions, value)) for value in (old, new)))
    with open_store(old).begin() as one, open_store(new).begin() as other:
        return diff(Side(one, filters), Side(other, filters))


def diff_text(rows: "Sequence[Change]", form: str) -> str:
    return rows_text(rows, terminal_rows.shown_changes(rows), form)


def replay_text(rows: "Sequence[Replayed]", form: str) -> str:
    return rows_text(rows, terminal_rows.shown_replays(rows), form)
