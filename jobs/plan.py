"""From a study to jobs: what it names is found and checked, then spelt out as specs with their dependencies."""

import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from jobs.specs import (
    AnySpec,
    AttackSpec,
    CodeRef,
    DataRef,
    DefenceSpec,
    EvalSpec,
    FileRef,
    ModelSpec,
    TrainSpec,
    WorstSpec,
    canonical,
)
from jobs.study import Origin, Path_, Study, StudyAttack, StudyModel, explain
from robustlib import KERNEL_VERSION, data
from robustlib.settings import AUDIT, CERTIFY, Norm, TrainSettings

TRAIN_FIELDS = frozenset(field.name for field in fields(TrainSettings)) - {"attack"}


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
    """A study whose data and files were found and hashed; `identity` is a hash of all of it."""

    study: Study
    origin: Origin
    data: DataRef
    models: dict[str, ModelSpec]
    identity: str


def resolve(study: Study, origin: Origin, folder: Path, data_folder: Path) -> Resolved:
    """Find and hash the data set and every file the study names. Needs no torch.

    folder, data_folder: where relative paths of files, and of the data set, start.
    """
    kind, colon, place = study.dataset.partition(":")
    name = f"{kind}:{absolute(data_folder, place)}" if colon and kind in data.PATH_DATASETS else study.dataset
    ref = DataRef(place=name, sha256=guard(origin, ("dataset",), data.fingerprint, name))
    models = {label: resolve_model(model, origin, ("models", label), folder) for label, model in study.models.items()}
    content = [KERNEL_VERSION, study.model_dump(mode="json"), ref.sha256]
    content += [[model.weights and model.weights.sha256, model.code and model.code.sha256] for model in models.values()]
    return Resolved(study, origin, ref, models, hashlib.sha256(canonical(content).encode()).hexdigest())


