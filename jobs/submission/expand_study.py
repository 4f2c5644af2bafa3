"""The expansion of a study into jobs: its names are found and checked, then spelt out as specs with dependencies."""

import contextlib
import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from robustlib import KERNEL_VERSION
from robustlib.datasets import load
from robustlib.datasets.source import TEST
from robustlib.hashing import code_hash, file_hash
from robustlib.names import near_file
from robustlib.normalisations import NORMALISATIONS
from robustlib.packages.manifest import PackageError, is_file_alone, package_hash
from robustlib.regular_files import irregular
from robustlib.settings import AUDIT, EXPLAIN, TrainSettings
from robustq.jobs.specs import (
    AttackSpec,
    CodeRef,
    DataRef,
    DefenceSpec,
    EvalSpec,
    FileRef,
    ModelSpec,
    Statistics,
)
from robustq.jobs.study.entries import StudyAttack, StudyModel
from robustq.jobs.study.study import Origin, Study, explain
from robustq.jobs.study.yaml_with_lines import Path_
from robustq.jobs.submission.plan import Planned, Resolved, model_jobs
from robustq.jobs.submission.study_marks import study_marks
from robustq.jobs.text.canonical_json import canonical
from robustq.jobs.text.notes import LOGGER, note

TRAIN_FIELDS = frozenset(field.name for field in fields(TrainSettings)) - {"attack"}


def resolve(study: Study, origin: Origin, folder: Path, data_folder: Path) -> Resolved:
    """Find and hash the data set and every file the study names. Needs no torch.

    folder, data_folder: where relative paths of files, and of the data set, start.
    """
    kind, colon, place = study.dataset.partition(":")
    name = f"{kind}:{absolute(data_folder, place)}" if colon and kind in load.PATH_DATASETS else study.dataset
    ref = data_ref(study, origin, name, study.split)
    train = ref if study.split == TEST else data_ref(study, origin, name, TEST)
    models = {label: resolve_model(model, origin, ("models", label), folder) for label, model in study.models.items()}
    content = [KERNEL_VERSION, study.model_dump(mode="json"), ref.sha256]
    content += [model.file_hashes for model in models.values()]
    content += study_marks(study, models)
    return Resolved(study, origin, ref, train, models, hashlib.sha256(canonical(content).encode()).hexdigest())


def data_ref(study: Study, origin: Origin, name: str, split: Any) -> DataRef:
    """The data set with its content's hash, evaluated on this split."""
    sha256 = guard(origin, ("dataset",), load.fingerprint, name, split, study.reading)
    return DataRef(place=name, sha256=sha256, split=split, reading=study.reading)


