"""The jobs of one model with one seed: its training, its evaluations, their worst cases."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

from robustlib.arguments import Norm
from robustlib.datasets.load import non_default
from robustlib.datasets.source import TEST
from robustlib.settings import CERTIFY, EXPLAIN, TrainSettings
from robustq.jobs.specs import (
    AnySpec,
    AttackSpec,
    DataRef,
    EvalSpec,
    ModelSpec,
    SurrogateSpec,
    TrainSpec,
    WorstSpec,
)
from robustq.jobs.study.study import Origin, Study
from robustq.jobs.text.canonical_json import canonical


@dataclass(frozen=True)
class Planned:
    """A job to be: its spec and key, the keys it needs, and what its study calls the model and the data."""

    spec: AnySpec
    key: str
    needs: tuple[str, ...]
    model: str
    arch: str
    defence: str | None
    dataset: str
    seed: int
    cost: float = 1.0  # estimated, in units that only compare
    timeout_seconds: float | None = None
    subject: str | None = None  # of an evaluation: a hash of the model with its weights and of the data


@dataclass(frozen=True)
class Resolved:
    """A study whose data and files were found and hashed; `identity` is a hash of all of it.

    train_data: the data set for trainings, whichever split is evaluated: these share their networks.
    """

    study: Study
    origin: Origin
    data: DataRef
    train_data: DataRef
    models: dict[str, ModelSpec]
    identity: str


Settings = Mapping[str, TrainSettings | None]  # by the model's name; None where its weights are given


def model_jobs(
    resolved: Resolved, label: str, settings: Settings, attacks: list[tuple[AttackSpec, str | None]], seed: int
) -> Iterator[Planned]:
    """The training of one model with one seed, its evaluations, and their worst cases; before an evaluation the
    training of its surrogate.

    attacks: each with the name of the model that is its surrogate, if one is.
    """
    study, model = resolved.study, resolved.models[label]
    train = training(resolved, label, settings[label], seed)
    if train is not None:
        yield train
    train_key = key_of(train)
    subject = subject_of(resolved.data, model, train_key)
    evals: list[tuple[AttackSpec, Planned]] = []
    for attack, surrogate in attacks:
        needs = [train.key] if train else []
        if surrogate is not None:
            learnt = training(resolved, surrogate, settings[surrogate], seed)
            if learnt is not None:
                yield learnt
                needs = list(dict.fromkeys([*needs, learnt.key]))
            source = {
                "model": resolved.models[surrogate],
                "settings": settings[surrogate],
                "train": key_of(learnt),
            }
            attack = attack.model_copy(update={"surrogate": SurrogateSpec(**source)})
        spec = EvalSpec(
            model=model,
            train=train_key,
            data=resolved.data,
            attack=attack,
            examples=study.examples,
            choose=study.choose,
            seed=seed,
            batch_size=study.batch_size,
            draws=study.draws,
            eot_draws=study.eot_draws,
            images=study.images,
            shards=study.shards,
        )
        job = planned(resolved, label, spec, tuple(needs), evaluated_words(model, settings[label]), seed, subject)
        evals.append((attack, job))
        yield job
    for spec in worst_cases(evals):
        yield planned(resolved, label, spec, spec.evals, evaluated_words(model, settings[label]), seed, subject)


def subject_of(data: DataRef, model: ModelSpec, train: str | None) -> str:
    """A hash of a model with its weights and of the data, which all its evaluations share. train: see EvalSpec."""
    return hashlib.sha256(canonical([data.sha256, model.key(), train]).encode()).hexdigest()


def training(resolved: Resolved, label: str, settings: TrainSettings | None, seed: int) -> Planned | None:
    """The job that makes a model's weights, if one does."""
    if settings is None:
        return None
    # The network inside learns without its defences, and is shared with a model that has none or others.
    bare = resolved.models[label].model_copy(update={"defence": ()})
    spec = TrainSpec(model=bare, data=resolved.train_data, settings=settings, seed=seed)
    return planned(resolved, label, spec, (), settings.objective, seed)


def key_of(training: Planned | None) -> str | None:
    """Its key; None where there is no training, since the weights are given."""
    return None if training is None else training.key


def evaluated_words(model: ModelSpec, settings: TrainSettings | None) -> str | None:
    """What was done against attacks: the training's objective, then the defences."""
    trained = None if settings is None else settings.objective
    return " + ".join([*filter(None, [trained]), *(part.words for part in model.defence)]) or None


def planned(
    resolved: Resolved,
    label: str,
    spec: AnySpec,
    needs: tuple[str, ...],
    defence: str | None,
    seed: int,
    subject: str | None = None,
) -> Planned:
    model = resolved.models[label]
    limit = resolved.study.timeout_seconds
    named = (label, model.shown_arch, defence, data_words(resolved, trained=isinstance(spec, TrainSpec)), seed)
    return Planned(spec, spec.key(), needs, *named, timeout_seconds=limit, subject=subject)


def data_words(resolved: Resolved, *, trained: bool) -> str:
    """The data set as the study names it, with whatever makes other examples of the same files: their numbers must not
    stand among each other's.
    """
    study = resolved.study
    told = [f"{option}={value}" for option, value in non_default(study.reading).items()]
    if not trained:
        told = [word for word in (study.split, study.choose) if word not in (TEST, "first")] + told
    return f"{study.dataset} ({', '.join(told)})" if told else study.dataset


NO_WORST = (CERTIFY, EXPLAIN)  # no attack on the accuracy


def worst_cases(evals: list[tuple[AttackSpec, Planned]]) -> Iterator[WorstSpec]:
    """For each norm and radius, the worst over all attacks up to that radius, where more than one bears on it."""
    for norm in get_args(Norm):
        attacks = [(attack, job) for attack, job in evals if attack.norm == norm and attack.name not in NO_WORST]
        radii = sorted({attack.eps for attack, _ in attacks if attack.eps is not None})
        for eps in radii:
            # Minimum-norm attacks without a radius count by the distance they found.
            bearing = {job.key for attack, job in attacks if attack.eps is None or attack.eps <= eps}
            if len(bearing) > 1:
                yield WorstSpec(evals=tuple(sorted(bearing)), norm=norm, eps=eps)
