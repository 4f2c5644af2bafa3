"""A user's own model: the function that builds it, found, checked and called."""

import contextlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from robustlib.addresses import is_address, public
from robustlib.inference.global_switches import put_back
from robustlib.memory import out_of_memory
from robustlib.models.black_box import BlackBoxModel, endpoint
from robustlib.models.onnx_model import SUFFIX, onnx_file
from robustlib.models.user_imports import Loader, UserFolder
from robustlib.names import did_you_mean


def load_factory(reference: str) -> Any:
    """The function named by `FILE.py:factory` or `package.module:factory`. Runs the code that the user named."""
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name:
        raise ValueError(f"expected a model as FILE.py:factory or package.module:factory, got {reference!r}")
    module = import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    factory = getattr(module, name, None)
    if not callable(factory):
        there = [one for one, value in vars(module).items() if callable(value) and not one.startswith("_")]
        raise ValueError(f"{place} has no function {name!r} that builds a model{did_you_mean(name, there)}")
    return factory


def import_file(path: Path) -> Any:
    """Import a Python file by its path, anew each time; what it imports from beside it is its own, see `beside`."""
    if not path.is_file():
        raise FileNotFoundError(f"no model file {path}")
    path = path.resolve()
    beside = UserFolder(path.parent)
    # A name of its own: a user's `models.py` must not stand in for somebody else's module of that name.
    name = f"user_file_{path.stem}"
    loader = Loader(name, str(path), beside)
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None  # there is a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with users_code(f"{path} cannot be imported", path):
        loader.exec_module(module)
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


@contextmanager
def users_model(reference: str | None) -> Iterator[None]:
    """What a user's model raises in a method that somebody else calls, as `parameters`, becomes a ValueError of one
    line with the place in their file. reference: of its factory; None for a model that is no user's.
    """
    place = "" if reference is None else reference.rpartition(":")[0]
    file = place if place.endswith(".py") else getattr(sys.modules.get(place), "__file__", None)
    try:
        yield
    except (Exception, SystemExit) as error:
        frames = [] if file is None else traceback.extract_tb(error.__traceback__)
        mine = [f for f in frames if Path(f.filename).resolve() == Path(str(file)).resolve()]
        if not mine or out_of_memory(error):
            raise
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(
            f"{reference} failed in {mine[-1].name}: {told} ({Path(str(file)).name}:{mine[-1].lineno})"
        ) from error


def check_options(owner: str, factory: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """The options as the factory means them: where that is a whole number, 1e1, which YAML reads as 10.0, is 10.

    Raises ValueError for one that the factory has no parameter for, and for a boolean where that is a number.
    """
    accepted = inspect.signature(factory).parameters
    any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    for name, value in options.items():
        if name not in accepted and not any_name:
            known = ", ".join(accepted) or "none"
            raise ValueError(f"{owner} has no option {name!r}, it has: {known}{did_you_mean(name, accepted)}")
        if isinstance(value, bool) and name in accepted and is_number(accepted[name]):
            raise ValueError(f"{owner}: expected a number for the option {name!r}, got {str(value).lower()}")
    whole = {name for name in options if name in accepted and numbers_of(accepted[name]) == {"int"}}
    return {name: as_whole(value) if name in whole else value for name, value in options.items()}


def as_whole(value: Any) -> Any:
    """A float that is a whole number as that; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def is_number(parameter: inspect.Parameter) -> bool:
    return bool(numbers_of(parameter))


def numbers_of(parameter: inspect.Parameter) -> set[str]:
    """Which kinds of number a parameter is, int or float, by its annotation, which may be text, or else by its default;
    none where it may be something else.
    """
    kind = parameter.annotation
    if kind is parameter.empty:
        return {type(parameter.default).__name__} & {"int", "float"}
    words = set(re.findall(r"\w+", kind if isinstance(kind, str) else inspect.formatannotation(kind)))
    return words & {"int", "float"} if words <= {"int", "float", "None", "Optional", "Union", "typing"} else set()


def build_users(
    reference: str, facts: dict[str, Any], options: dict[str, Any], tell: Callable[[str], None] | None = None
) -> nn.Module:
    """`call_factory`, with what the user's file switched for the whole process put back. tell: hears what it was."""
    with put_back() as changed:
        model = call_factory(reference, facts, options)
    if changed and tell is not None:
        tell(
            f"{reference} sets {', '.join(changed)} for the whole process: put back once the model is made, so that no "
            "other job runs under it"
        )
    return model


def call_factory(reference: str, facts: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    """Build the user's model: with all of the options, and those of the facts that it has parameters for.

    A callable that is no module becomes one that only answers; an address is a model behind it, and FILE.onnx one that
    ONNX Runtime runs.
    """
    if is_address(reference):
        options = check_options(public(reference), endpoint, options)
        if "url" in options:
            raise ValueError(f"{public(reference)} is the address: expected no option 'url'")
        return endpoint(reference, **{"num_classes": facts["num_classes"]} | options)
    if reference.endswith(SUFFIX):
        options = check_options(reference, onnx_file, options)
        if "place" in options:
            raise ValueError(f"{reference} is the file: expected no option 'place'")
        return onnx_file(reference, **facts | options)
    factory = load_factory(reference)
    options = check_options(reference, factory, options)
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
    return BlackBoxModel(model, facts.get("num_classes"))
