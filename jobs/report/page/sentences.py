"""The verdict in plain words, each sentence from the numbers beneath it."""

import shlex
from collections.abc import Sequence

from robustlib.number_text import counted, distinct, percents
from robustlib.settings import CERTIFY
from robustq.jobs.report.page.plotly import span
from robustq.jobs.report.page.ranking import AS_THEY_ARE, Against, Compare, RadiusRanking, Standing, beside
from robustq.jobs.report.page.sweep_data import Sweep
from robustq.jobs.results.aggregate import is_best
from robustq.jobs.results.attack_labels import WORST_CASE
from robustq.jobs.statistics.model_pairs import ALPHA
from robustq.jobs.text.numbers import eps_text

MOST_NAMES = 6  # that a sentence holds


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them."""
    if len(names) > MOST_NAMES:
        return f"{', '.join(names[:MOST_NAMES])} and {len(names) - MOST_NAMES} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def best_sentence(place: RadiusRanking) -> str:
    """The most robust model at a radius, in one sentence."""
    where = f"at {place.norm} {eps_text(place.eps)}"
    best = place.best
    if best is None:
        return f"No model can be called robust {where}: none of its numbers is to be trusted."
    if best.high <= 0 or best.accuracy == 0:
        return f"No model is robust {where}: none of {counted(best.n, 'image')} is under the worst attack."
    sure = span(best.accuracy, best.low, best.high)
    images = counted(best.n, "test image is", "test images are")
    right = f"{sure} of {images} still classified correctly under the worst attack"
    return f"{best.model} is the most robust model {where}: {right}."


def apart_sentence(place: RadiusRanking) -> str:
    """Whether the best is told apart from the next ones."""
    best = place.best
    if best is None or best.accuracy == 0:
        return ""
    alike = [one for one in place.against if not one.apart]
    if alike:
        names = listed([f"{one.other.model} ({100 * one.other.accuracy:.1f} %)" for one in alike])
        return f"These numbers do not tell it apart from {names}: {how_sure(alike, place)}."
    if place.against:
        next_ = place.against[0]
        sure = span(next_.other.accuracy, next_.other.low, next_.other.high)
        return f"Next comes {next_.other.model} with {sure}; it is told apart from it: {how_sure([next_], place)}."
    return (
        "It is the only model that was tried and is to be trusted there."
        if place.distrusted
        else "No other model was tried there."
    )


def how_sure(compared: Sequence[Against], place: RadiusRanking) -> str:
    """The p-values of comparisons with the best at a radius, and by which test."""
    values = [p_sign(one.p_holm) for one in compared[:MOST_NAMES]]
    tests = listed(list(dict.fromkeys(one.versus.test for one in compared)))
    return f"p {listed(values)} ({tests}{holm_text(place.against)})"


def holm_text(against: Sequence[Against]) -> str:
    """That p-values are corrected, where there is more than one."""
    return f", Holm's correction for {len(against)} comparisons" if len(against) > 1 else ""


def p_text(p: float) -> str:
    """With digits enough to tell on which side of ALPHA it is."""
    return "below 0.0001" if p < 1e-4 else distinct((p, ALPHA), 2)[0]


def p_sign(p: float) -> str:
    """What stands after p in a sentence."""
    told = p_text(p)
    return told.replace("below", "<") if p < 1e-4 else f"= {told}"


def price_sentence(place: RadiusRanking, compare: Compare) -> str:
    """What the best model gives up on clean images, against the best one there."""
    best = place.best
    if best is None or best.accuracy == 0:
        return ""
    against = beside(best, place.all, compare, AS_THEY_ARE)
    cleaner = max(against, key=lambda one: one.other.clean, default=None)
    own = f"On clean images it has {100 * best.clean:.1f} %"
    if cleaner is None:
        return f"{own}."
    if cleaner.other.clean <= best.clean or is_best(best.clean, cleaner.other.clean):
        return f"{own}, and none of the others has more."
    mine, others = percents((best.clean, cleaner.other.clean))
    apart = "told apart" if cleaner.apart else "not told apart from it"
    why = f"{apart}: p {p_sign(cleaner.p_holm)}, {cleaner.versus.test}{holm_text(against)}"
    return f"On clean images it has {mine} %, where {cleaner.other.model} has {others} % ({why})."


def distrusted(found: Sequence[RadiusRanking]) -> list[tuple[str, str, str]]:
    """What is not trusted: model, where, and the cause."""
    causes: dict[tuple[str, str], list[Standing]] = {}
    for place in found:
        for s in place.distrusted:
            causes.setdefault((s.model, s.cause), []).append(s)
    return [
        (model, listed([f"{s.norm} {eps_text(s.eps)}" for s in same]), cause) for (model, cause), same in causes.items()
    ]


def limits(sweep: Sweep, headline: Sequence[RadiusRanking]) -> list[str]:
    """What readers should know before they quote a number."""
    said = []
    if not sweep.complete:
        left = sweep.total - sweep.left_out - sweep.states["done"]
        some = counted(left, f"of {sweep.total} jobs is", f"of {sweep.total} jobs are")
        said.append(f"The sweep is not complete: {some} not done, so numbers may still fall.")
    if sweep.left_out:
        how = f"robustq retry --sweep {shlex.quote(sweep.name)} queues {'it' if sweep.left_out == 1 else 'them'}"
        were = counted(sweep.left_out, f"of {sweep.total} jobs was", f"of {sweep.total} jobs were")
        some = f"{were} left out of a budget ({how})"
        said.append(f"The sweep is partial: {some}, so numbers may still fall.")
        said += [f"{line[0].upper()}{line[1:]}." for line in sweep.without]
    for place in headline:
        where = f"at {place.norm} {eps_text(place.eps)}"
        bests = [s for s in place.all if s.trusted and s.verdict is None]
        if bests:
            names = listed([s.model for s in bests])
            said.append(f"Nothing was checked of {names} {where}: whether attacks were misled is not known.")
        warned: dict[str, list[str]] = {}
        for s in place.all:
            if s.verdict == "warn":
                warned.setdefault(s.cause, []).append(s.model)
        for cause, models in list(warned.items())[:MOST_NAMES]:
            said.append(f"{listed(models)} {where} {'has' if len(models) == 1 else 'have'} a warning: {cause}")
    attacks = {row["attack"] for row in sweep.rows if row["eps"]} - {WORST_CASE, CERTIFY}
    if len(attacks) == 1:
        said.append(f"All numbers rest on one attack, {attacks.pop()}.")
    said.append("A number holds against the attacks of this study, not against all that exist.")
    return said
