"""The study file's JSON Schema (draft 7), by which editors complete and check it: read off what checks studies.

The entries are those of the study's own data model, names and parameters those of the kernels' registries, ranges those
of their table. What depends on several entries at once, such as a model's weights or its training, only a submission
checks.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from inspect import Parameter
from typing import Any

from pydantic import TypeAdapter

from robustlib.arguments import NORMS, RANGES, Range, keywords
from robustlib.attacks import ATTACKS, ENSEMBLES, corruptions
from robustlib.audit.audit import audit
from robustlib.datasets.load import DATASETS, PATH_DATASETS
from robustlib.defences import DEFENCES
from robustlib.defences.smoothing import certify
from robustlib.evaluation.disturbed_images import class_attacks
from robustlib.explanations import EXPLANATIONS
from robustlib.models import MODELS
from robustlib.settings import AUDIT, CERTIFY, EXPLAIN, EXPLANATION_ATTACK, NOISE, TRANSFER, TrainSettings
from robustlib.training import OBJECTIVES
from robustq.jobs.study.entries import StudyAttack, StudyDefence, StudyModel
from robustq.jobs.study.grid import GRID, NO_AXIS
from robustq.jobs.study.study import Study
from robustq.jobs.submission import explanation_params
from robustq.jobs.submission.validation.parameters import attack_parameters, training_parameters, written

Schema = dict[str, Any]

NUMERAL = r"(\d+\.?\d*|\.\d+)"
WRITTEN = {"type": "string", "pattern": rf"^\s*[-+]?{NUMERAL}([eE][-+]?\d+)?(\s*/\s*{NUMERAL})?\s*$"}  # as 8/255
PLAIN = ["string", "number", "boolean"]  # a name may look like something else: it is what is written
BOUNDS = {"lt": "exclusiveMaximum", "le": "maximum", "gt": "exclusiveMinimum", "ge": "minimum"}  # as pydantic has them


def study_schema() -> Schema:
    """The schema of a study file."""
    found = entries(Study)
    kinds = [f"{kind}:" for kind in PATH_DATASETS]
    found["dataset"] = {"anyOf": [{"enum": list(DATASETS)}, {"type": "string", "pattern": f"^({'|'.join(kinds)})"}]}
    found["models"] = {"type": "object", "minProperties": 1, "additionalProperties": model_schema()}
    found["attacks"] = {"type": "array", "minItems": 1, "items": by_name(attack_entries(), {})}
    found["train"] = train_schema()
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A study of robustq",
        **closed(found, ["models", "attacks"]),  # its name is the file's where none is given
    }


def entries(part: type[Study] | type[StudyModel] | type[StudyAttack] | type[StudyDefence]) -> dict[str, Schema]:
    """What a part of a study may hold, as pydantic has it, with numbers as people may write them."""
    whole = part.model_json_schema()
    return {name: readable(one, whole.get("$defs", {})) for name, one in whole["properties"].items()}


def readable(one: Any, parts: Mapping[str, Any] | None = None) -> Any:
    """A schema without titles and references, in which a number may be text that is one, such as 8/255."""
    if isinstance(one, list):
        return [readable(each, parts) for each in one]
    if not isinstance(one, dict):
        return one
    if "$ref" in one:
        return readable((parts or {})[one["$ref"].rpartition("/")[2]], parts)
    found = {
        BOUNDS.get(key, key): {name: readable(each, parts) for name, each in value.items()}
        if key == "properties"
        else readable(value, parts)
        for key, value in one.items()
        if key not in ("title", "description")
    }
    if "prefixItems" in found:  # of a later draft than editors know
        found["items"] = found.pop("prefixItems")
    if found.get("type") in ("number", "integer"):
        default = {"default": found.pop("default")} if "default" in found else {}
        return {"anyOf": [found, WRITTEN], **default}
    if found.get("type") == "string" and not {"enum", "const"} & found.keys():
        found["type"] = PLAIN
    return found


def closed(properties: Mapping[str, Schema], required: Iterable[str] = ()) -> Schema:
    """An object with these entries and no others."""
    found: Schema = {"type": "object", "properties": dict(properties), "additionalProperties": False}
    return found | ({"required": list(required)} if required else {})


def gridded(properties: Mapping[str, Schema]) -> dict[str, Schema]:
    """Settings that may be given as a grid too: lists of values, of which each combination is meant."""
    lists = {name: {"type": "array", "minItems": 1, "items": one} for name, one in properties.items()}
    return {**properties, GRID: closed({name: one for name, one in lists.items() if name not in NO_AXIS})}


def by_name(known: Mapping[str, Mapping[str, Schema]], shared: Mapping[str, Schema], *, grids: bool = True) -> Schema:
    """An entry whose `name` says what else it may hold. grids: whether that may be given as a grid too."""
    name: Schema = {"enum": list(known)}
    cases = [
        {
            "if": {"properties": {"name": {"const": one}}, "required": ["name"]},
            "then": closed({"name": name, **(gridded if grids else dict)({**shared, **own})}),
        }
        for one, own in known.items()
    ]
    return {"type": "object", "properties": {"name": name}, "required": ["name"], "allOf": cases}


def one_or_many(one: Schema) -> Schema:
    return {"anyOf": [one, {"type": "array", "items": one}]}


def parameter(name: str, kind: Any, default: Any = Parameter.empty) -> Schema:
    """A parameter by its annotation, within the range of the kernels' table."""
    found = readable(TypeAdapter(written(kind)).json_schema())
    numbers = [one for one in (found, *found.get("anyOf", ())) if one.get("type") in ("integer", "number")]
    known = RANGES.get(name, Range())
    for one in numbers:
        ends = {
            "minimum": known.least,
            "maximum": known.most,
            "exclusiveMinimum": known.above,
            "exclusiveMaximum": known.below,
        }
        one |= {word: end for word, end in ends.items() if abs(end) != float("inf")}
    plain = default is None or isinstance(default, bool | int | float | str)
    return found | ({"default": default} if plain and default is not Parameter.empty else {})


