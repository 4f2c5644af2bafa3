"""Rankings of models and attacks, and the numbers not to be trusted: rows of v_results weighed against their checks."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from robustlib.settings import CERTIFY
from robustq.jobs.results.aggregate import mean, rows_by
from robustq.jobs.results.columns import CheckRow, PageRow
from robustq.jobs.results.worst_attack import WorstCase, attacked_by_radius, clean_rows, lowest_attacks, worst_case_of
from robustq.jobs.statistics.model_pairs import ALPHA, Versus
from robustq.jobs.statistics.significance import holm, standard_deviation

NO_BETTER = 0.02  # above what a failed audit found, a number at its radius or a larger one keeps its trust: v_results
# Radii that papers report, the first that a study has: RobustBench's for CIFAR and ImageNet, and 12 in L1.
CUSTOMARY = {"Linf": (8 / 255, 4 / 255, 0.3), "L2": (0.5, 3.0), "L1": (12.0,)}


@dataclass(frozen=True)
class Standing:
    """A model at a radius under the worst attack: means over seeds, intervals from the lowest to the highest end.

    accuracy, low, high, clean, clean_low, clean_high: fractions.  deviation: the standard deviation of accuracy over
    seeds, None for one.  verdict: the most severe of its rows', None where
    nothing was checked.  cause: what its checks found wrong.  rows: what the number was made of, a row a seed.
    clean_rows: those that the clean accuracy is from.
    """

    model: str
    norm: str
    eps: float
    accuracy: float
    low: float
    high: float
    deviation: float | None
    clean: float
    clean_low: float
    clean_high: float
    n: int
    rests_on: str
    verdict: str | None
    cause: str
    rows: tuple[PageRow, ...]
    clean_rows: tuple[PageRow, ...]

    @property
    def trusted(self) -> bool:
        return self.verdict != "fail"

    @property
    def shown_seed(self) -> str:
        """The model's name, with the seed where what is shown is one of several."""
        return self.rows[0]["name"]


def standings(rows: Sequence[PageRow], checks: Sequence[CheckRow]) -> list[Standing]:
    """Every model at every radius above 0, the best first within a radius, what is not trusted last."""
    checks_by_job = rows_by(checks, "job_id")
    abouts = rows_by([row for row in rows if row["norm"] and row["attack"] != CERTIFY], "norm", "model")
    clean = {model: tuple(clean_rows(mine)) for (model,), mine in rows_by(rows, "model").items()}
    found = [
        standing(norm, eps, here, abouts[norm, model], clean[model], checks_by_job)
        for (norm, eps, model), here in attacked_by_radius(rows).items()
    ]
    return sorted(found, key=lambda s: (s.norm, s.eps, not s.trusted, -s.accuracy))


def standing(
    norm: str,
    eps: float,
    here: Sequence[PageRow],
    about: Sequence[PageRow],
    clean: Sequence[PageRow],
    checks: dict[Any, list[CheckRow]],
) -> Standing:
    """here, about: the model's rows at this radius, and in this norm.  clean: those of its clean accuracy."""
    case = worst_case_of(here)
    first = case.rows[0]
    seeds = {row["seed"] for row in case.rows}
    clean = tuple(row for row in clean if row["seed"] in seeds)
    lowest = lowest_attacks([row for row in here if row["seed"] == first["seed"]])
    return Standing(
        model=first["model"],
        norm=norm,
        eps=eps,
        accuracy=case.accuracy,
        low=min(row["robust_accuracy_low"] for row in case.rows),
        high=max(row["robust_accuracy_high"] for row in case.rows),
        deviation=standard_deviation([row["robust_accuracy"] for row in case.rows]),
        clean=mean([row["clean_accuracy"] for row in clean]),
        clean_low=min(row["clean_accuracy_low"] for row in clean),
        clean_high=max(row["clean_accuracy_high"] for row in clean),
        n=min(row["n"] for row in case.rows),
        rests_on=", ".join(dict.fromkeys(row["label"] for row in lowest)),
        verdict=case.verdict,
        cause=cause(case, here, about, checks),
        rows=case.rows,
        clean_rows=clean,
    )


