"""Packages as models: the program answers, and the network that it was made from lends its gradient."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from robustlib import models
from robustlib.datasets import load
from robustlib.defences import DEFENCES
from robustlib.hashing import code_hash
from robustlib.inference.model_modes import in_a_line, into_mode
from robustlib.models.onnx_model import WithGradients, onnx_model
from robustlib.packages.contents import PackageError
from robustlib.packages.manifest import INT8, ONNX, WEIGHTS, Package, open_package
from robustq.jobs.specs import ModelSpec

# Options of a package: the user's code of its network, where they trust that; and which of its programs answers.
GRADIENTS, PROGRAM = "gradients", "program"
PROGRAMS = {"float32": ONNX, "int8": INT8}


def build_packaged(spec: ModelSpec, dataset: load.Dataset, place: Path, first: models.Statistics | None) -> nn.Module:
    """The program of a package, with the gradient of the network it was made from, where that can be built here.

    first: mean and standard deviation of a layer before it. Raises ValueError, PackageError among them, for a package
    that is not what it says, or does not fit the data.
    """
    package = open_package(place)
    if spec.weights is not None or spec.dropout_at_inference is not None:
        raise ValueError(f"weights and dropout have no effect: the package {place.name} has its own")
    if unknown := spec.options.keys() - {GRADIENTS, PROGRAM}:
        raise ValueError(f"a package has no option {min(unknown)!r}, it has: {GRADIENTS}, {PROGRAM}")
    if (kind := spec.options.get(PROGRAM, "float32")) not in PROGRAMS:
        raise ValueError(f"expected {PROGRAM} to be one of {', '.join(PROGRAMS)}, got {kind!r}")
    file = PROGRAMS[kind]
    if file not in package.files:
        raise ValueError(f"the package {place.name} has no {file}: `robustq package --int8` makes one")
    facts: dict[str, Any] = {
        "in_channels": dataset.in_channels,
        "num_classes": dataset.num_classes,
        "image_size": dataset.image_size,
    }
    program = onnx_model(package.read(file), f"{place.name}/{file}", **facts)
    model: nn.Module = program
    if package.has_gradients or GRADIENTS in spec.options:
        model = WithGradients(program, network_of(package, facts, spec.options.get(GRADIENTS)))
    if first is not None:
        model = nn.Sequential(OrderedDict(normalize=models.first_layer(*first, dataset.in_channels), net=model))
    into_mode(model, training=False)
    return model


def network_of(package: Package, facts: dict[str, Any], code: str | None) -> nn.Module:
    """The network that a package's program was made from: by the name of its architecture, or by the user's own `code`,
    FILE.py:factory, with the weights of the package.

    Of options only numbers are taken: a package must not name what a builder would fetch.
    """
    told, name = package.network, f"{package.contents.place.name}/{WEIGHTS}"
    try:
        source = {"arch": told["arch"]} if code is None else {"file": trusted_code(package, code)}
        spec = ModelSpec(options=told.get("options") or {}, defence=tuple(told.get("defence") or ()))
        if any(not isinstance(value, int | float) for value in spec.options.values()):
            raise ValueError(f"expected numbers as options, got {spec.options}")
        weights = safetensors.torch.load(package.read(WEIGHTS))
        model = models.build(**source, **facts, options=spec.options, normalize=layer_of(weights, facts, code))
        models.load(model, weights, name)
        return defend(model, spec)
    except PackageError:
        raise
    except (ValueError, TypeError, KeyError, OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"the network of {package.contents.place} cannot be built: {in_a_line(error)}") from error


def trusted_code(package: Package, code: str) -> str:
    """The user's code, if it is what the package was made with. Raises ValueError otherwise."""
    place, _, factory = code.rpartition(":")
    if not place.endswith(".py") or not factory:
        raise ValueError(f"expected {GRADIENTS} as FILE.py:factory, got {code!r}")
    if package.has_gradients:
        raise ValueError(f"{GRADIENTS} has no effect: the architecture has a name, {package.network['arch']}")
    if code_hash(Path(place)) != package.network["code"]["sha256"]:
        raise ValueError(f"{place} is not the code that the package was made with, by its hash")
    return code


def layer_of(weights: dict[str, Tensor], facts: dict[str, Any], code: str | None) -> models.Statistics | None:
    """A first layer for a user's network that had one: its numbers are among the weights."""
    ours = all(name.startswith(("normalize.", "net.")) for name in weights)
    if code is None or not ours or "normalize.mean" not in weights:
        return None
    return (0.0,) * facts["in_channels"], (1.0,) * facts["in_channels"]


def defend(model: nn.Module, spec: ModelSpec) -> nn.Module:
    """The model with the spec's defences around it, the first next to it."""
    for defence in spec.defence:
        model = DEFENCES[defence.name](model, **defence.params)
    into_mode(model, training=False)
    return model