def guard(origin: Origin, where: Path_, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a kernel's checks; what they find wrong becomes an error of the study, with its line."""
    try:
        return call(*args, **kwargs)
    except (ValueError, FileNotFoundError) as error:
        raise origin.error(where, words_of(error)) from error


def words_of(error: Exception) -> str:
    return explain(error.errors()[0]) if isinstance(error, ValidationError) else str(error)


def absolute(folder: Path, place: str) -> Path:
    # Not Path.resolve: what the user linked keeps the user's name.
    return Path(os.path.normpath(Path.cwd() / folder / Path(place).expanduser()))


def resolve_model(model: StudyModel, origin: Origin, where: Path_, folder: Path) -> ModelSpec:
    weights = None
    if model.weights is not None:
        path, entry = weights_place(model.weights, folder)
        digest = hash_file(path, origin, (*where, "weights"), "weights file")
        weights = FileRef(place=str(path), sha256=digest, entry=entry)
    code = None if model.file is None else resolve_code(model.file, origin, (*where, "file"), folder)
    return ModelSpec(
        arch=model.arch,
        code=code,
        weights=weights,
        normalize=normalisation(model),
        first_layer=model.file is not None and model.normalize is not None,
        dropout_at_inference=model.dropout_at_inference,
        options=model.options,
        defence=tuple(DefenceSpec(name=part.name, params=part.params) for part in model.defence),
    )


def weights_place(text: str, folder: Path) -> tuple[Path, str | None]:
    """Where FILE or FILE:KEY lies, and the KEY in it. A file of that whole name wins."""
    whole = absolute(folder, text)
    place, colon, entry = text.partition(":")
    while colon and not whole.exists():
        if absolute(folder, place).is_file():
            return absolute(folder, place), entry
        more, colon, entry = entry.partition(":")
        place = f"{place}:{more}"
    return whole, None


def normalisation(model: StudyModel) -> Any:
    """What stands before the network: as the study says it, of a network that is trained the training split's."""
    if model.normalize in NORMALISATIONS:
        mean, std = NORMALISATIONS[str(model.normalize)]
        return Statistics(mean=mean, std=std)
    return model.normalize or ("dataset" if model.train is not None and model.arch is not None else None)


def resolve_code(reference: str, origin: Origin, where: Path_, folder: Path) -> CodeRef:
    """The user's factory, found but not run; a model behind an address, an ONNX file, or a package."""
    if not reference.startswith(("http://", "https://")) and is_file_alone(whole := absolute(folder, reference)):
        what, digest = ("ONNX file", file_hash) if whole.suffix == ".onnx" else ("package", package_hash)
        if what == "package" and whole.is_dir():
            return CodeRef(place=str(whole), factory="", sha256=guard(origin, where, digest, whole))
        return CodeRef(place=str(whole), factory="", sha256=hash_file(whole, origin, where, what, digest))
    place, colon, factory = reference.rpartition(":")
    if reference.startswith(("http://", "https://")):
        # What answers there has no hash: the address stands for it.
        return CodeRef(place=place, factory=factory, sha256=hashlib.sha256(reference.encode()).hexdigest())
    if not colon or not place or not factory:
        expected = "FILE.py:factory, package.module:factory, FILE.onnx or a package"
        raise origin.error(where, f"expected {expected}, got {reference!r}")
    if place.endswith(".py"):
        path = absolute(folder, place)
        return CodeRef(place=str(path), factory=factory, sha256=hash_file(path, origin, where, "model file", code_hash))
    try:
        found = importlib.util.find_spec(place)
    except (ImportError, ValueError):  # of names with dots before or behind, and of a module that has no such part
        found = None
    if found is None or found.origin is None or not found.has_location:
        raise origin.error(where, f"there is no module {place!r}; a file is named as FILE.py:factory")
    return CodeRef(place=place, factory=factory, sha256=hash_file(Path(found.origin), origin, where, "module"))


def hash_file(path: Path, origin: Origin, where: Path_, what: str, digest: Callable[[Path], str] = file_hash) -> str:
    if (kind := irregular(path)) is not None:
        raise origin.error(where, f"expected a file as the {what}, got {path}, which is {kind}")
    try:
        return digest(path)
    except PackageError as error:
        raise origin.error(where, str(error)) from error
    except OSError as error:
        raise origin.error(where, f"there is no {what} {path} ({error.strerror}){near_file(path)}") from error
    except ValueError as error:  # of a zero byte
        raise origin.error(where, f"no {what} can have the name {str(path)!r} ({error})") from error


def expand(resolved: Resolved) -> list[Planned]:
    """Every job of the study. Checks names and parameters against the kernels, and builds the models that are given."""
    with contextlib.redirect_stdout(sys.stderr):  # what models print: stdout belongs to the results
        return checked(resolved)


def checked(resolved: Resolved) -> list[Planned]:
    # They load torch: only a study that is new needs them.
    from robustq.jobs.submission import cost, explanation_params, unused_options
    from robustq.jobs.submission.validation import data_and_models, parameters

    notes: list[str] = []
    study, origin = resolved.study, resolved.origin
    resolved = replace(resolved, models={label: defended(resolved, label, parameters) for label in resolved.models})
    attacks = [
        (spec, i)
        for i, attack in enumerate(study.attacks)
        for spec in specs_of(attack, origin, ("attacks", i), parameters, explanation_params)
    ]
    if study.audit == "full":
        attacks += list(audits(attacks, parameters))
    trained_on = resolved.train_data if any(model.train is not None for model in study.models.values()) else None
    guard(origin, ("dataset",), data_and_models.check_data, study, resolved.data, trained_on, notes.append)
    for spec, i in attacks:
        guard(origin, ("attacks", i), data_and_models.check_attack, spec, resolved.data, resolved.models.values())
        if spec.name == EXPLAIN:
            guard(
                origin, ("attacks", i), explanation_params.check_explained, spec, resolved.data, resolved.models.items()
            )
    settings = {
        label: train_settings(study, model, origin, ("models", label), parameters)
        for label, model in study.models.items()
    }
    unused_options.check_effects(study, origin, resolved.models, attacks, settings, notes.append)
    for label, model in resolved.models.items():
        if (chosen := settings[label]) is not None:
            guard(origin, ("models", label, "train"), data_and_models.check_training, chosen, resolved.train_data)
        about = {"stated": study.models[label].normalize is not None, "trained": settings[label] is not None}
        LOGGER.info("model %s: is built and shown two images", label)
        guard(origin, ("models", label), data_and_models.check_model, model, resolved.data, **about, tell=notes.append)
    asked = [made_on(resolved, spec, i, data_and_models) for spec, i in attacks]
    jobs: dict[str, Planned] = {}
    for label in study.models:
        for seed in study.seeds:
            for planned in model_jobs(resolved, label, settings, asked, seed):
                there = jobs.setdefault(planned.key, planned)
                if there.model != label and isinstance(planned.spec, EvalSpec):
                    # A job's results are shown under one name: the other would be missing everywhere.
                    same = f"{label!r} is the same model as {there.model!r}: leave it out"
                    raise origin.error(("models", label), same)
    plan = cost.with_costs(list(jobs.values()), resolved)
    for line in notes:  # at the end: what is refused is told in one line
        note(line)
    return plan


def defended(resolved: Resolved, label: str, parameters: Any) -> ModelSpec:
    """The model with its defences checked and spelt out."""
    model, where = resolved.models[label], ("models", label, "defence")
    parts = [guard(resolved.origin, where, parameters.complete_defence, part) for part in model.defence]
    return model.model_copy(update={"defence": tuple(parts)})


def specs_of(
    attack: StudyAttack, origin: Origin, where: Path_, parameters: Any, explanation_params: Any
) -> Iterator[AttackSpec]:
    """The evaluations that an entry means, with all that it leaves out."""
    if attack.name == EXPLAIN:
        return explanation_params.explanation_specs(attack, where, partial(guard, origin))
    return attack_specs(attack, origin, where, parameters)


def attack_specs(attack: StudyAttack, origin: Origin, where: Path_, parameters: Any) -> Iterator[AttackSpec]:
    """One spec a radius, with the defaults of the attack's function filled in; radii above 0 may be one search.

    A list of kinds or severities of corruptions, or all, is a spec for each of them.
    """
    given = attack.eps or (None,)
    curve = tuple(sorted({eps for eps in given if eps}))
    for eps, params in product(given, parameters.spread_params(attack.name, attack.params)):
        spec: AttackSpec = guard(
            origin, where, parameters.complete_attack, attack.name, attack.norm, eps, attack.restarts, params
        )
        guard(origin, (*where, "eps"), parameters.check_radius, spec)
        yield (
            spec.model_copy(update={"curve": curve}) if eps and len(curve) > 1 and parameters.has_curve(spec) else spec
        )


def made_on(resolved: Resolved, spec: AttackSpec, i: int, data_and_models: Any) -> tuple[AttackSpec, str | None]:
    """The attack with what its surrogate learns from, where one learns; the model of the study that is one, if any."""
    label, study, where = surrogate_of(resolved, spec, i, data_and_models), resolved.study, ("attacks", i)
    return guard(resolved.origin, where, data_and_models.with_pool, spec, label, study, resolved.data), label


def surrogate_of(resolved: Resolved, spec: AttackSpec, i: int, data_and_models: Any) -> str | None:
    """The model of the study on which the i-th entry's images are made, if it names one."""
    entry, where = resolved.study.attacks[i], ("attacks", i, "surrogate")
    label = entry.surrogate if spec.name == entry.name else None  # an audit at an entry's radius has none
    guard(resolved.origin, where, data_and_models.check_surrogate, spec.name, label, resolved.models, resolved.data)
    return label


def audits(attacks: list[tuple[AttackSpec, int]], parameters: Any) -> Iterator[tuple[AttackSpec, int]]:
    """An audit at every radius at which the study attacks, but for those that it asks for itself."""
    there = {(spec.norm, spec.eps) for spec, _ in attacks if spec.name == AUDIT}
    for spec, i in attacks:
        if spec.name != EXPLAIN and spec.norm is not None and spec.eps and (spec.norm, spec.eps) not in there:
            there.add((spec.norm, spec.eps))
            yield parameters.complete_attack(AUDIT, spec.norm, spec.eps, 1, {}), i


def objective_of(study: Study, model: StudyModel) -> str:
    return str((study.train | (model.train or {})).get("objective", TrainSettings.objective))


def objectives(study: Study) -> set[str]:
    return {objective_of(study, model) for model in study.models.values() if model.train is not None}


def train_settings(
    study: Study, model: StudyModel, origin: Origin, where: Path_, parameters: Any
) -> TrainSettings | None:
    """The model's training block over the study's: entries that are no settings are the objective's attack's.

    Those that the study says for all are for the models whose objective takes them, where there is one.
    """
    if model.train is None:
        return None
    block = study.train | model.train
    taken = {other: parameters.training_parameters(other) for other in objectives(study)}
    mine = taken[objective_of(study, model)]
    for name in study.train.keys() - model.train.keys() - TRAIN_FIELDS - mine.keys():
        if any(name in known for known in taken.values()):
            del block[name]
    plain = {name: value for name, value in block.items() if name in TRAIN_FIELDS}
    attack = {name: value for name, value in block.items() if name not in TRAIN_FIELDS}
    if isinstance(attack.get("eps"), int | float) and not isinstance(attack["eps"], bool):
        # Training is looked at under the attack radius it is meant to withstand, unless the study says otherwise.
        plain = {"validation_eps": attack["eps"], "validation_norm": attack.get("norm", "Linf")} | plain
    try:
        return parameters.complete_training(plain, attack)
    except ValueError as error:
        # What all share may stand on the study's line for all, and be wrong for one.
        whose = f"model {where[-1]}: " if len(study.models) > 1 else ""
        raise origin.error((*where, "train"), f"{whose}{words_of(error)}") from error
