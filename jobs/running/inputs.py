"""The inputs of every job: data, models and the device."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import nn

from robustlib import models
from robustlib.addresses import is_address
from robustlib.datasets import load
from robustlib.datasets.file_stamps import HashedFile, hash_file, is_unchanged
from robustlib.datasets.source import DataChanged
from robustlib.hashing import code_hash, file_hash
from robustlib.packages.manifest import is_package_folder, package_hash
from robustlib.rng import seeded
from robustq.jobs.running.package_models import build_packaged, defend
from robustq.jobs.specs import CodeRef, DataRef, ModelSpec, Statistics


@lru_cache(maxsize=4)  # a worker's jobs mostly share their data
def load_data(ref: DataRef, split: str | None = None) -> load.Dataset:
    """The split that is evaluated, or another one."""
    check_data(ref)
    return load.load(ref.place, split or ref.split, ref.reading)


def check_data(ref: DataRef) -> None:
    """Raises DataChanged where the files are not those that the job was submitted with."""
    if load.fingerprint(ref.place, ref.split, ref.reading) != ref.sha256:
        raise DataChanged(f"dataset {ref.place} has changed since the job was submitted: submit the study again")


@contextmanager
def where_there(ref: DataRef) -> Iterator[None]:
    """A block that reads a data set's training split: it ends early where there is none, or none that can be read.

    Files that changed or went since the job was submitted end the job instead: without them its numbers are others.
    """
    check_data(ref)
    try:
        yield
    except DataChanged:
        raise
    except (ValueError, FileNotFoundError):
        pass


def find_file(place: str, sha256: str, folder: str, digest: Callable[[Path], str] = file_hash) -> str:
    """Where a file with this content lies: where it lay when the job was submitted, or, on another machine, at the end
    of that path under `folder`. Raises FileNotFoundError, or ValueError where its content is another now.

    digest: what its hash is made by.
    """
    path = Path(place)
    ends = [Path(folder, *path.parts[i:]) for i in range(1, len(path.parts))] if folder else []
    there = [found for found in (path, *ends) if found.is_file() or is_package_folder(found)]
    for found in there:
        if digest(found) == sha256:
            return str(found)
    if there:
        raise changed(there[0])
    raise FileNotFoundError(f"there is no file {place}, which the job was submitted with")


def changed(what: Path | str) -> ValueError:
    return ValueError(f"{what} has changed since the job was submitted: submit the study again")


def hash_and_keep(seen: dict[Path, HashedFile], path: Path) -> str:
    seen[path] = hash_file(path)
    return seen[path].sha256


def find_code(code: CodeRef | None, folder: str) -> CodeRef | None:
    """The code where it lies here. Raises as find_file, also for a module with another source.

    What answers behind an address has no hash.
    """
    if code is None or is_address(code.reference):
        return code
    if not code.factory:
        digest = package_hash if code.is_package else file_hash
        return code.model_copy(update={"place": find_file(code.place, code.sha256, folder, digest)})
    if code.place.endswith(".py"):
        return code.model_copy(update={"place": find_file(code.place, code.sha256, folder, code_hash)})
    try:
        found = importlib.util.find_spec(code.place)
    except (ImportError, ValueError):  # whoever imports it says why
        return code
    source = Path(found.origin) if found is not None and found.origin is not None else None
    if source is not None and source.is_file() and file_hash(source) != code.sha256:
        raise changed(f"the module {code.place} ({source})")
    return code


def build_model(spec: ModelSpec, dataset: load.Dataset, seed: int, folder: str = "") -> nn.Module:
    """The spec's model for this data, with its defences, in eval mode. See `build_network`."""
    return defend(build_network(spec, dataset, seed, folder), spec)


def build_network(
    spec: ModelSpec, dataset: load.Dataset, seed: int, folder: str = "", tell: models.Tell | None = None
) -> nn.Module:
    """The spec's model without its defences; fresh weights come from the seed. folder: see Context.

    tell: see robustlib.models.build.
    """
    code, weights, seen = find_code(spec.code, folder), None, {}
    if spec.weights is not None:
        weights = Path(find_file(spec.weights.place, spec.weights.sha256, folder, partial(hash_and_keep, seen)))
    if code is not None and code.is_package:
        model = build_packaged(spec, dataset, Path(code.place), statistics(spec, dataset))
        find_code(spec.code, folder)
        return model
    with seeded(seed, "weights", torch.device("cpu")):
        model = models.build(
            arch=spec.arch,
            file=None if code is None else code.reference,
            weights=weights,
            entry=spec.entry,
            in_channels=dataset.in_channels,
            num_classes=dataset.num_classes,
            image_size=dataset.image_size,
            normalize=statistics(spec, dataset),
            dropout=spec.dropout_at_inference,
            options=spec.options,
            tell=tell,
        )
    find_code(spec.code, folder)  # an edit between the look and the load
    if weights is not None and not is_unchanged(weights, seen[weights]):
        raise changed(weights)
    if spec.arch in models.MODELS:
        # Twice as fast on a CPU, and what tensor cores want. A user's own model may rely on the usual order.
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return model


def unmeasured(spec: ModelSpec, dataset: load.Dataset) -> ModelSpec:
    """The spec with a first layer that changes nothing in place of one by the data set's statistics.

    For those to whom its numbers are nothing, or who put others there: they cost a look at every image.
    """
    if spec.normalize != "dataset":
        return spec
    channels = dataset.in_channels
    return spec.model_copy(update={"normalize": Statistics(mean=(0.0,) * channels, std=(1.0,) * channels)})


def statistics(spec: ModelSpec, dataset: load.Dataset) -> models.Statistics | None:
    """Mean and standard deviation of the first layer, where it is to have some."""
    if spec.normalize is None or (spec.code is not None and not spec.first_layer):
        return None
    return (dataset.mean, dataset.std) if spec.normalize == "dataset" else (spec.normalize.mean, spec.normalize.std)
