"""Grids of a study: one model or attack for each combination of settings, as if each had been written by hand.

`grid: {steps: [10, 20]}` may stand wherever settings do: in a model's entry, its `train`, `options` or a defence, in an
attack, and in the study's own `train`, for every model that is trained. A model `robust` becomes `robust[steps=10]` and
so on (robustq.jobs.text.grid_names reads these names).
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from robustq.jobs.study.yaml_with_lines import Parts, Path_
from robustq.jobs.text.grid_names import grid_name

GRID = "grid"
NO_AXIS = (GRID, "train", "options", "defence")  # of a model: they are settings themselves, with grids of their own
MOST = 1000  # points of one entry
Fail = Callable[[Path_, str], Exception]


@dataclass(frozen=True)
class Axis:
    """One setting and its values. where: the dict that it is set in, within its entry.  source: where its values stand
    in the file.
    """

    where: Path_
    name: str
    values: list[Any]
    source: Path_


def expand_grids(data: dict[str, Any], parts: Parts, fail: Fail) -> tuple[dict[str, Any], Parts]:
    """The study without grids, and its parts as the file has them.

    fail: makes the error of what a place in the file has wrong.
    """
    common = dict(data.get("train") or {}) if isinstance(data.get("train"), dict) else {}
    if not has_grid(data.get("models")) and not has_grid(data.get("attacks")) and GRID not in common:
        return data, parts
    found = dict(data)
    made = Parts({w: n for w, n in parts.lines.items() if w[:1] not in (("models",), ("attacks",))})
    made.written |= {w: text for w, text in parts.written.items() if w[:1] not in (("models",), ("attacks",))}
    shared = list(axes(common, (), ("train",), fail)) if GRID in common else []
    if GRID in common:
        found["train"] = {name: value for name, value in common.items() if name != GRID}
    if isinstance(data.get("models"), dict):
        found["models"] = {}
        for label, entry in data["models"].items():
            source = ("models", label)
            mine, own = shared_axes(shared, entry) + list(grids_of(entry, source, fail)), own_parts(parts, source)
            for point, name in points(entry, mine, source, parts, fail):
                if name in found["models"] or (name != label and name in data["models"]):
                    raise fail(source, f"two models are called {name!r}")
                found["models"][name] = point
                carry_over(own, parts, made, ("models", name), mine, point)
    if isinstance(data.get("attacks"), list):
        found["attacks"] = []
        for i, entry in enumerate(data["attacks"]):
            source = ("attacks", i)
            gridded = isinstance(entry, dict) and GRID in entry
            mine, own = list(axes(entry, (), source, fail)) if gridded else [], own_parts(parts, source)
            for point, _ in points(entry, mine, source, parts, fail):
                carry_over(own, parts, made, ("attacks", len(found["attacks"])), mine, point)
                found["attacks"].append(point)
    for top in ("models", "attacks"):
        if (top,) in parts.lines:
            made.lines[(top,)] = parts.lines[(top,)]
    return found, made


def has_grid(part: Any) -> bool:
    """Whether a grid stands anywhere in a part of the study."""
    if isinstance(part, dict):
        return GRID in part or any(map(has_grid, part.values()))
    return isinstance(part, list) and any(map(has_grid, part))


def grids_of(entry: Any, source: Path_, fail: Fail) -> Iterator[Axis]:
    """The axes of a model: of its own entry, its training, its options and its defences."""
    if not isinstance(entry, dict):
        return
    places: list[Path_] = [(), ("train",), ("options",), ("defence",)]
    if isinstance(entry.get("defence"), list):
        places += [("defence", i) for i in range(len(entry["defence"]))]
    for where in places:
        part = part_of(entry, where)
        if isinstance(part, dict) and GRID in part:
            if where == ("options",) and not isinstance(part[GRID], dict):
                continue  # an argument of the factory
            yield from axes(part, where, (*source, *where), fail)


def part_of(entry: Any, where: Path_) -> Any:
    """What lies at a place in an entry; None where nothing does."""
    for step in where:
        if isinstance(entry, dict):
            entry = entry.get(step)
        elif isinstance(entry, list) and isinstance(step, int):
            entry = entry[step]
        else:
            return None
    return entry


def axes(part: Mapping[str, Any], where: Path_, source: Path_, fail: Fail) -> Iterator[Axis]:
    """The axes of one grid. source: where the dict that has it stands in the file."""
    grid, place = part[GRID], (*source, GRID)
    named = ".".join(map(str, place))
    if not isinstance(grid, dict) or not grid:
        raise fail(place, f"{named}: expected settings with lists of values, as {{steps: [10, 20]}}, got {grid!r}")
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise fail((*place, name), f"{named}.{name}: expected a list of values, got {values!r}")
        if name in part or name in NO_AXIS:
            why = "is set beside the grid too" if name in part else "is no setting that a grid can have"
            raise fail((*place, name), f"{named}.{name}: {name} {why}")
        for i, value in enumerate(values):
            if any(value == other and type(value) is type(other) for other in values[:i]):
                raise fail((*place, name, i), f"{named}.{name}: {value!r} is given twice")
        yield Axis(where, name, values, (*place, name))


def shared_axes(shared: list[Axis], entry: Any) -> list[Axis]:
    """Axes of the study's own `train`, for a model that is trained and does not say these settings itself."""
    train = entry.get("train") if isinstance(entry, dict) else None
    if not isinstance(train, dict):
        return []
    own = train.keys() | (train[GRID].keys() if isinstance(train.get(GRID), dict) else set())
    return [Axis(("train",), axis.name, axis.values, axis.source) for axis in shared if axis.name not in own]


