"""Who stands best, where, and what is not to be trusted: rows of v_results weighed against their checks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from robustlib.settings import CERTIFY
from robustq.jobs.results.columns import CheckRow, PageRow

R = TypeVar("R", bound=Mapping[str, Any])

# Radii that papers report, the first that a study has: RobustBench's for CIFAR and ImageNet, and 12 in L1.
CUSTOMARY = {"Linf": (8 / 255, 4 / 255, 0.3), "L2": (0.5, 3.0), "L1": (12.0,)}
SEVERITY = {"fail": 0, "warn": 1, None: 2, "pass": 3}


@dataclass(frozen=True)
class Standing:
    """A model at a radius under the worst attack: means over seeds, intervals from the lowest to the highest end.

    accuracy, low, high, clean, clean_low, clean_high: fractions.  verdict: the most severe of its rows', None where
    nothing was checked.  cause: what its checks found wrong.  rows: what the number was made of, a row a seed.
    """

    model: str
    norm: str
    eps: float
    accuracy: float
    low: float
    high: float
    clean: float
    clean_low: float
    clean_high: float
    n: int
    rests_on: str
    verdict: str | None
    cause: str
    rows: tuple[PageRow, ...]

    @property
    def trusted(self) -> bool:
        return self.verdict != "fail"


def mean(rows: Sequence[PageRow], column: str) -> float:
    return sum(row[column] for row in rows) / len(rows)


def grouped(rows: Iterable[R], *columns: str) -> dict[Any, list[R]]:
    """Rows by what they hold in these columns, each group and the groups in the order of the rows."""
    found: dict[Any, list[R]] = {}
    for row in rows:
        found.setdefault(tuple(row[column] for column in columns), []).append(row)
    return found


def standings(rows: Sequence[PageRow], checks: Sequence[CheckRow]) -> list[Standing]:
    """Every model at every radius above 0, the best first within a radius, what is not trusted last."""
    found, checks_by_job = [], grouped(checks, "job_id")
    rows = [row for row in rows if row["attack"] != CERTIFY]  # a bound from below, beside no attack's from above
    abouts = grouped([row for row in rows if row["norm"]], "norm", "model")
    within = [row for row in rows if row["eps"] and row["norm"]]
    for (norm, eps, model), here in grouped(within, "norm", "eps", "model").items():
        chosen = [worst(same) for same in grouped(here, "seed").values()]
        found.append(standing(norm, eps, chosen, here, abouts[norm, model], checks_by_job))
    return sorted(found, key=lambda s: (s.norm, s.eps, not s.trusted, -s.accuracy))


def worst(rows: Sequence[PageRow]) -> PageRow:
    """The worst case of one model, radius and seed; while it is not computed yet, the lowest of the attacks."""
    cases = [row for row in rows if row["attack"] == "worst-case"]
    return cases[0] if cases else min(rows, key=lambda row: row["robust_accuracy"])


def tightest(rows: Sequence[PageRow]) -> list[PageRow]:
    """The attacks that a worst case rests on: those of the lowest accuracy."""
    own = [row for row in rows if row["attack"] != "worst-case"] or list(rows)
    lowest = min(row["robust_accuracy"] for row in own)
    return [row for row in own if row["robust_accuracy"] == lowest]


def standing(
    norm: str,
    eps: float,
    chosen: Sequence[PageRow],
    here: Sequence[PageRow],
    about: Sequence[PageRow],
    checks: dict[Any, list[CheckRow]],
) -> Standing:
    """chosen: the rows that the number is made of.  here, about: the model's at this radius, and in this norm."""
    verdicts = {row["job_id"]: verdict_of(row, here) for row in chosen}
    verdict = min(verdicts.values(), key=SEVERITY.__getitem__)
    first = chosen[0]
    tight = [row["label"] for row in tightest([row for row in here if row["seed"] == first["seed"]])]
    return Standing(
        model=first["model"],
        norm=norm,
        eps=eps,
        accuracy=mean(chosen, "robust_accuracy"),
        low=min(row["robust_accuracy_low"] for row in chosen),
        high=max(row["robust_accuracy_high"] for row in chosen),
        clean=mean(chosen, "clean_accuracy"),
        clean_low=min(row["clean_accuracy_low"] for row in chosen),
        clean_high=max(row["clean_accuracy_high"] for row in chosen),
        n=min(row["n"] for row in chosen),
        rests_on=", ".join(dict.fromkeys(tight)),
        verdict=verdict,
        cause=cause(verdict, here, about, checks),
        rows=tuple(chosen),
    )


def verdict_of(row: PageRow, here: Sequence[PageRow]) -> str | None:
    """A row's own verdict; a worst case without one has the best of the attacks that it rests on.

    The worst case is no larger than any of its parts: one part that is to be trusted bounds it.
    """
    if row["attack"] != "worst-case" or row["verdict"] is not None:
        return row["verdict"]
    parts = tightest([part for part in here if part["seed"] == row["seed"]])
    return max((part["verdict"] for part in parts), key=SEVERITY.__getitem__)


def cause(
    verdict: str | None, here: Iterable[PageRow], about: Iterable[PageRow], checks: dict[Any, list[CheckRow]]
) -> str:
    """What the checks at this radius found of this severity; else what an audit of the model in this norm did."""
    if verdict not in ("fail", "warn"):
        return ""
    own = [check for row in here for check in checks.get((row["job_id"],), ()) if check["verdict"] == verdict]
    notes = [f"{check['name']}: {check['note']}" if check["note"] else check["name"] for check in own]
    audits = [row["extra"]["audit"] for row in about if row["extra"].get("audit")]
    notes = notes or [f"audit: {told['cause']}" for told in audits if told["verdict"] == verdict and told["cause"]]
    return "; ".join(dict.fromkeys(notes)) or "an audit of this model and data found more than these attacks did"


def told_apart(best: Standing, others: Iterable[Standing]) -> list[Standing]:
    """Those of the others that the numbers do not tell apart from the best: their intervals meet."""
    return [other for other in others if other is not best and other.trusted and other.high >= best.low]


@dataclass(frozen=True)
class Place:
    """A radius: who stands best there, who cannot be told apart from it, and who is not to be trusted."""

    norm: str
    eps: float
    best: Standing | None
    rivals: list[Standing]
    distrusted: list[Standing]
    all: list[Standing]


def places(found: Sequence[Standing]) -> list[Place]:
    """Every radius with its best, by norm and radius."""
    result = []
    for norm, eps in dict.fromkeys((s.norm, s.eps) for s in found):
        here = [s for s in found if (s.norm, s.eps) == (norm, eps)]
        best = next((s for s in here if s.trusted), None)
        rivals = told_apart(best, here) if best else []
        result.append(Place(norm, eps, best, rivals, [s for s in here if not s.trusted], here))
    return result


def headlines(found: Sequence[Place]) -> list[Place]:
    """One radius a norm, Linf first: the customary one where the study has it, else the middle one."""
    chosen = []
    for norm in sorted({place.norm for place in found}, key=lambda norm: (norm != "Linf", norm)):
        here = [place for place in found if place.norm == norm]
        usual = [p for eps in CUSTOMARY.get(norm, ()) for p in here if abs(p.eps - eps) < 1e-6]
        chosen.append(usual[0] if usual else here[(len(here) - 1) // 2])
    return chosen
