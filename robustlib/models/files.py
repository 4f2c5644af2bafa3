"""A user's own model, and weights from a file: nothing in a weights file is ever executed."""

import contextlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from robustlib.code import local_modules
from robustlib.memory import out_of_memory
from robustlib.models.answers import Answers, endpoint, is_address

BESIDE: set[str] = set()  # modules that were imported from beside users' files


def load_factory(reference: str) -> Any:
    """The function named by `FILE.py:factory` or `package.module:factory`. Runs the code that the user named."""
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name:
        raise ValueError(f"expected a model as FILE.py:factory or package.module:factory, got {reference!r}")
    module = import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    factory = getattr(module, name, None)
    if not callable(factory):
        raise ValueError(f"{place} has no function {name!r} that builds a model")
    return factory


def import_file(path: Path) -> Any:
    """Import a Python file by its path; its folder becomes importable, so that it can import its neighbours."""
    if not path.is_file():
        raise FileNotFoundError(f"no model file {path}")
    path = path.resolve()
    sys.path[:] = [str(path.parent), *(place for place in sys.path if place != str(path.parent))]
    # Another folder's `helper.py`, or this one's before it was edited, must not stand in for this one's.
    beside = local_modules(path)
    for known in BESIDE & beside.keys():
        sys.modules.pop(known, None)
    BESIDE.update(name for name in beside if name not in sys.modules)
    # A name of its own: a user's `models.py` must not stand in for somebody else's module of that name.
    name = f"user_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # a path that ends in .py always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with users_code(f"{path} cannot be imported", path):
        spec.loader.exec_module(module)
    return module


@contextmanager
def users_code(what: str, path: Path | None = None) -> Iterator[None]:
    """What the user's own code raises becomes a ValueError of one line, with the place in their file it came from.

    Prints go to stderr: stdout belongs to the results. An exit, too, is the end of the model, not of robustq.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (Exception, SystemExit) as error:
        if out_of_memory(error):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        mine = [f for f in frames if path is not None and Path(f.filename).resolve() == path.resolve()]
        place = f" ({path.name}:{mine[-1].lineno})" if mine and path is not None else ""
        raise ValueError(f"{what}: {type(error).__name__}: {' '.join(str(error).split())}{place}") from error


def check_options(owner: str, factory: Callable[..., Any], options: dict[str, Any]) -> None:
    """Raise ValueError for an option that the factory has no parameter for."""
    accepted = inspect.signature(factory).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        return
    for name in options:
        if name not in accepted:
            raise ValueError(f"{owner} has no option {name!r}, it has: {', '.join(accepted) or 'none'}")


def call_factory(reference: str, facts: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    """Build the user's model: with all of the options, and those of the facts that it has parameters for.

    A callable that is no module becomes one that only answers; an address is a model behind it.
    """
    if is_address(reference):
        check_options(reference, endpoint, options)
        return endpoint(reference, **{"num_classes": facts["num_classes"]} | options)
    factory = load_factory(reference)
    check_options(reference, factory, options)
    # Facts go to parameters of their name alone: a module's class takes **kwargs by its signature, and refuses them.
    accepted = inspect.signature(factory).parameters
    place = reference.rpartition(":")[0]
    with users_code(f"{reference} failed", Path(place) if place.endswith(".py") else None):
        model = factory(**{name: value for name, value in facts.items() if name in accepted} | options)
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, type):
        raise ValueError(f"{reference} returned the class {model.__name__}, expected one of it")
    if not callable(model):
        raise ValueError(f"{reference} returned {type(model).__name__}, expected a torch.nn.Module or a callable")
    return Answers(model, facts.get("num_classes"))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file or a state dict saved by torch.save, on the CPU."""
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        # weights_only refuses anything but tensors: such a file may run code, and is not loaded.
        # A broken one raises whatever torch stumbles over: KeyError, IndexError, struct.error, ...
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ValueError(
            f"{path} holds no plain state dict ({reason}); save one with safetensors.torch.save_file"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no plain state dict; save one with safetensors.torch.save_file")
    return state


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Load every tensor or none. Raises ValueError that names the first misfit."""
    own = model.state_dict()
    missing, strange = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape]
    if missing:
        raise ValueError(f"weights {source} do not fit the model: {len(missing)} tensors missing, first {missing[0]!r}")
    if strange:
        raise ValueError(
            f"weights {source} do not fit the model: {len(strange)} tensors too many, first {strange[0]!r}"
        )
    if shapes:
        key = min(shapes)
        raise ValueError(
            f"weights {source} do not fit the model: {key!r} has shape {tuple(weights[key].shape)}, "
            f"the model expects {tuple(own[key].shape)}"
        )
    model.load_state_dict(weights)
