"""An explanation entry of a study, checked against the kernels and spelt out: a job for each method at each radius."""

from collections.abc import Callable, Iterable, Iterator
from inspect import Parameter
from typing import Any

from robustlib.addresses import is_address
from robustlib.arguments import POSITIVE, check_queries, check_range
from robustlib.attacks import ATTACKS
from robustlib.attacks.types import Stage
from robustlib.datasets.load import Dataset
from robustlib.defences import RANDOMISED
from robustlib.evaluation.disturbed_images import check_against
from robustlib.evaluation.explanation_stability import USUAL, stability_batches
from robustlib.explanations import EXPLANATIONS
from robustlib.explanations.attack import explanation_attack
from robustlib.explanations.option_checks import check_layer, check_options
from robustlib.gpu_failures import asks_for_a_gpu
from robustlib.models.loading import users_model
from robustlib.names import unknown
from robustlib.settings import EXPLAIN, EXPLANATION_ATTACK, GRADIENT_SUMS, NOISE
from robustq.jobs.running.inputs import build_model, load_data, unmeasured
from robustq.jobs.specs import AttackSpec, DataRef, ModelSpec
from robustq.jobs.study.study import StudyAttack
from robustq.jobs.study.yaml_with_lines import Path_
from robustq.jobs.submission.validation.parameters import attack_parameters, check_params, check_radius

LISTS = ("method", "against")  # entries that hold names, each by itself or with parameters
SETTINGS = ("target", "share", "radius", "curve_steps", "baseline")
NOT_SET = ("explain", "norm", "eps", "share", "surrogate")  # of the attack: given by the job, or by its method

Check = Callable[..., Any]  # (where, function, *args): calls it, and what it finds wrong gets the place in the study


def explanation_specs(entry: StudyAttack, where: Path_, check: Check) -> Iterator[AttackSpec]:
    """The jobs of one entry, every parameter spelt out. NOISE is always among what explanations are compared under."""
    check(where, check_entry, entry)
    norm = entry.norm or "Linf"
    named = {name: list(named_parts(entry, name, where, check)) for name in LISTS}
    methods = [check(place, method_params, name, params) for place, name, params in named["method"]]
    against = [{"name": NOISE, "params": {}}]
    against += [
        check(place, against_params, norm, name, params)
        for place, name, params in named["against"]
        if name != NOISE or params
    ]
    check((*where, "against"), check_against, [one["name"] for one in against], norm)
    rest = {name: value for name, value in entry.params.items() if name not in LISTS}
    settings = check(where, settings_of, rest, [name for _, name, _ in named["method"]])
    for eps in entry.eps or ():
        check((*where, "eps"), check_range, EXPLAIN, "eps", eps, POSITIVE)
        for method in methods:
            params = method | {"against": against} | settings
            split_sums = method["method"] in GRADIENT_SUMS
            spec = AttackSpec(name=EXPLAIN, norm=norm, eps=eps, params=params, split_sums=split_sums)
            check((*where, "eps"), check_radius, spec)
            yield spec


def check_entry(entry: StudyAttack) -> None:
    """Raises ValueError for entries that attacks have and explanations have not."""
    if entry.eps is None:
        raise ValueError(f"{EXPLAIN} expects eps, a radius or a list of some")
    if entry.restarts != 1 or entry.surrogate is not None:
        raise ValueError(f"{EXPLAIN} has no restarts and no surrogate")


def named_parts(
    entry: StudyAttack, name: str, where: Path_, check: Check
) -> Iterator[tuple[Path_, str, dict[str, Any]]]:
    """The parts of a list of names, each with its place and parameters; a part alone needs no list."""
    usual = {"method": [Stage(stability_batches).defaults["method"]], "against": [one for one, _ in USUAL]}
    given = entry.params.get(name, usual[name])
    many = isinstance(given, list | tuple)
    check((*where, name), check_some, name, given)
    for place, part in enumerate(given if many else [given]):
        here = (*where, name, place) if many else (*where, name)
        yield here, *check(here, name_and_params, name, part)


