"""The section of a card's page that says what each signal flags."""

from robustlib.monitoring.signals import MARGIN, NOISE, REPEATS, SIGNALS
from robustq.jobs.packages.card import Flagged, Monitoring, SignalRate
from robustq.jobs.packages.markdown_table import table

MONITORED = (
    "What may tell whoever looks after a server that somebody attacks it. **It is monitoring, never a defence**: an "
    "attack that knows a signal keeps it still, and the last columns say how often it did. Thresholds come from clean "
    "images that are not among those that were flagged here. Of repeated queries, clean and stored images are those of "
    "one client that asks about each once; Square is a client with each image of its own, and the intervals of its "
    "queries are those of so many samples as there are attacks. An attack that knows a signal starts from images that "
    "the program gets right, the stored one from all."
)


def monitoring_text(of: Monitoring | None) -> str:
    """The section; empty where nothing was measured."""
    if of is None:
        return ""
    rows = []
    for name in SIGNALS:
        found = {rate.on: rate for rate in of.rates if rate.signal == name}
        known = found.get("adaptive")
        shown = [flagged_text(found.get(on)) for on in ("clean", "stored", "square", "adaptive")]
        missed = "" if known is None or known.missed is None else f"{100 * known.missed:.0f} %"
        fooled = "" if known is None or known.fooled is None else f"{100 * known.fooled:.0f} %"
        rows.append((name, threshold_text(of, name), *shown, fooled, missed))
    head = (
        "signal", "flags where", "clean images", "stored attack", "queries of Square", "attack that knows it",
        "it fooled", "it fooled and was not flagged",
    )  # fmt: skip
    notes = dict.fromkeys(f"- {rate.on}: {rate.note}." for rate in of.rates if rate.note)
    told = [MONITORED, table(head, rows), "\n".join(notes), f"{of.note}." if of.note else ""]
    return "\n\n".join(["## Monitoring", *(part for part in told if part)])


def flagged_text(rate: SignalRate | None) -> str:
    if rate is None:
        return ""
    of: Flagged = rate.flagged
    return f"{100 * of.rate:.1f} % of {of.n} [{100 * of.low:.1f}, {100 * of.high:.1f}]"


def threshold_text(of: Monitoring, name: str) -> str:
    limit = of.thresholds.get(name)
    if name == NOISE:
        return f"over {limit:.3g} of {of.copies} copies with noise {of.sigma:g} are of another class"
    if name == MARGIN:
        return f"the first two classes' shares of these votes differ by less than {limit:.3g}"
    if name == REPEATS:
        return f"the {of.nearest} nearest of a client's last {of.window} queries lie within {limit:.3g}"
    return "; ".join(f"{part} outside {low:.3g} to {high:.3g}" for part, (low, high) in of.ranges.items())
