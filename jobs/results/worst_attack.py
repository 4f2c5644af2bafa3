"""The rows that a model's robust accuracy at a radius and its clean one rest on, and whether they are trusted."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from robustlib.checks.thresholds import FAIL, PASS, WARN
from robustlib.settings import CERTIFY
from robustq.jobs.results.aggregate import CLEAN, mean, rows_by
from robustq.jobs.results.attack_labels import WORST_CASE
from robustq.jobs.results.columns import ResultRow
from robustq.jobs.text.tables import Row

SEVERITY = {FAIL: 0, WARN: 1, None: 2, PASS: 3}

R = TypeVar("R", bound=ResultRow)
S = TypeVar("S", bound=Row)


@dataclass(frozen=True)
class WorstCase(Generic[R]):
    """Of one model at one radius.  rows: what the number is made of, a row a seed.  accuracy: their mean, a fraction.

    verdict: the most severe of theirs, None where nothing was checked.
    """

    rows: tuple[R, ...]
    accuracy: float
    verdict: str | None


def attacked_by_radius(rows: Iterable[R]) -> dict[tuple[str, float, str], list[R]]:
    """The results of attacks within a radius above 0, by norm, radius and model.

    Certificates bound from below and stand beside no attack's bound from above.
    """
    within = [row for row in rows if row["eps"] and row["norm"] and row["attack"] != CERTIFY]
    return rows_by(within, "norm", "eps", "model")


def worst_case_of(here: Sequence[R]) -> WorstCase[R]:
    """here: all results of one model at one radius."""
    rows = tuple(worst_row(same) for same in rows_by(here, "seed").values())
    verdict = min((worst_case_verdict(row, here) for row in rows), key=SEVERITY.__getitem__)
    return WorstCase(rows, mean([row["robust_accuracy"] for row in rows]), verdict)


def worst_row(rows: Sequence[R]) -> R:
    """The worst case of one model, radius and seed; while it is not computed yet, the lowest of the attacks."""
    computed = [row for row in rows if row["attack"] == WORST_CASE]
    return computed[0] if computed else min(rows, key=lambda row: row["robust_accuracy"])


def lowest_attacks(rows: Sequence[R]) -> list[R]:
    """The attacks that a worst case rests on: those of the lowest accuracy."""
    own = [row for row in rows if row["attack"] != WORST_CASE] or list(rows)
    lowest = min(row["robust_accuracy"] for row in own)
    return [row for row in own if row["robust_accuracy"] == lowest]


def worst_case_verdict(row: ResultRow, here: Sequence[ResultRow]) -> str | None:
    """A row's own verdict; a worst case without one has the best of the attacks that it rests on.

    The worst case is no larger than any of its parts: one part that is to be trusted bounds it.
    """
    if row["attack"] != WORST_CASE or row["verdict"] is not None:
        return row["verdict"]
    parts = lowest_attacks([part for part in here if part["seed"] == row["seed"]])
    return max((part["verdict"] for part in parts), key=SEVERITY.__getitem__)


def clean_row(rows: Sequence[S]) -> S:
    """The row whose clean accuracy is the model's, for every table and the page. rows: of one model, data set and seed.

    A randomised model draws anew in each evaluation, so that each row has another one; of a fixed model all are equal.
    That of the evaluation `clean`; without one, that of the evaluation of the most images, the earliest of equals. The
    worst case, whose draws are those that did most harm, and certificates, whose class is the vote, come last.
    """
    return min(rows, key=clean_order)


def clean_order(row: Row) -> tuple[Any, ...]:
    attack = row["attack"]
    return attack != CLEAN, attack == CERTIFY, attack == WORST_CASE, -row["n"], row["job_id"]


def clean_rows(rows: Iterable[S]) -> list[S]:
    """That row of each seed.  rows: of one model and data set."""
    return [clean_row(same) for same in rows_by(rows, "seed").values()]
