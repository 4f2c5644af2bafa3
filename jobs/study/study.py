"""A study as its author wrote it: YAML in, checked data out, every error with its line."""

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, ValidationError, field_validator, model_serializer, model_validator

from robustlib.arguments import COUNT, NOT_NEGATIVE, POSITIVE, check_range
from robustlib.datasets.source import AS_IT_IS, TEST, Reading
from robustlib.names import did_you_mean
from robustq.jobs.errors import SpecError
from robustq.jobs.specs import Choose, Split
from robustq.jobs.study.entries import Count, Examples, Part, Seed, Size, StudyAttack, StudyModel
from robustq.jobs.study.grid import expand_grids
from robustq.jobs.study.yaml_with_lines import Parts, Path_, read_yaml
from robustq.jobs.text.number_fields import Number, Whole, in_range
from robustq.jobs.text.number_parsing import MOST, NotNumber
from robustq.jobs.text.safe_text import brief


class Study(Part):
    """A whole study."""

    name: str = Field(min_length=1, max_length=200, pattern=r"^[\w.-]+$")
    dataset: str = "digits"
    split: Split = TEST
    label: str | None = None
    image: str | None = None
    classes: Literal["remap"] | None = None
    size: Size | None = None
    crop: Count | None = None
    exif_transpose: StrictBool = False
    models: dict[str, StudyModel] = Field(min_length=1)
    attacks: list[StudyAttack] = Field(min_length=1)
    train: dict[str, Any] = Field(default={})
    seeds: list[Seed] = Field(default=[0], min_length=1)
    examples: Examples = 1000
    choose: Choose = "first"
    images: Annotated[Whole, in_range(NOT_NEGATIVE), Field(lt=MOST)] = 0
    batch_size: Count | None = None
    draws: Count = 100
    eot_draws: Count = 20
    shards: Count | None = None
    audit: Literal["quick", "full"] = "quick"
    timeout_seconds: Annotated[Number, in_range(POSITIVE)] | None = None

    @property
    def reading(self) -> Reading:
        """How the data set is read where its files leave that open."""
        return Reading(**{option.name: getattr(self, option.name) for option in fields(Reading)})

    @model_serializer(mode="wrap")
    def without_nothing(self, dump: Any) -> dict[str, Any]:
        """Without what is left as usual of the data set: a study from before it could be chosen is still the same."""
        usual = {"split": TEST, "choose": "first"} | asdict(AS_IT_IS)
        return {name: value for name, value in dump(self).items() if name not in usual or value != usual[name]}

    @model_validator(mode="after")
    def chosen_among_more(self) -> "Study":
        if self.choose != "first" and self.examples == "all":
            raise ValueError(f"choose: {self.choose} has no effect with examples: all")
        return self

    @field_validator("examples")
    @classmethod
    def some(cls, value: int | Literal["all"]) -> int | Literal["all"]:
        if value != "all":
            check_range("", "examples", value, COUNT)
        if value != "all" and value >= MOST:
            raise ValueError(f"expected fewer than {MOST} examples or all, got {value}")
        return value


class Origin:
    """Where each part of a study comes from, for error messages: a line of its file or an option.

    written: what stands in the file for each part that is no text.
    """

    def __init__(
        self, name: str, lines: dict[Path_, int], options: dict[str, str], written: dict[Path_, str] | None = None
    ):
        self.name = name
        self.lines = lines
        self.options = options
        self.written = written or {}

    def error(self, where: Path_, message: str) -> SpecError:
        """The error at the innermost part of `where` that has an option or a line."""
        for n in range(len(where), -1, -1):
            if n and str(where[n - 1]) in self.options:
                return SpecError(f"{self.options[str(where[n - 1])]}: {message}")
            if where[:n] in self.lines:
                return SpecError(f"{self.name}:{self.lines[where[:n]]}: {message}")
        return SpecError(f"{self.name}: {message}")