def points(entry: Any, mine: list[Axis], source: Path_, parts: Parts, fail: Fail) -> Iterator[tuple[Any, str]]:
    """Every combination, with the name of its model."""
    label = str(source[-1])
    if not mine:
        yield entry, label
        return
    many = 1
    for axis in mine:
        many *= len(axis.values)
    if many > MOST:
        raise fail((*source,), f"{'.'.join(map(str, source))}: expected a grid of at most {MOST} points, got {many}")
    for chosen in product(*(range(len(axis.values)) for axis in mine)):
        point = without_grids(entry, mine)
        settings = {}
        for axis, i in zip(mine, chosen, strict=True):
            part_of(point, axis.where)[axis.name] = axis.values[i]
            settings[shown(axis, mine)] = parts.written.get((*axis.source, i)) or text_of(axis.values[i])
        yield point, grid_name(label, settings)


def shown(axis: Axis, mine: list[Axis]) -> str:
    """What names call a setting: with its place where another has the same name."""
    alone = sum(other.name == axis.name for other in mine) == 1
    return axis.name if alone else ".".join(map(str, (*axis.where, axis.name)))


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)


def without_grids(part: Any, mine: list[Axis], where: Path_ = ()) -> Any:
    """A copy of an entry without its grids: those that axes were made of."""
    if isinstance(part, list):
        return [without_grids(value, mine, (*where, i)) for i, value in enumerate(part)]
    if not isinstance(part, dict):
        return part
    gone = {axis.where for axis in mine}
    return {
        name: without_grids(value, mine, (*where, name))
        for name, value in part.items()
        if not (name == GRID and where in gone and isinstance(value, dict))
    }


def own_parts(parts: Parts, source: Path_) -> Parts:
    """The parts of one entry but those of its grids, by their places in it."""
    n = len(source)

    def mine(where: Path_) -> bool:
        return where[:n] == source and GRID not in where[n:]

    lines = {where[n:]: line for where, line in parts.lines.items() if mine(where)}
    return Parts(lines, {where[n:]: text for where, text in parts.written.items() if mine(where)})


def carry_over(own: Parts, parts: Parts, made: Parts, new: Path_, mine: list[Axis], point: Any) -> None:
    """The parts of an entry under its new name; a setting has those of its value in the grid."""
    made.lines |= {(*new, *where): line for where, line in own.lines.items()}
    made.written |= {(*new, *where): text for where, text in own.written.items()}
    for axis in mine:
        place, value = (*new, *axis.where, axis.name), part_of(point, axis.where)[axis.name]
        source = (*axis.source, next(i for i, one in enumerate(axis.values) if one is value))
        made.lines[place] = parts.lines.get(source, 0)
        if source in parts.written:
            made.written[place] = parts.written[source]