def check_some(what: str, given: Any) -> None:
    if isinstance(given, list | tuple) and not given:
        raise ValueError(f"{EXPLAIN}: expected {what} as a name or a list of some, got an empty list")


def name_and_params(what: str, part: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(part, str):
        return part, {}
    if isinstance(part, dict) and isinstance(part.get("name"), str):
        return part["name"], {name: value for name, value in part.items() if name != "name"}
    raise ValueError(f"{EXPLAIN}: expected {what} as a name or as {{name: NAME, PARAMETER: VALUE}}, got {part!r}")


def method_params(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """A method with every option spelt out."""
    if name not in EXPLANATIONS:
        raise ValueError(unknown("method", name, EXPLANATIONS))
    return {"method": name, "options": check_params(name, dict(EXPLANATIONS[name].settings), given)}


def against_params(norm: str, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """What images are disturbed by, with every parameter spelt out."""
    check_against([name], norm)
    if name == NOISE:
        if given:
            raise ValueError(f"against: {NOISE} has no parameters, it has the norm and the radius of the job")
        return {"name": name, "params": {}}
    known = attack_settings() if name == EXPLANATION_ATTACK else attack_parameters(ATTACKS[name])
    params = check_params(name, known, given)
    if name in ATTACKS and (first_step := ATTACKS[name].first_step) is not None:
        check_queries(name, params["queries"], first_step(params))
    return {"name": name, "params": params}


def attack_settings() -> dict[str, Parameter]:
    """Parameters of the attack on the explanation that a study may set."""
    return {name: p for name, p in Stage(explanation_attack).settings.items() if name not in NOT_SET}


def measure_settings() -> dict[str, Parameter]:
    """Parameters of an explanation job beside its lists."""
    known = Stage(stability_batches).settings
    return {name: known[name] for name in SETTINGS}


def settings_of(given: dict[str, Any], methods: Iterable[str]) -> dict[str, Any]:
    """The job's own settings. Raises ValueError for others, with the place of what is an option of a method."""
    known = measure_settings()
    for name in given.keys() - known.keys():
        for method in methods:
            if name in EXPLANATIONS[method].settings:
                raise ValueError(
                    f"{EXPLAIN} has no parameter {name!r}, {method} has: expected it there, "
                    f"method: {{name: {method}, {name}: {given[name]}}}"
                )
    return check_params(EXPLAIN, known, given, (*LISTS, "norm", "eps"))


def check_explained(spec: AttackSpec, ref: DataRef, models: Iterable[tuple[str, ModelSpec]]) -> None:
    """Raises ValueError where a model, by its name in the study, or its images cannot be explained so."""
    method, options = spec.params["method"], spec.params["options"]
    dataset = load_data(ref)
    shape = tuple(dataset.images.shape[1:])
    check_options(method, options, shape)
    for label, model in models:
        if model.dropout_at_inference is not None or any(part.name in RANDOMISED for part in model.defence):
            raise ValueError(f"{EXPLAIN} expects models that always give the same answer, {label} is randomised")
        code = model.code
        if code is not None and (code.is_onnx or code.is_package or is_address(code.reference)):
            raise ValueError(
                f"{EXPLAIN} expects networks, whose weights it randomises for its checks; {label} only answers: "
                "name the network that it was made from"
            )
        if method == "grad-cam":
            look_for_layer(model, dataset, options["layer"])


def look_for_layer(model: ModelSpec, dataset: Dataset, layer: str | None) -> None:
    try:
        with users_model(model.reference):
            check_layer(build_model(unmeasured(model, dataset), dataset, 0), tuple(dataset.images.shape[1:]), layer)
    except ValueError as error:
        if not asks_for_a_gpu(error):  # which is told of the model itself
            raise
