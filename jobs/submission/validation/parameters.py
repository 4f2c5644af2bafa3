"""Parameters of a study's attacks, defences and trainings, checked against the kernels and spelt out."""

import inspect
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import fields, replace
from functools import reduce
from operator import or_
from typing import Any, Literal, get_args, get_origin

import torch
from pydantic import TypeAdapter

from robustlib.arguments import (
    NORMS,
    POSITIVE,
    Norm,
    check_arguments,
    check_norm,
    check_queries,
    check_range,
    check_value,
    check_width,
    keywords,
)
from robustlib.attacks import ATTACKS, ENSEMBLES, corruptions
from robustlib.attacks.types import Stage
from robustlib.audit.audit import audit
from robustlib.defences import DEFENCES
from robustlib.defences.smoothing import certify
from robustlib.names import did_you_mean, unknown
from robustlib.settings import AUDIT, CERTIFY, EXPLAIN, TRANSFER, TrainSettings
from robustlib.training import OBJECTIVES
from robustlib.training.objectives import OF_TRAINING, attack_of
from robustq.jobs.specs import AttackSpec, DefenceSpec
from robustq.jobs.text.number_parsing import fitting

ENTRIES = ("norm", "eps", "restarts", "surrogate")  # of a study's attack, beside its parameters
IN_THE_SPEC = frozenset({"norm", "eps", "surrogate"})  # what it has places of its own for


def check_params(
    owner: str, known: dict[str, inspect.Parameter], given: dict[str, Any], beside: Iterable[str] = ()
) -> dict[str, Any]:
    """The given parameters over the defaults. Raises ValueError for an unknown name, a value of the wrong type, or one
    that the kernels refuse. beside: entries that stand where parameters do, one of which may have been meant.
    """
    given = dict(given)
    for name, value in given.items():
        if name not in known:
            meant = did_you_mean(name, [*known, *beside])
            raise ValueError(f"{owner} has no parameter {name!r}, it has: {', '.join(sorted(known)) or 'none'}{meant}")
        # Any norm that there is: which of them it takes is asked below, with the words for it.
        kind: Any = Norm if name == "norm" else written(known[name].annotation)
        given[name] = value = fitting(owner, name, kind, spread(kind), value)
        try:
            whole = isinstance(value, int) and not isinstance(value, bool)
            TypeAdapter(kind).validate_python(value, strict=not whole or float not in spread(kind))
        except ValueError as error:
            choices = get_args(kind) if get_origin(kind) is Literal else ()
            expected = f"of type {getattr(kind, '__name__', str(kind))}"
            expected = f"to be one of {', '.join(map(str, choices))}" if choices else expected
            meant = did_you_mean(value, choices)
            raise ValueError(f"{owner}: expected {name} {expected}, got {value!r}{meant}") from error
    check_arguments(owner, known, given)
    return {name: p.default for name, p in known.items()} | given


def written(kind: Any) -> Any:
    """The type of a parameter as far as a study can hold it: without the tensors that it may be besides."""
    kinds = get_args(kind)
    return reduce(or_, (one for one in kinds if one is not torch.Tensor)) if torch.Tensor in kinds else kind


def spread(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) or (kind,)


def attack_parameters(attack: Stage) -> dict[str, inspect.Parameter]:
    """Parameters that a study may set."""
    return {name: p for name, p in attack.settings.items() if name not in IN_THE_SPEC}


def complete_attack(name: str, norm: Any, eps: float | None, restarts: int, given: dict[str, Any]) -> AttackSpec:
    """The attack as a spec with every parameter spelt out."""
    if name == CERTIFY:
        return complete_certificate(norm, eps, restarts, given)
    if name == AUDIT:
        return complete_audit(norm, eps, restarts, given)
    if name not in ATTACKS and name not in ENSEMBLES:
        raise ValueError(unknown("attack", name, [*ATTACKS, *ENSEMBLES, CERTIFY, AUDIT, EXPLAIN]))
    attack = ATTACKS.get(name) or ENSEMBLES[name]
    if not attack.restarts and restarts != 1:
        raise ValueError(f"{name} has no restarts: it does the same again")
    params = check_params(name, attack_parameters(attack), given, ENTRIES)
    if name in ATTACKS and (first_step := ATTACKS[name].first_step) is not None:
        check_queries(name, params["queries"], first_step(params))
    if not attack.takes_eps:
        if norm is not None or eps is not None:
            raise ValueError(f"{name} has no norm or eps")
        return AttackSpec(name=name, restarts=restarts, params=params)
    norm = norm or attack.defaults["norm"]
    check_norm(name, norm, attack.norms)
    eps = attack.defaults["eps"] if eps is None else eps
    whole_steps = name == TRANSFER and norm == "L1" and params["queries"] > 1
    return AttackSpec(name=name, norm=norm, eps=eps, restarts=restarts, params=params, whole_steps=whole_steps)


