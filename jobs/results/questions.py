"""Questions to the results: means over seeds, models beside attacks, the best, two models compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from sqlalchemy import Connection

from robustlib.number_text import counted
from robustq.jobs.errors import SpecError
from robustq.jobs.results.aggregate import CELLS, LINES, MEANS, MEASURES, OVER_SEEDS, best, means_by, pivot, sort
from robustq.jobs.results.attack_labels import (
    ATTACK_IDENTITY,
    WORST_CASE,
    Read,
    attack_labels,
    stored_settings,
    told_apart,
)
from robustq.jobs.results.columns import RESULT_COLUMNS, ResultRow
from robustq.jobs.results.filters import Filters, check_columns, is_number
from robustq.jobs.results.hints import of_earlier_versions, unfitting
from robustq.jobs.results.lone_worst_cases import with_lone
from robustq.jobs.results.rows import chosen_rows
from robustq.jobs.text.grid_names import is_setting, with_settings
from robustq.jobs.text.tables import Row


@dataclass(frozen=True)
class Question:
    """What is asked of the rows that the filters leave.

    group: columns to agree in, over whose rows means are taken.  pivot: a line a model, a column an attack.
    spread: of a pivot, its cells' standard deviations over seeds too.
    sort: columns, the first counts most; -COLUMN descends.  best: a column, of which only the best row of each contest
    is kept.  compare: two models, or two numbers of jobs.
    """

    filters: Filters = field(default_factory=Filters)
    group: tuple[str, ...] = ()
    pivot: bool = False
    spread: bool = False
    sort: tuple[str, ...] = ()
    best: str | None = None
    compare: tuple[str, ...] | None = None

    @property
    def plain(self) -> bool:
        """Whether the answer's rows are rows of the store."""
        return not self.group and not self.pivot and self.compare is None


def make_question(
    filters: Filters,
    *,
    group: str | Sequence[str] | None = None,
    over_seeds: bool = False,
    pivot: bool = False,
    sort: str | Sequence[str] | None = None,
    best: str | None = None,
    compare: Sequence[str | int] | None = None,
) -> Question:
    """A question from options. group, sort: columns, also as one text with commas. Raises SpecError for what it cannot
    mean.
    """
    columns = column_names(group)
    if over_seeds:
        if columns:
            raise SpecError("expected --group or --over-seeds, got both")
        columns = () if pivot else OVER_SEEDS
    pair = tuple(str(word) for word in compare) if compare else None
    if pair is not None and len(pair) != 2:
        raise SpecError(f"--compare: expected two models or two numbers of jobs, got {len(pair)}")
    question = Question(filters, columns, pivot, pivot and over_seeds, column_names(sort), best, pair)
    check_question(question)
    return question


def column_names(given: str | Sequence[str] | None) -> tuple[str, ...]:
    words = given.split(",") if isinstance(given, str) else given or ()
    return tuple(dict.fromkeys(word.strip() for word in words))


def answer(db: Connection, question: Question, tell: Callable[[str], None] = lambda text: None) -> list[Row]:
    """The rows that answer the question. tell: is given what a reader ought to know besides, a line each.

    Raises SpecError for columns that there are not, and where there is nothing to compare.
    """
    read: list[ResultRow] = []  # of the store, each with the number of its job
    settings = partial(stored_settings, db)
    if question.compare is not None:
        from robustq.jobs.results.compare import compare

        rows = compare(db, question.filters, question.compare)
    elif question.pivot:
        read = whole_rows(db, question.filters, (*LINES, *CELLS), tell)
        named = with_labels(read, settings)
        rows = pivot(means_by(named, (*LINES, *CELLS), tell), tell, spread=question.spread)
    elif question.group:
        read = whole_rows(db, question.filters, question.group, tell)
        rows = means_by(read, question.group, tell)
    else:
        rows = read = with_lone(db, question.filters, chosen_rows(db, question.filters), RESULT_COLUMNS)
    if not rows:
        for line in unfitting(db, question.filters):
            tell(line)
    if question.best is not None:
        known = set(ATTACK_IDENTITY) <= set(question.group or RESULT_COLUMNS)
        rows = best(rows, question.best, tell, attack_labels(read, settings) if known else {})
    return sort(rows, question.sort)


def with_labels(rows: Sequence[ResultRow], settings: Read) -> list[ResultRow]:
    """The rows with the names that tell their attacks apart."""
    return [{**row, "attack": name} for row, name in zip(rows, told_apart(rows, settings), strict=True)]


def columns_of(rows: Sequence[Row], question: Question) -> list[str]:
    """The columns of an answer, also of an empty one."""
    if question.plain:
        return list(RESULT_COLUMNS)
    return list(dict.fromkeys((*question.group, *MEASURES))) if question.group else list(rows[0]) if rows else []


def check_question(question: Question) -> None:
    given = [bool(question.group), question.pivot, question.compare is not None]
    if sum(given) > 1:
        raise SpecError("expected one of --group (or --over-seeds), --pivot and --compare, got several")
    if question.best is not None and (question.pivot or question.compare is not None):
        raise SpecError("--best chooses among rows or groups: leave out --pivot and --compare")
    check_columns(name for name in question.group if not is_setting(name))
    known = (*question.group, *MEASURES) if question.group else RESULT_COLUMNS
    if question.best is not None:
        check_columns([question.best], known)
        if question.best not in MEASURES and not is_number(question.best):
            raise SpecError(f"--best: expected a column of numbers such as robust_accuracy, got {question.best!r}")
    if question.plain or question.group:
        check_columns((name.removeprefix("-") for name in question.sort), known)


def whole_rows(db: Connection, filters: Filters, group: Sequence[str], tell: Callable[[str], None]) -> list[ResultRow]:
    """The rows that groups are made of: each study whole, though others share its jobs, and in its last version.

    Where groups do not tell studies apart, a job counts once.
    """
    asked = ("model" if is_setting(name) else name for name in group)
    columns = tuple(dict.fromkeys((*asked, "recipe", "seed", *MEANS, "n", "verdict", "why", "job_id")))
    rows = with_lone(db, filters, chosen_rows(db, filters, columns, whole=True), columns, whole=True)
    if any(map(is_setting, group)):
        rows = cast("list[ResultRow]", with_settings(rows, [name for name in group if is_setting(name)]))
    if "sweep" not in group:
        rows = list({(row["job_id"], row.get("attack") == WORST_CASE): row for row in rows}.values())
    if left := of_earlier_versions(db, filters) if filters.sweep is None else 0:
        are = counted(left, "result of earlier versions of a study is", "results of earlier versions of a study are")
        tell(f"{are} left out")
    return rows