def guard(origin: Origin, where: Path_, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a kernel's checks; what they find wrong becomes an error of the study, with its line."""
    try:
        return call(*args, **kwargs)
    except ValidationError as error:
        raise origin.error(where, explain(error.errors()[0])) from error
    except (ValueError, FileNotFoundError) as error:
        raise origin.error(where, str(error)) from error


def absolute(folder: Path, place: str) -> Path:
    # Not Path.resolve: what the user linked keeps the user's name.
    return Path(os.path.normpath(Path.cwd() / folder / Path(place).expanduser()))


def resolve_model(model: StudyModel, origin: Origin, where: Path_, folder: Path) -> ModelSpec:
    weights = None
    if model.weights is not None:
        path = absolute(folder, model.weights)
        weights = FileRef(place=str(path), sha256=hash_file(path, origin, (*where, "weights"), "weights file"))
    code = None if model.file is None else resolve_code(model.file, origin, (*where, "file"), folder)
    return ModelSpec(
        arch=model.arch,
        code=code,
        weights=weights,
        normalize=model.normalize or ("dataset" if model.train is not None and model.arch is not None else None),
        dropout_at_inference=model.dropout_at_inference,
        options=model.options,
        defence=tuple(DefenceSpec(name=part.name, params=part.params) for part in model.defence),
    )


def resolve_code(reference: str, origin: Origin, where: Path_, folder: Path) -> CodeRef:
    """The user's factory, found but not run; or a model behind an address."""
    place, colon, factory = reference.rpartition(":")
    if reference.startswith(("http://", "https://")):
        # What answers there has no hash: the address stands for it.
        return CodeRef(place=place, factory=factory, sha256=hashlib.sha256(reference.encode()).hexdigest())
    if not colon or not place or not factory:
        raise origin.error(where, f"expected FILE.py:factory or package.module:factory, got {reference!r}")
    if place.endswith(".py"):
        path = absolute(folder, place)
        return CodeRef(place=str(path), factory=factory, sha256=hash_file(path, origin, where, "model file"))
    try:
        found = importlib.util.find_spec(place)
    except ModuleNotFoundError:
        found = None
    if found is None or found.origin is None:
        raise origin.error(where, f"there is no module {place!r}; a file is named as FILE.py:factory")
    return CodeRef(place=place, factory=factory, sha256=hash_file(Path(found.origin), origin, where, "module"))


def hash_file(path: Path, origin: Origin, where: Path_, what: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise origin.error(where, f"there is no {what} {path} ({error.strerror})") from error


def expand(resolved: Resolved) -> list[Planned]:
    """Every job of the study. Checks names and parameters against the kernels, and builds the models that are given."""
    from jobs import complete, estimate  # torch: only a study that is new needs it

    study, origin = resolved.study, resolved.origin
    resolved = replace(resolved, models={label: defended(resolved, label, complete) for label in resolved.models})
    attacks = [
        (spec, i)
        for i, attack in enumerate(study.attacks)
        for spec in attack_specs(attack, origin, ("attacks", i), complete)
    ]
    if study.audit == "full":
        attacks += list(audits(attacks, complete))
    guard(origin, ("dataset",), complete.load_data, resolved.data, "test")
    if any(model.train is not None for model in study.models.values()):
        guard(origin, ("dataset",), complete.load_data, resolved.data, "train")
    for spec, i in attacks:
        guard(origin, ("attacks", i), complete.check_attack, spec, resolved.data, resolved.models.values())
    jobs: dict[str, Planned] = {}
    for label, model in study.models.items():
        where: Path_ = ("models", label)
        settings = train_settings(study, model, origin, where, complete)
        guard(origin, where, complete.check_model, resolved.models[label], resolved.data)
        for seed in study.seeds:
            for planned in model_jobs(resolved, label, settings, [spec for spec, _ in attacks], seed):
                jobs.setdefault(planned.key, planned)
    return estimate.with_costs(list(jobs.values()), resolved)


def defended(resolved: Resolved, label: str, complete: Any) -> ModelSpec:
    """The model with its defences checked and spelt out."""
    model, where = resolved.models[label], ("models", label, "defence")
    parts = [guard(resolved.origin, where, complete.complete_defence, part) for part in model.defence]
    return model.model_copy(update={"defence": tuple(parts)})


def attack_specs(attack: StudyAttack, origin: Origin, where: Path_, complete: Any) -> Iterator[AttackSpec]:
    """One spec a radius, with the defaults of the attack's function filled in; radii above 0 may be one search.

    A list of kinds or severities of corruptions, or all, is a spec for each of them.
    """
    given = attack.eps or (None,)
    curve = tuple(sorted({eps for eps in given if eps}))
    for eps, params in product(given, complete.spread_params(attack.name, attack.params)):
        spec: AttackSpec = guard(
            origin, where, complete.complete_attack, attack.name, attack.norm, eps, attack.restarts, params
        )
        yield spec.model_copy(update={"curve": curve}) if eps and len(curve) > 1 and complete.has_curve(spec) else spec


def audits(attacks: list[tuple[AttackSpec, int]], complete: Any) -> Iterator[tuple[AttackSpec, int]]:
    """An audit at every radius at which the study attacks, but for those that it asks for itself."""
    there = {(spec.norm, spec.eps) for spec, _ in attacks if spec.name == AUDIT}
    for spec, i in attacks:
        if spec.norm is not None and spec.eps and (spec.norm, spec.eps) not in there:
            there.add((spec.norm, spec.eps))
            yield complete.complete_attack(AUDIT, spec.norm, spec.eps, 1, {}), i


def train_settings(
    study: Study, model: StudyModel, origin: Origin, where: Path_, complete: Any
) -> TrainSettings | None:
    """The model's training block over the study's: entries that are no settings are the objective's attack's."""
    if model.train is None:
        return None
    block = study.train | model.train
    plain = {name: value for name, value in block.items() if name in TRAIN_FIELDS}
    attack = {name: value for name, value in block.items() if name not in TRAIN_FIELDS}
    if isinstance(attack.get("eps"), int | float):
        # Training is looked at under the attack radius it is meant to withstand, unless the study says otherwise.
        plain = {"validation_eps": attack["eps"], "validation_norm": attack.get("norm", "Linf")} | plain
    return guard(origin, (*where, "train"), complete.complete_training, plain, attack)


def model_jobs(
    resolved: Resolved, label: str, settings: TrainSettings | None, attacks: list[AttackSpec], seed: int
) -> Iterator[Planned]:
    """The training of one model with one seed, its evaluations, and their worst cases."""
    study, model = resolved.study, resolved.models[label]
    arch = model.arch or (f"{Path(model.code.place).name}:{model.code.factory}" if model.code else "")
    trained = None if settings is None else settings.objective
    words = " + ".join([*filter(None, [trained]), *(part.words for part in model.defence)]) or None

    train: Planned | None = None

    def planned(spec: AnySpec, *needs: str) -> Planned:
        limit = study.timeout_seconds
        about = [resolved.data.sha256, model.key(), train and train.key]
        subject = None if isinstance(spec, TrainSpec) else hashlib.sha256(canonical(about).encode()).hexdigest()
        defence = trained if isinstance(spec, TrainSpec) else words
        return Planned(
            spec, spec.key(), needs, label, arch, defence, study.dataset, seed, timeout_seconds=limit, subject=subject
        )

    if settings is not None:
        # The network inside learns without its defences, and is shared with a model that has none or others.
        bare = model.model_copy(update={"defence": ()})
        train = planned(TrainSpec(model=bare, data=resolved.data, settings=settings, seed=seed))
        yield train
    evals: list[tuple[AttackSpec, Planned]] = []
    for attack in attacks:
        spec = EvalSpec(
            model=model,
            train=train and train.key,
            data=resolved.data,
            attack=attack,
            examples=study.examples,
            seed=seed,
            batch_size=study.batch_size,
            draws=study.draws,
            eot_draws=study.eot_draws,
            images=study.images,
            shards=study.shards,
        )
        job = planned(spec, *([train.key] if train else []))
        evals.append((attack, job))
        yield job
    for spec in worst_cases(evals):
        yield planned(spec, *spec.evals)


def worst_cases(evals: list[tuple[AttackSpec, Planned]]) -> Iterator[WorstSpec]:
    """For each norm and radius, the worst over all attacks up to that radius, where more than one bears on it."""
    for norm in get_args(Norm):
        attacks = [(attack, job) for attack, job in evals if attack.norm == norm and attack.name != CERTIFY]
        radii = sorted({attack.eps for attack, _ in attacks if attack.eps is not None})
        for eps in radii:
            # Minimum-norm attacks without a radius count by the distance they found.
            bearing = {job.key for attack, job in attacks if attack.eps is None or attack.eps <= eps}
            if len(bearing) > 1:
                yield WorstSpec(evals=tuple(sorted(bearing)), norm=norm, eps=eps)
