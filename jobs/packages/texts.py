"""The printed results of the commands for packages, and the model that one of them means. Loads no torch."""

from typing import TYPE_CHECKING, Any

from robustlib.number_text import counted
from robustq.jobs.packages import chosen_model
from robustq.jobs.packages.chosen_model import Chosen
from robustq.jobs.packages.verify import Verified
from robustq.jobs.store.connection import Store, open_store, store_exists
from robustq.jobs.text import tables

if TYPE_CHECKING:
    from robustq.jobs.packages.card import Monitoring, Reattack
    from robustq.jobs.packages.make import Made


def choose(url: str, model: str, options: dict[str, Any]) -> tuple[Store | None, Chosen]:
    """The model that is meant, and the store that knows it; None where there is no store, and the model is given."""
    if model.isdecimal():
        store = open_store(url)
        with store.begin() as db:
            return store, chosen_model.model_by_job(db, int(model))
    chosen = chosen_model.model_by_options(options | {"model": model})
    return (open_store(url) if store_exists(url) else None), chosen


def made_text(made: "Made", *, as_json: bool) -> str:
    card = made.card
    if as_json:
        return tables.json_text({"package": str(made.place), "digest": made.digest} | card.model_dump(mode="json"))
    lines = [*card.warnings, f"package {made.place}"]
    for program in card.programs:
        limit = "" if program.tolerance is None else f", at most {program.tolerance:.3g}"
        lines.append(f"  {program.file}: a logit differs from the network's by {program.largest_difference:.3g}{limit}")
        lines += [f"    {row.what:8}  {judged_text(row)}" for row in program.rows]
    lines += signal_lines(card.monitoring)
    return "\n".join([*lines, f"digest {made.digest}", "Keep the digest: `robustq verify` compares it."])


def judged_text(row: "Reattack") -> str:
    """What a program keeps of images, beside its network. Square attacks the program alone: beside what it leaves
    stands what all stored attacks leave of the same images on the network.
    """
    found = f"{100 * row.program.accuracy:.1f} % of {row.program.n}"
    if row.network_accuracy is None:
        return found
    network = f"{100 * row.network_accuracy:.1f} %"
    if row.what == "square":
        more = counted(len(row.differing), "image", "images")
        return f"{found}; all stored attacks leave the network {network}, and {more} fell to Square alone"
    return f"{found}, the network {network}, {counted(len(row.differing), 'image differs', 'images differ')}"


def signal_lines(of: "Monitoring | None") -> list[str]:
    """What each signal flags, a line each: monitoring, never a defence."""
    on = {
        "clean": "clean images",
        "stored": "the stored attack's",
        "square": "Square's queries",
        "adaptive": "who knows it",
    }
    lines: dict[str, list[str]] = {}
    for rate in () if of is None else of.rates:
        lines.setdefault(rate.signal, []).append(f"{100 * rate.flagged.rate:.1f} % of {on[rate.on]}")
    return [f"  signal {name} flags {', '.join(parts)}" for name, parts in lines.items()]


def verified_text(found: Verified, *, as_json: bool) -> str:
    if as_json:
        return tables.json_text(found.as_data())
    lines = [f"package {found.place}", f"digest  {found.digest or 'unknown'}"]
    return "\n".join([*lines, *(f"{one.state:6}  {one.what}: {one.line}" for one in found.findings)])