def load_study(path: Path, changes: dict[str, Any]) -> tuple[Study, Origin]:
    """Read a study; `changes` are the command line's: they replace top-level entries, `epochs` every training's.

    Raises SpecError that names file and line.
    """
    data, parts = read_yaml(path)
    # What the command line says is in no line of the file.
    lines = {where: line for where, line in parts.lines.items() if not where or where[0] not in changes}
    written = {where: text for where, text in parts.written.items() if where[:1] and where[0] not in changes}
    options = {name: f"--{name.replace('_', '-')}" for name in changes}
    origin = Origin(str(path), lines, options, written)
    if not isinstance(data, dict):
        raise origin.error((), "expected a study: name, dataset, models, attacks")
    data = {"name": path.stem} | data | {name: value for name, value in changes.items() if name != "epochs"}
    data, points = expand_grids(data, Parts(lines, written), origin.error)
    origin = Origin(str(path), points.lines, options, points.written)
    if "epochs" in changes:
        models = data.get("models")
        parts = list(models.values()) if isinstance(models, dict) else []
        trainings = [part["train"] for part in parts if isinstance(part, dict) and isinstance(part.get("train"), dict)]
        if not trainings:
            raise SpecError(f"--epochs has no effect: {path} trains no model")
        for train in trainings:
            train["epochs"] = changes["epochs"]
    return check(data, origin), origin


def check(data: dict[str, Any], origin: Origin) -> Study:
    """The study as checked data, or SpecError for the first thing wrong with it."""
    try:
        study = Study.model_validate(data)
    except ValidationError as error:
        # A name may look like something else: no, 2024, 1e1. It is what is written.
        names = [place_of(data, one["loc"]) for one in error.errors() if one["type"] == "string_type"]
        if names := [where for where in names if where in origin.written]:
            for where in names:
                put(data, where, origin.written[where])
            return check(data, origin)
        first = error.errors()[0]
        written = origin.written.get(place_of(data, first["loc"]))
        raise origin.error(first["loc"], explain(first, written)) from error
    for label, model in study.models.items():
        for where, value in parts_of(model.options, ("models", label, "options")):
            if isinstance(value, float) and not math.isfinite(value):
                raise origin.error(where, f"{'.'.join(map(str, where))}: expected a finite number, got {value}")
    return study


def place_of(data: Any, loc: tuple[Any, ...]) -> Path_:
    """Where in the file a part of the study stands: what may be a list may also stand by itself."""
    place: Path_ = ()
    for part in loc:
        if part in data if isinstance(data, dict) else isinstance(data, list) and isinstance(part, int):
            data, place = data[part], (*place, part)
    return place


def put(data: Any, where: Path_, value: Any) -> None:
    for part in where[:-1]:
        data = data[part]
    data[where[-1]] = value


def parts_of(value: Any, where: Path_) -> Iterator[tuple[Path_, Any]]:
    """Every part of plain data that is no list or dict, with its place."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        yield where, value
        return
    for key, part in items:
        yield from parts_of(part, (*where, key))


def known_entries(loc: tuple[Any, ...]) -> list[str]:
    """The entries that there are beside an unknown one."""
    part: Any = {1: Study, 3: StudyModel if loc[0] == "models" else None}.get(len(loc))
    return list(part.model_fields) if part is not None else []


def explain(error: Any, written: str | None = None) -> str:
    """A validation error in our words: what was expected, what came. written: as it stands in the file."""
    name = ".".join(str(part) for part in error["loc"])
    match error["type"]:
        case "extra_forbidden":
            known = known_entries(error["loc"])
            there = f", there are: {', '.join(known)}" if known else ""
            return f"unknown entry {error['loc'][-1]!r} ({name}){there}{did_you_mean(error['loc'][-1], known)}"
        case "missing":
            return f"{name} is missing"
        case "value_error" if isinstance(error["ctx"]["error"], NotNumber):
            return f"{name}: {error['ctx']['error'].words(written)}"
        case "value_error":
            return f"{name}: {error['ctx']['error']}" if name else str(error["ctx"]["error"])
        case "dict_type" | "model_type":
            return f"{name}: expected entries as {{name: value}}, got {brief(error['input'])}"
        case "list_type" | "tuple_type":
            return f"{name}: expected a list, got {brief(error['input'])}"
        case "literal_error":
            meant = did_you_mean(error["input"], re.findall(r"'([^']*)'", error["ctx"]["expected"]))
            return f"{name}: {lowered(error['msg'])}, got {brief(error['input'])}{meant}"
    return f"{name}: {lowered(error['msg'])}, got {brief(error['input'])}"


def lowered(message: str) -> str:
    return f"{message[0].lower()}{message[1:]}"
