"""Questions to the results: grouped over seeds, models beside attacks, the best, two models compared."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from jobs.asides import of_earlier_versions, unfitting
from jobs.errors import SpecError
from jobs.filters import Filters, check_columns, chosen_rows, is_number
from jobs.query import RESULT_COLUMNS
from jobs.recipes import told_apart
from jobs.show import eps_text
from robustlib.checks.limits import FAIL, VERDICTS

Row = dict[str, Any]

# What rows that differ only by their seed agree in.
OVER_SEEDS = ("sweep", "dataset", "model", "attack", "norm", "eps", "recipe", "n")
# What a --pivot agrees in: the first are of its lines, the last of its columns.
LINES, CELLS = ("sweep", "dataset", "model"), ("attack", "norm", "eps")
# Only among rows that agree in these can one be better than another.
CONTEST = ("dataset", "attack", "norm", "eps")
MEANS = ("clean_accuracy", "robust_accuracy", "distance_median", "seconds")
MEASURES = (
    "clean_accuracy", "clean_accuracy_se", "robust_accuracy", "robust_accuracy_se", "robust_accuracy_low",
    "robust_accuracy_high", "distance_median", "seconds", "seeds", "rows", "verdict",
)  # fmt: skip
LESS_IS_BETTER = ("seconds",)


@dataclass(frozen=True)
class Question:
    """What is asked of the rows that the filters leave.

    group: columns to agree in, over whose rows means are taken.  pivot: a line a model, a column an attack.
    sort: columns, the first counts most; -COLUMN descends.  best: a column, of which only the best row of each contest
    is kept.  compare: two models, or two numbers of jobs.
    """

    filters: Filters = field(default_factory=Filters)
    group: tuple[str, ...] = ()
    pivot: bool = False
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
    columns = names(group)
    if over_seeds:
        if columns:
            raise SpecError("expected --group or --over-seeds, got both")
        columns = OVER_SEEDS
    pair = tuple(str(word) for word in compare) if compare else None
    if pair is not None and len(pair) != 2:
        raise SpecError(f"--compare: expected two models or two numbers of jobs, got {len(pair)}")
    question = Question(filters, columns, pivot, names(sort), best, pair)
    check_question(question)
    return question


def names(given: str | Sequence[str] | None) -> tuple[str, ...]:
    words = given.split(",") if isinstance(given, str) else given or ()
    return tuple(dict.fromkeys(word.strip() for word in words))


def answer(db: Connection, question: Question, tell: Callable[[str], None] = lambda text: None) -> list[Row]:
    """The rows that answer the question. tell: is given what a reader ought to know besides, a line each.

    Raises SpecError for columns that there are not, and where there is nothing to compare.
    """
    if question.compare is not None:
        from jobs.compare import compare

        rows = compare(db, question.filters, question.compare)
    elif question.pivot:
        rows = whole_rows(db, question.filters, (*LINES, *CELLS), tell)
        named = [row | {"attack": name} for row, name in zip(rows, told_apart(rows), strict=True)]
        rows = pivot(grouped(named, (*LINES, *CELLS), tell), tell)
    elif question.group:
        rows = grouped(whole_rows(db, question.filters, question.group, tell), question.group, tell)
    else:
        rows = chosen_rows(db, question.filters)
    if not rows:
        for line in unfitting(db, question.filters):
            tell(line)
    if question.best is not None:
        rows = best(rows, question.best, tell)
    return sort(rows, question.sort)


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
    check_columns(question.group)
    known = (*question.group, *MEASURES) if question.group else RESULT_COLUMNS
    if question.best is not None:
        check_columns([question.best], known)
        if question.best not in MEASURES and not is_number(question.best):
            raise SpecError(f"--best: expected a column of numbers such as robust_accuracy, got {question.best!r}")
    if question.plain or question.group:
        check_columns((name.removeprefix("-") for name in question.sort), known)


def whole_rows(db: Connection, filters: Filters, group: Sequence[str], tell: Callable[[str], None]) -> list[Row]:
    """The rows that groups are made of: each study whole, though others share its jobs, and in its last version.

    Where groups do not tell studies apart, a job counts once.
    """
    columns = tuple(dict.fromkeys((*group, "recipe", "seed", *MEANS, "verdict", "job_id")))
    rows = chosen_rows(db, filters, columns, whole=True)
    if "sweep" not in group:
        rows = list({row["job_id"]: row for row in rows}.values())
    if left := of_earlier_versions(db, filters) if filters.sweep is None else 0:
        tell(f"{left} results of earlier versions of a study are left out")
    return rows


def grouped(rows: Iterable[Row], group: Sequence[str], tell: Callable[[str], None]) -> list[Row]:
    """Means over seeds of rows that agree in `group`, in the order in which their first rows come.

    Rows of one seed are averaged first, so that every seed counts once. *_se is the standard error over seeds, low and
    high are the ends of Student's 95 % interval, within [0, 1]; None where there is one seed only. verdict: the worst.
    """
    from jobs.statistics import standard_error, t_interval

    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(str(row[n]) if isinstance(row[n], dict) else row[n] for n in group), []).append(row)
    lines = []
    for place, mine in found.items():
        seeds: dict[int, list[Row]] = {}
        for row in mine:
            seeds.setdefault(row["seed"], []).append(row)
        means = {column: [mean(some, column) for some in seeds.values()] for column in MEANS}
        kept = {column: [value for value in values if value is not None] for column, values in means.items()}
        line: Row = dict(zip(group, place, strict=True)) | dict.fromkeys(MEASURES)
        line |= {column: sum(values) / len(values) if values else None for column, values in kept.items()}
        line |= {f"{column}_se": standard_error(kept[column]) for column in ("clean_accuracy", "robust_accuracy")}
        if interval := t_interval(kept["robust_accuracy"]):  # no accuracy lies beyond 0 and 1, Student's interval may
            line |= {"robust_accuracy_low": max(interval[0], 0.0), "robust_accuracy_high": min(interval[1], 1.0)}
        line |= {"seeds": len(seeds), "rows": len(mine), "verdict": worst_verdict(mine)}
        lines.append(line)
    mixed = sum(line["rows"] > line["seeds"] for line in lines)
    if mixed and "seed" not in group:
        tell(f"{mixed} groups hold several rows of a seed, which were averaged: --over-seeds keeps apart what differs")
    return lines


def worst_verdict(rows: Sequence[Row]) -> str | None:
    return max((row["verdict"] for row in rows if row["verdict"] is not None), key=VERDICTS.index, default=None)


def mean(rows: Sequence[Row], column: str) -> float | None:
    values = [row[column] for row in rows if row[column] is not None]
    return sum(values) / len(values) if values else None


def pivot(groups: Sequence[Row], tell: Callable[[str], None]) -> list[Row]:
    """A line a model, a column an attack with its norm and radius; robust accuracy, None where none is to be trusted.

    Sweep and data set stand in front where there are several.
    """
    heads = [name for name in LINES[:2] if len({row[name] for row in groups}) > 1]
    columns: dict[tuple[Any, ...], str] = {}
    for row in groups:
        words = [row["attack"], row["norm"], eps_text(row["eps"])]
        columns.setdefault(tuple(row[name] for name in CELLS), " ".join(str(word) for word in words if word))
    lines: dict[tuple[Any, ...], Row] = {}
    for row in groups:
        place = tuple(row[name] for name in LINES)
        head = {name: row[name] for name in (*heads, "model")}
        line = lines.setdefault(place, head | dict.fromkeys(columns.values()))
        line[columns[tuple(row[name] for name in CELLS)]] = None if row["verdict"] == FAIL else row["robust_accuracy"]
    if failed := sum(row["verdict"] == FAIL for row in groups):
        tell(f"{failed} cells are empty because a check failed there; without --pivot their numbers are shown")
    return list(lines.values())


def best(rows: Sequence[Row], column: str, tell: Callable[[str], None]) -> list[Row]:
    """The best of the rows that agree in data set, attack and its settings, norm and radius, as far as they have them;
    all of equals.

    What failed a check is not the most robust of anything.
    """
    contests: dict[tuple[Any, ...], list[Row]] = {}
    if column.startswith("robust_accuracy") and (failed := sum(row["verdict"] == FAIL for row in rows)):
        tell(f"{failed} rows are left out because a check failed there")
        rows = [row for row in rows if row["verdict"] != FAIL]
    complete = all({"attack", "norm", "eps", "recipe"} <= row.keys() for row in rows[:1])
    for row, attack in zip(rows, told_apart(rows) if complete else [None] * len(rows), strict=True):
        if row[column] is not None:
            contests.setdefault((attack, *(row.get(name) for name in CONTEST)), []).append(row)
    choose = min if column in LESS_IS_BETTER else max
    kept = []
    for mine in contests.values():
        top = choose(row[column] for row in mine)
        kept += [row for row in mine if row[column] == top]
    return kept


def sort(rows: list[Row], columns: Sequence[str]) -> list[Row]:
    """By these columns, -COLUMN from the highest; equals stay in order, nulls come last either way."""
    for name in reversed(columns):
        column, down = name.removeprefix("-"), name.startswith("-")
        if rows:
            check_columns([column], list(rows[0]))
        there = [row for row in rows if row[column] is not None]
        text = any(isinstance(row[column], str | dict) for row in there)
        there.sort(key=lambda row: str(row[column]) if text else row[column], reverse=down)
        rows = there + [row for row in rows if row[column] is None]
    return rows