def cause(
    case: WorstCase[PageRow], here: Iterable[PageRow], about: Iterable[PageRow], checks: dict[Any, list[CheckRow]]
) -> str:
    """What the checks at this radius found of this severity; else what an audit that bears on these rows did."""
    if case.verdict not in ("fail", "warn"):
        return ""
    own = [check for row in here for check in checks.get((row["job_id"],), ()) if check["verdict"] == case.verdict]
    notes = [f"{check['name']}: {check['note']}" if check["note"] else check["name"] for check in own]
    audits = [one for one in about if any(bears_on(one, row, case.verdict) for row in case.rows)]
    causes = [one["extra"]["audit"]["cause"] for one in audits]
    notes = notes or [f"audit: {cause}" for cause in causes if cause]
    return "; ".join(dict.fromkeys(notes)) or "an audit of this model and data found more than these attacks did"


def bears_on(one: PageRow, row: PageRow, verdict: str) -> bool:
    """Whether a row is of an audit that gives another row of its model and norm this verdict: one that failed as in
    v_results, one that warns at its own radius alone.
    """
    told = one["extra"].get("audit")
    if not told or told["verdict"] != verdict or one["seed"] != row["seed"]:
        return False
    if one["job_id"] == row["job_id"]:
        return True
    if verdict == "warn":
        return one["eps"] == row["eps"]
    found, at = one["robust_accuracy"], one["eps"]
    return not ((row["eps"] or 0) >= (at or 0) and row["robust_accuracy"] <= found + NO_BETTER)


@dataclass(frozen=True)
class Against:
    """A model compared with the best at its radius.  versus: the best is first.  p_holm: p, corrected for all there."""

    other: Standing
    versus: Versus
    p_holm: float

    @property
    def apart(self) -> bool:
        """Whether the test tells the two apart."""
        return self.p_holm < ALPHA


@dataclass(frozen=True)
class RadiusRanking:
    """A radius: the most robust model there, the others that are trusted beside it, and those not to be trusted."""

    norm: str
    eps: float
    best: Standing | None
    against: list[Against]
    distrusted: list[Standing]
    all: list[Standing]

    @property
    def rivals(self) -> list[Standing]:
        """Those of the others that are not told apart from the best."""
        return [one.other for one in self.against if not one.apart]


ATTACKED, AS_THEY_ARE = "adversarial_correct", "clean_correct"  # which of the images' outcomes are compared
Compare = Callable[[Standing, Standing, str], Versus]


def rank_radii(found: Sequence[Standing], compare: Compare) -> list[RadiusRanking]:
    """Every radius with its best, by norm and radius."""
    result = []
    for norm, eps in dict.fromkeys((s.norm, s.eps) for s in found):
        here = [s for s in found if (s.norm, s.eps) == (norm, eps)]
        best = next((s for s in here if s.trusted), None)
        against = beside(best, here, compare, ATTACKED) if best else []
        result.append(RadiusRanking(norm, eps, best, against, [s for s in here if not s.trusted], here))
    return result


def beside(best: Standing, here: Sequence[Standing], compare: Compare, column: str) -> list[Against]:
    """The others that are trusted compared with the best, by an outcome of the images."""
    others = [s for s in here if s.trusted and s is not best]
    found = [compare(best, other, column) for other in others]
    corrected = holm([one.p for one in found])
    return [Against(*row) for row in zip(others, found, corrected, strict=True)]


def headlines(found: Sequence[RadiusRanking]) -> list[RadiusRanking]:
    """One radius a norm, Linf first: the customary one where the study has it, else the middle one."""
    chosen = []
    for norm in sorted({place.norm for place in found}, key=lambda norm: (norm != "Linf", norm)):
        here = [place for place in found if place.norm == norm]
        usual = [p for eps in CUSTOMARY.get(norm, ()) for p in here if abs(p.eps - eps) < 1e-6]
        chosen.append(usual[0] if usual else here[(len(here) - 1) // 2])
    return chosen
