"""Checks of a study against its data and models, before anything is queued: what its jobs would fail of."""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from robustlib.attacks import ATTACKS, ENSEMBLES, corruptions
from robustlib.attacks.surrogate_training import ARCH
from robustlib.datasets import load
from robustlib.datasets.choose import choose
from robustlib.defences.smoothing import match_sigma
from robustlib.evaluation.batches import make_ready
from robustlib.gpu_failures import asks_for_a_gpu
from robustlib.inference.model_modes import as_images, device_of, moved
from robustlib.models import Tell, first_layer, network
from robustlib.models.layers import Normalize
from robustlib.models.loading import users_model
from robustlib.names import did_you_mean
from robustlib.outcome import check_classes
from robustlib.packages.manifest import open_package
from robustlib.settings import AUDIT, CERTIFY, TRANSFER, TrainSettings
from robustq.jobs.running.inputs import build_model, build_network, load_data, statistics, unmeasured
from robustq.jobs.running.package_models import GRADIENTS, defend
from robustq.jobs.running.surrogates import lies_by_class
from robustq.jobs.specs import AttackSpec, DataRef, ModelSpec
from robustq.jobs.study.study import Study

LOOKED_AT_BYTES = 256 * 2**20  # of decoded images, when a study is submitted; workers see the rest


def check_attack(spec: AttackSpec, ref: DataRef, models: Iterable[ModelSpec]) -> None:
    """What can be said before anything runs of evaluations that do not take every image or model."""
    models = list(models)
    for model in models:
        check_gradients(spec, model)
    if spec.name == "corruption":
        corruptions.check(spec.params["kind"], load_data(ref).images.shape[1:])
        corruptions.library()
    if spec.name == CERTIFY:
        for model in models:
            outer = model.defence[-1] if model.defence else None
            match_sigma(outer.params["sigma"] if outer and outer.name == "smoothing" else None, spec.params["sigma"])


def check_gradients(spec: AttackSpec, model: ModelSpec) -> None:
    """Raises ValueError for an attack that climbs a gradient, on an ONNX program that no network lends one."""
    if model.code is None or model.code.factory or not needs_gradients(spec.name):
        return
    place = Path(model.code.place)
    if model.code.is_package and (GRADIENTS in model.options or open_package(place).has_gradients):
        return
    without = [name for name, attack in ATTACKS.items() if not attack.uses_gradient and attack.takes_eps]
    raise ValueError(
        f"{spec.name} needs gradients, and {place.name} only answers: expected one of {', '.join([*without, AUDIT])}"
    )


def needs_gradients(name: str) -> bool:
    return name in ENSEMBLES or (name in ATTACKS and ATTACKS[name].uses_gradient)


def check_data(study: Study, ref: DataRef, train_ref: DataRef | None, tell: Callable[[str], None]) -> None:
    """Open the data set, and decode what is evaluated of it, and trained on, as far as that is no long work.

    train_ref: None where nothing is trained.
    tell: is told how it was read, and where there are fewer examples than were asked for.
    """
    test = load_data(ref)
    for note in test.notes:
        tell(f"dataset {study.dataset}: {note}")
    if study.examples != "all" and study.examples > len(test):
        tell(f"dataset {study.dataset}: examples {study.examples}, but {test.split} holds {len(test)}: all are taken")
    look_at(test, choose(test.y, study.examples, study.choose))
    if train_ref is not None:
        train = load_data(train_ref, "train")
        look_at(train, np.arange(len(train)))


