"""What the commands do that submit something: a study's file, or a study made from options."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.engine import Store
from jobs.errors import SpecError
from jobs.numbers import number, written_whole
from jobs.plan import Resolved, resolve
from jobs.reading import read_value
from jobs.study import Origin, Study, check, load_study
from jobs.submit import Submitted, submit


def submit_file(url: str, path: Path, changes: dict[str, Any], priority: int = 0) -> tuple[Store, Submitted]:
    """Submit the study in a file, with the command line's changes; a data set given there is relative to here."""
    study, origin, data_folder = read_file(path, changes)
    return submit(url, study, origin, path.parent, data_folder=data_folder, priority=priority)


def resolve_file(path: Path, changes: dict[str, Any]) -> Resolved:
    """The study in a file, its data and files found and hashed."""
    study, origin, data_folder = read_file(path, changes)
    return resolve(study, origin, path.parent, data_folder)


def read_file(path: Path, changes: dict[str, Any]) -> tuple[Study, Origin, Path]:
    """The study, where its parts come from, and the folder that its data set is relative to."""
    given = {name: value for name, value in changes.items() if value is not None}
    if "examples" in given:
        given["examples"] = count(given["examples"])
    study, origin = load_study(path, given)
    # What the command line names lies relative to where it was typed.
    return study, origin, Path() if "dataset" in given else path.parent


def count(value: str) -> int | str:
    """A number of examples, or all."""
    found = value if value == "all" else written_whole(value)
    if found is None or (found != "all" and found < 0):
        raise SpecError(f"--examples: expected a number or all, got {value!r}")
    return found


def submit_attack(url: str, options: dict[str, Any]) -> tuple[Store, Submitted]:
    """Submit the study of one model that `robustq attack` means."""
    params = parameters(options["params"])
    radii = [radius(text) for text in options["eps"]]
    attacks = []
    for name in options["attacks"]:
        entry: dict[str, Any] = {"name": name} | params
        entry |= {"norm": options["norm"]} if options["norm"] else {}
        entry |= {"eps": radii} if radii else {}
        attacks.append(entry)
    model = model_entry(options["model"], options["weights"])
    return submit_one_off(url, "attack", model, attacks, options)


def submit_audit(url: str, options: dict[str, Any]) -> tuple[Store, Submitted]:
    """Submit the study of one audit that `robustq audit` means."""
    entry = {"name": "audit", "norm": options["norm"], "eps": radius(options["eps"]), "queries": options["queries"]}
    model = model_entry(options["model"], options["weights"])
    return submit_one_off(url, "audit", model, [entry], options)


def submit_training(url: str, options: dict[str, Any]) -> tuple[Store, Submitted]:
    """Submit the study of one training that `robustq train` means."""
    train = {"objective": options["objective"], "epochs": options["epochs"]} | parameters(options["params"])
    model = model_entry(options["model"], None) | {"train": train}
    return submit_one_off(url, "train", model, [{"name": "clean"}], options | {"examples": "all"})


def submit_one_off(
    url: str, name: str, model: dict[str, Any], attacks: list[dict[str, Any]], options: dict[str, Any]
) -> tuple[Store, Submitted]:
    label = Path(options["model"]).name
    data = {
        "name": name,
        "dataset": options["dataset"],
        "models": {label: model},
        "attacks": attacks,
        "seeds": [options["seed"]],
        "examples": count(options["examples"]),
    }
    named = {"dataset": "--dataset", "eps": "--eps", "norm": "--norm", "weights": "--weights", "train": "--param"}
    named |= {"attacks": "--attack", "models": "MODEL"}
    origin = Origin(name, {}, named)
    study = check(data, origin)
    return submit(url, study, origin, Path(), data_folder=Path())


def model_entry(model: str, weights: str | None) -> dict[str, Any]:
    """MODEL as a study's entry: what has a colon is the user's code, but for torchvision's."""
    if model.endswith(".py"):
        raise SpecError(f"MODEL: expected the function that builds it too, as {model}:build, got {model!r}")
    entry = {"file": model} if ":" in model and not model.startswith("torchvision:") else {"arch": model}
    return entry | ({"weights": weights} if weights else {})


def radius(text: str) -> float:
    try:
        value = float(number(text))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SpecError(f"--eps: expected a number such as 8/255, got {text!r}")
    return value


def parameters(texts: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE options, the values as a study would have them."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise SpecError(f"--param: expected NAME=VALUE, got {text!r}")
        try:
            found[name] = read_value(value)
        except ValueError as error:
            raise SpecError(f"--param: expected NAME=VALUE, got {text!r}: {error}") from error
    return found