def check_radius(attack: AttackSpec) -> None:
    """Raises ValueError for a radius that the attack does not take, as it would itself."""
    if attack.eps is not None:
        check_value(attack.name, "eps", float, attack.eps)
        check_width(attack.name, "eps", attack.norm, attack.eps)
    if attack.name == AUDIT:
        check_range(AUDIT, "eps", attack.eps, POSITIVE)


def spread_params(name: str, given: dict[str, Any]) -> list[dict[str, Any]]:
    """The parameters of each evaluation that an entry means: corruptions have kinds and severities, lists or all."""
    found = [given]
    for param, known in (
        (("kind", corruptions.KINDS), ("severity", corruptions.SEVERITIES)) if name == "corruption" else ()
    ):
        if param in given:
            values = known if given[param] == "all" else given[param]
            values = values if isinstance(values, list | tuple) else [values]
            found = [params | {param: value} for params in found for value in values]
    return found


def complete_certificate(norm: Any, eps: float | None, restarts: int, given: dict[str, Any]) -> AttackSpec:
    """Randomised smoothing's certificate as an evaluation: it holds in L2, at a radius."""
    if norm not in (None, "L2") or eps is None or restarts != 1:
        raise ValueError(f"{CERTIFY} expects norm L2, eps, and no restarts")
    known = {name: p for name, p in keywords(certify).items() if name != "draws"}
    return AttackSpec(name=CERTIFY, norm="L2", eps=eps, params=check_params(CERTIFY, known, given))


def complete_audit(norm: Any, eps: float | None, restarts: int, given: dict[str, Any]) -> AttackSpec:
    """An audit as an evaluation: its number is the lowest of all that it tries within a radius."""
    norm = norm or "Linf"
    if norm not in NORMS or eps is None or restarts != 1:
        raise ValueError(f"{AUDIT} expects a norm ({', '.join(NORMS)}), an eps above 0, and no restarts")
    known = {"queries": keywords(audit)["queries"]}
    params = check_params(AUDIT, known, given)
    return AttackSpec(name=AUDIT, norm=norm, eps=eps, params=params, surrogate_gradients=True)


def complete_defence(defence: DefenceSpec) -> DefenceSpec:
    """The defence with every parameter spelt out."""
    if defence.name not in DEFENCES:
        raise ValueError(unknown("defence", defence.name, DEFENCES))
    known = keywords(DEFENCES[defence.name])
    return DefenceSpec(name=defence.name, params=check_params(defence.name, known, defence.params))


def has_curve(attack: AttackSpec) -> bool:
    """Whether several radii of this attack are one search.

    Not in L1, where a larger radius need not find what a smaller one does.
    """
    known = ATTACKS.get(attack.name) or ENSEMBLES.get(attack.name)
    return attack.name == CERTIFY or (known is not None and known.one_search and attack.norm != "L1")


def complete_training(plain: dict[str, Any], attack: dict[str, Any]) -> TrainSettings:
    """Training settings with the objective's attack parameters checked: these first, since the radius of the validation
    may have come from theirs.
    """
    kinds = {f.name: f.type for f in fields(TrainSettings)}
    plain = {name: fitting("", name, kinds[name], spread(kinds[name]), value) for name, value in plain.items()}
    for name, value in plain.items():
        check_written(name, kinds[name], value)
    objective = str(plain.get("objective", TrainSettings.objective))
    if objective not in OBJECTIVES:
        raise ValueError(unknown("objective", objective, OBJECTIVES))
    known = training_parameters(objective)
    if not known and attack:
        known_names = sorted(f.name for f in fields(TrainSettings) if f.name != "attack")
        wrong = min(attack)
        meant = did_you_mean(wrong, known_names)
        raise ValueError(f"training has no setting {wrong!r}, it has: {', '.join(known_names)}{meant}")
    checked = check_params(f"training on {objective}", known, attack, kinds)
    settings = TypeAdapter(TrainSettings).validate_python(plain)
    return replace(settings, attack={name: checked[name] for name in attack})


def check_written(name: str, kind: Any, value: Any) -> None:
    """Raises ValueError for a text where a number is meant, which would be read as one."""
    words = [word for one in spread(kind) if get_origin(one) is Literal for word in get_args(one)]
    if isinstance(value, str) and {int, float} & set(spread(kind)) and value not in words:
        named, mend = getattr(kind, "__name__", str(kind)), ""
        with suppress(ValueError, OverflowError):
            mend = f": leave out its quotes, {name}: {float(value):g}"
        raise ValueError(f"expected {name} of type {named}, got the text {value!r}{mend}")


def training_parameters(objective: str) -> dict[str, inspect.Parameter]:
    """Parameters of the objective's attack; none of one that attacks nothing, or that there is not."""
    attack = attack_of(OBJECTIVES[objective]) if objective in OBJECTIVES else None
    return {} if attack is None else {name: p for name, p in attack.options.items() if name not in OF_TRAINING}