def look_at(dataset: load.Dataset, rows: np.ndarray) -> None:
    """Decode these images, or the first of them: what cannot be is best known before anything is queued."""
    most = max(1, LOOKED_AT_BYTES // math.prod(dataset.images.shape[1:]))
    dataset.images.ensure(rows[:most])


def check_training(settings: TrainSettings, ref: DataRef) -> None:
    """What of a training's settings depends on its images."""
    side = min(load_data(ref, "train").image_size)
    if settings.crop >= side:
        raise ValueError(f"expected crop below the images' side, {side} pixels, got {settings.crop}")


def check_surrogate(attack: str, label: str | None, models: Mapping[str, ModelSpec], ref: DataRef) -> None:
    """Whether the attack's images can be made on the model of this name, or on a network that is to learn."""
    if attack != TRANSFER:
        if label is not None:
            raise ValueError(f"{attack} takes no surrogate, {TRANSFER} does")
        return
    dataset = load_data(ref)
    if label is None:
        network(ARCH, dataset.in_channels, dataset.num_classes, dataset.image_size)
        return
    if label not in models:
        known = f"{', '.join(models)}{did_you_mean(label, models)}"
        raise ValueError(f"{attack}: there is no model {label!r} to be its surrogate, expected one of: {known}")
    some = torch.from_numpy(dataset.images[:2])
    try:
        with users_model(models[label].reference):
            ready = make_ready(build_model(models[label], dataset, 0), some, dataset.num_classes, torch.device("cpu"))
            ready.as_surrogate()
    except ValueError as error:
        if not asks_for_a_gpu(error):  # which is told of the model itself
            raise


def with_pool(spec: AttackSpec, label: str | None, study: Study, ref: DataRef) -> AttackSpec:
    """The attack with what its surrogate is to learn from, where it learns the model's answers: images from all over
    the split, where the first of it are of few of its classes. label: of a surrogate that the study names.
    """
    if not (spec.name == AUDIT or (spec.name == TRANSFER and label is None)):
        return spec
    return spec.model_copy(update={"spread_pool": lies_by_class(ref, study.examples, study.choose)})


def check_model(spec: ModelSpec, ref: DataRef, *, stated: bool, trained: bool, tell: Tell | None = None) -> None:
    """Build the model once as a job would: what does not fit is found before anything is queued.

    stated: whether the study says how images are normalised.  trained: whether it is to be trained.  tell: is told what
    was taken from a file of weights.
    """
    try:
        with users_model(spec.reference):
            try_model(spec, load_data(ref), stated=stated, trained=trained, tell=tell)
    except ValueError as error:
        if spec.reference is None or not asks_for_a_gpu(error):
            raise
        if tell is not None:
            tell(
                f"{spec.reference} asks for a GPU, which this machine has not: whether it builds, and takes the data, "
                "its first job will say"
            )


def try_model(spec: ModelSpec, dataset: load.Dataset, *, stated: bool, trained: bool, tell: Tell | None) -> None:
    some = as_images(torch.from_numpy(dataset.images[:2]), torch.device("cpu"))
    measured = stated and spec.weights is not None
    model = build_network(spec if measured else unmeasured(spec, dataset), dataset, 0, tell=tell)
    if trained and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("train has no effect: the model has no parameters that could be trained")
    if measured:
        check_first_layer(spec, model, dataset)
    # A factory that ends with `.cuda()` has put it there, and the first layer in front of it lies on the CPU.
    model, some = moved(model, device := device_of(model, some)), some.to(device)
    if trained:
        check_reached(model, some)
    model = defend(model, spec)
    check_classes(model, some, dataset.num_classes)


def check_reached(model: nn.Module, x: torch.Tensor) -> None:
    """Whether training would move anything."""
    with torch.enable_grad():
        try:
            logits = model(x)
        except Exception:  # the look at its classes, which comes next, says what is wrong with it
            return
    if isinstance(logits, torch.Tensor) and not logits.requires_grad:
        raise ValueError("train has no effect: the model's answer has no gradient that reaches its parameters")


def check_first_layer(spec: ModelSpec, model: nn.Module, dataset: load.Dataset) -> None:
    """Weights that carry the first layer decide it: what the study says of it would have no effect."""
    said, given = statistics(spec, dataset), getattr(model, "normalize", None)
    if said is None or not isinstance(given, Normalize):
        return
    wanted = first_layer(*said, dataset.in_channels)
    if not all(
        torch.allclose(mine, theirs.cpu()) for mine, theirs in ((wanted.mean, given.mean), (wanted.std, given.std))
    ):
        mean, std = (", ".join(f"{value:.4g}" for value in part.flatten().tolist()) for part in (given.mean, given.std))
        raise ValueError(
            f"normalize has no effect: the weights carry their own first layer (mean {mean}, std {std}); leave it out"
        )
