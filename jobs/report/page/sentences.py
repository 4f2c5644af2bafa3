"""The verdict in plain words, each sentence from the numbers beneath it."""

import shlex
from collections.abc import Sequence

from robustlib.settings import CERTIFY
from robustq.jobs.report.page.plotly import span
from robustq.jobs.report.page.ranking import RadiusRanking, Standing
from robustq.jobs.report.page.sweep_data import Sweep
from robustq.jobs.results.attack_labels import WORST_CASE
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
        return f"No model is robust {where}: none of {best.n} images is under the worst attack."
    sure = span(best.accuracy, best.low, best.high)
    right = f"{sure} of {best.n} test images are still classified correctly under the worst attack"
    return f"{best.model} is the most robust model {where}: {right}."


def apart_sentence(place: RadiusRanking) -> str:
    """Whether the best is told apart from the next ones."""
    best = place.best
    if best is None or best.accuracy == 0:
        return ""
    others = [s for s in place.all if s is not best and s.trusted]
    if place.rivals:
        names = listed([f"{rival.model} ({100 * rival.accuracy:.1f} %)" for rival in place.rivals])
        return f"These numbers do not tell it apart from {names}: the 95 % intervals meet."
    if others:
        sure = span(others[0].accuracy, others[0].low, others[0].high)
        return f"Next comes {others[0].model} with {sure}; the 95 % intervals do not meet."
    return (
        "It is the only model that was tried and is to be trusted there."
        if place.distrusted
        else "No other model was tried there."
    )


def price_sentence(place: RadiusRanking) -> str:
    """What the best model gives up on clean images, against the best one there."""
    best = place.best
    if best is None or best.accuracy == 0:
        return ""
    cleanest = max((s for s in place.all if s.trusted), key=lambda s: s.clean)
    if cleanest.clean - best.clean < 0.005:
        return f"On clean images it has {100 * best.clean:.1f} %, and none of the others has more."
    return f"On clean images it has {100 * best.clean:.1f} %, where {cleanest.model} has {100 * cleanest.clean:.1f} %."


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
        said.append(f"The sweep is not complete: {left} of {sweep.total} jobs are not done, so numbers may still fall.")
    if sweep.left_out:
        how = f"robustq retry --sweep {shlex.quote(sweep.name)} queues them"
        some = f"{sweep.left_out} of {sweep.total} jobs were left out of a budget ({how})"
        said.append(f"The sweep is partial: {some}, so numbers may still fall.")
    for place in headline:
        where = f"at {place.norm} {eps_text(place.eps)}"
        bests = [s for s in place.all if s.trusted and s.verdict is None]
        if bests:
            names = listed([s.model for s in bests])
            said.append(f"Nothing was checked of {names} {where}: whether attacks were misled is not known.")
        warned = [s for s in place.all if s.verdict == "warn"]
        said += [f"{s.model} {where} has a warning: {s.cause}" for s in warned[:MOST_NAMES]]
    attacks = {row["attack"] for row in sweep.rows if row["eps"]} - {WORST_CASE, CERTIFY}
    if len(attacks) == 1:
        said.append(f"All numbers rest on one attack, {attacks.pop()}.")
    said.append("A number holds against the attacks of this study, not against all that exist.")
    return said