def parameters(known: Mapping[str, Parameter]) -> dict[str, Schema]:
    return {name: parameter(name, p.annotation, p.default) for name, p in known.items()}


def attack_entries() -> dict[str, dict[str, Schema]]:
    """What may stand beside each attack's name."""
    fixed, found = entries(StudyAttack), {}
    eps = {"eps": one_or_many(parameter("eps", float))}
    for name, attack in (ATTACKS | ENSEMBLES).items():
        own = parameters(attack_parameters(attack))
        if attack.takes_eps:
            own |= {"norm": {"enum": [*attack.norms, None]}, "eps": {"anyOf": [*eps["eps"]["anyOf"], {"type": "null"}]}}
        own |= {"restarts": fixed["restarts"]} if attack.restarts else {}
        own |= {"surrogate": fixed["surrogate"]} if name == TRANSFER else {}
        found[name] = own
    kind, severity = {"enum": list(corruptions.KINDS)}, {"enum": list(corruptions.SEVERITIES)}
    for name, values in (("kind", kind), ("severity", severity)):
        found["corruption"][name] = {"anyOf": [*one_or_many(values)["anyOf"], {"const": "all"}]}
    votes = {name: p for name, p in keywords(certify).items() if name != "draws"}
    found[CERTIFY] = parameters(votes) | {"norm": {"const": "L2"}} | eps
    queries = {"queries": keywords(audit)["queries"]}
    found[AUDIT] = parameters(queries) | {"norm": {"enum": list(NORMS)}} | eps
    found[EXPLAIN] = explanation_entries() | eps
    return found


def explanation_entries() -> dict[str, Schema]:
    """What may stand in an explanation entry, beside its radii."""
    disturb = {name: parameters(attack_parameters(attack)) for name, attack in class_attacks().items()}
    disturb = {NOISE: {}, **disturb, EXPLANATION_ATTACK: parameters(explanation_params.attack_settings())}
    methods = {name: parameters(explanation.settings) for name, explanation in EXPLANATIONS.items()}
    lists = {"method": one_or_many(named(methods)), "against": one_or_many(named(disturb))}
    return lists | parameters(explanation_params.measure_settings()) | {"norm": {"enum": list(NORMS)}}


def named(known: Mapping[str, Mapping[str, Schema]]) -> Schema:
    """A name, by itself or with its parameters."""
    return {"anyOf": [{"enum": list(known)}, by_name(known, {}, grids=False)]}


def train_schema() -> Schema:
    """A training's settings and whatever the objectives' attacks take: which of them, the objective says."""
    own = {f.name: parameter(f.name, f.type, f.default) for f in fields(TrainSettings) if f.name != "attack"}
    own["objective"] = {"enum": list(OBJECTIVES), "default": TrainSettings.objective}
    taken: dict[str, Schema] = {}
    for objective in OBJECTIVES:
        for name, p in training_parameters(objective).items():
            taken.setdefault(name, parameter(name, p.annotation))
    return closed(gridded(taken | own))


def model_schema() -> Schema:
    """One of a study's models."""
    found = entries(StudyModel)
    found["arch"] = {"anyOf": [{"enum": [*MODELS, None]}, {"type": "string", "pattern": "^torchvision:"}]}
    train = train_schema()
    found["train"] = {"anyOf": [train, {"type": "null"}]}
    found["normalize"]["anyOf"] = [
        closed({name: one_or_many(readable({"type": "number"})) for name in ("mean", "std")}, ["mean", "std"])
        if one.get("type") == "object"
        else one
        for one in found["normalize"]["anyOf"]
    ]
    found["defence"] = one_or_many(by_name({name: parameters(keywords(f)) for name, f in DEFENCES.items()}, {}))
    return closed(gridded(found))
