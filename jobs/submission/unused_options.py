"""Options of a study that nothing in it would use: refused with their line, since an option without effect misleads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from robustlib.attacks import ATTACKS
from robustlib.defences import RANDOMISED
from robustlib.settings import AUDIT, CERTIFY, EXPLAIN, TrainSettings
from robustq.jobs.specs import AttackSpec, ModelSpec
from robustq.jobs.study.study import Origin, Study, explain


def check_effects(
    study: Study,
    origin: Origin,
    models: Mapping[str, ModelSpec],
    attacks: Sequence[tuple[AttackSpec, int]],
    settings: Mapping[str, TrainSettings | None],
    tell: Callable[[str], None],
) -> None:
    """Raises SpecError. attacks: each with the place of its entry.  settings: of trainings, by the model's name.
    tell: is told of defaults that every model overrides, as a study that grows may come to have.

    What holds for all of a study may be used by some of its models and attacks alone.
    """
    check_trainings(study, origin, settings, tell)
    searched = [spec for spec, _ in attacks if spec.name not in (AUDIT, CERTIFY)]
    drawn = [spec for spec in searched if spec.name != EXPLAIN]
    random = [label for label, model in models.items() if may_be_random(model)]
    if study.audit == "full" and not any(spec.name == AUDIT for spec, _ in attacks):
        raise origin.error(("audit",), "audit: full has no effect: no attack has a norm and a radius above 0")
    for name in ("draws", "eot_draws"):
        if name in study.model_fields_set and not (random and drawn):
            own = "explanations have none" if searched else "audits and certificates have their own"
            why = "no model of the study is randomised" if drawn else own
            raise origin.error((name,), f"{name} has no effect: {why}")
    if study.batch_size is not None and (not searched or all(is_random(model) for model in models.values())):
        why = "randomised models" if searched else "audits and certificates"
        raise origin.error(("batch_size",), f"batch_size has no effect: the batches of {why} are their own")
    if study.shards is not None and all(spec.name == AUDIT for spec, _ in attacks):
        raise origin.error(("shards",), "shards has no effect: an audit is not split")
    if not random:
        for spec, i in attacks:
            if spec.restarts > 1 and is_deterministic(spec):
                same = f"{spec.name} is deterministic here, and no model is randomised: its restarts are all the same"
                raise origin.error(("attacks", i, "restarts"), f"restarts has no effect: {same}")


def check_trainings(
    study: Study, origin: Origin, settings: Mapping[str, TrainSettings | None], tell: Callable[[str], None]
) -> None:
    trained = {label: found for label, found in settings.items() if found is not None}
    if study.train and not trained:
        raise origin.error(
            ("train",), "train has no effect: no model of the study is trained, which `train: {}` in its entry asks for"
        )
    for name, value in study.train.items() if trained else ():
        takers = [label for label, found in trained.items() if hasattr(found, name) or name in found.attack]
        if all(name in (study.models[label].train or {}) for label in takers):
            which = "that is trained" if len(takers) == len(trained) else "whose objective takes it"
            check_unused(name, value, origin)
            tell(f"train: {name}: {value} has no effect: every model {which} says its own")
    for label, found in trained.items():
        own = study.models[label].train or {}
        if "momentum" in own and found.optimizer == "adam":
            raise origin.error(("models", label, "train", "momentum"), of_adam("optimizer is adam"))
    if "momentum" in study.train and all(found.optimizer == "adam" for found in trained.values()):
        raise origin.error(("train", "momentum"), of_adam("every optimizer is adam"))


def check_unused(name: str, value: Any, origin: Origin) -> None:
    """A setting that no training will have is one all the same."""
    if name not in {field.name for field in fields(TrainSettings)}:
        return
    try:
        TypeAdapter(TrainSettings).validate_python({name: value})
    except ValidationError as error:
        raise origin.error(("train", name), explain(error.errors()[0])) from error
    except ValueError as error:
        raise origin.error(("train", name), str(error)) from error


def of_adam(why: str) -> str:
    return f"momentum has no effect: {why}, and only sgd has one"


def may_be_random(model: ModelSpec) -> bool:
    """Whether its answers may change from pass to pass, as far as can be said before it is built."""
    return model.code is not None or is_random(model)


def is_random(model: ModelSpec) -> bool:
    return model.dropout_at_inference is not None or bool(names(model) & RANDOMISED)


def names(model: ModelSpec) -> set[str]:
    return {part.name for part in model.defence}


def is_deterministic(spec: AttackSpec) -> bool:
    attack = ATTACKS.get(spec.name)
    return (attack is not None and attack.deterministic) or spec.params.get("random_start") is False
