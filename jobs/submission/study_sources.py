"""Sources of a study for the commands that submit one: its file, or options that make one."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from robustlib.addresses import is_address, public
from robustlib.packages.manifest import is_file_alone
from robustlib.settings import EXPLAIN, NO_ATTACK, NO_RADIUS
from robustq.jobs.errors import SpecError
from robustq.jobs.store.connection import Store
from robustq.jobs.study.study import Origin, Study, check, load_study
from robustq.jobs.study.yaml_with_lines import read_value
from robustq.jobs.submission.budget import Budget
from robustq.jobs.submission.expand_study import resolve
from robustq.jobs.submission.plan import Resolved
from robustq.jobs.submission.submit import Submitted, submit
from robustq.jobs.text import number_parsing
from robustq.jobs.text.number_parsing import read_number, written_whole

READING_NAMES = ("split", "label", "image", "classes", "size", "crop", "exif_transpose")


def submit_file(
    url: str, path: Path, changes: dict[str, Any], priority: int = 0, budget: Budget | None = None
) -> tuple[Store, Submitted]:
    """Submit the study in a file, with the command line's changes; a data set given there is relative to here."""
    study, origin, data_folder = read_file(path, changes)
    return submit(url, study, origin, path.parent, data_folder=data_folder, priority=priority, budget=budget)


def resolve_file(path: Path, changes: dict[str, Any]) -> Resolved:
    """The study in a file, its data and files found and hashed."""
    study, origin, data_folder = read_file(path, changes)
    return resolve(study, origin, path.parent, data_folder)


def read_file(path: Path, changes: dict[str, Any]) -> tuple[Study, Origin, Path]:
    """The study, where its parts come from, and the folder that its data set is relative to."""
    given = {name: value for name, value in changes.items() if value is not None}
    if "examples" in given:
        given["examples"] = count(given["examples"])
    if "size" in given:
        given["size"] = side(given["size"])
    study, origin = load_study(path, given)
    # What the command line names lies relative to where it was typed.
    return study, origin, Path() if "dataset" in given else path.parent


def count(value: str) -> int | str:
    """A number of examples, or all."""
    found = value if value == "all" else written_whole(value)
    if found is None or (found != "all" and found < 0):
        raise SpecError(f"--examples: expected a number or all, got {value!r}")
    return found


def side(value: str) -> int | list[int]:
    """A size in pixels: of the shorter side, or of height and width."""
    sides = [written_whole(part) for part in value.split("x")]
    known = [side for side in sides if side is not None]
    if len(known) < len(sides) or len(sides) > 2:
        raise SpecError(f"--size: expected pixels as 256 or 224x320, got {value!r}")
    return known[0] if len(known) == 1 else known


def submit_attack(
    url: str, options: dict[str, Any], is_new: Callable[[], None] = lambda: None
) -> tuple[Store, Submitted]:
    """Submit the study of one model that `robustq attack` means. is_new: as `submit` has it."""
    taken = {"name": "--attack"} | {name: f"--{name}" for name in ("norm", "eps") if options[name] not in (None, ())}
    params = parameters(options["params"], taken)
    radii = [radius(text) for text in options["eps"]]
    attacks = []
    bounded = any(name not in NO_RADIUS for name in options["attacks"])
    for name in options["attacks"]:
        entry: dict[str, Any] = {"name": name}
        # What stands beside attacks with a radius is meant without one. Alone, an option has no effect, and is refused.
        if not (bounded and name in NO_RADIUS):
            entry |= {} if options["norm"] is None else {"norm": options["norm"]}
            entry |= {"eps": radii} if radii else {}
        if not (name == NO_ATTACK and len(set(options["attacks"])) > 1):
            entry |= params
        attacks.append(entry)
    model = model_entry(options["model"], options["weights"]) | normalize_entry(options)
    return submit_one_off(url, "attack", model, attacks, options, is_new)


def submit_audit(
    url: str, options: dict[str, Any], is_new: Callable[[], None] = lambda: None
) -> tuple[Store, Submitted]:
    """Submit the study of one audit that `robustq audit` means."""
    entry = {"name": "audit", "norm": options["norm"], "eps": radius(options["eps"]), "queries": options["queries"]}
    model = model_entry(options["model"], options["weights"]) | normalize_entry(options)
    return submit_one_off(url, "audit", model, [entry], options, is_new)


def submit_explanation(
    url: str, options: dict[str, Any], is_new: Callable[[], None] = lambda: None
) -> tuple[Store, Submitted]:
    """Submit the study of one model's explanations that `robustq explain` means."""
    methods, params = options["methods"], parameters(options["params"], {"method": "--method"})
    if params and len(methods) > 1:
        raise SpecError(f"--param: expected one --method to set it for, got {len(methods)}")
    entry = {
        "name": EXPLAIN,
        "method": [{"name": method} | params if params else method for method in methods],
        "against": list(options["against"]),
        "norm": options["norm"],
        "eps": radius(options["eps"]),
    }
    model = model_entry(options["model"], options["weights"]) | normalize_entry(options)
    return submit_one_off(url, "explain", model, [entry], options, is_new)


def submit_training(
    url: str, options: dict[str, Any], is_new: Callable[[], None] = lambda: None
) -> tuple[Store, Submitted]:
    """Submit the study of one training that `robustq train` means."""
    params = parameters(options["params"], {"objective": "--objective", "epochs": "--epochs"})
    train = {"objective": options["objective"], "epochs": options["epochs"]} | params
    model = model_entry(options["model"], None) | normalize_entry(options) | {"train": train}
    return submit_one_off(url, "train", model, [{"name": "clean"}], options | {"examples": "all"}, is_new)


def submit_one_off(
    url: str,
    name: str,
    model: dict[str, Any],
    attacks: list[dict[str, Any]],
    options: dict[str, Any],
    is_new: Callable[[], None],
) -> tuple[Store, Submitted]:
    study, origin = one_off(name, model, attacks, options)
    return submit(url, study, origin, Path(), data_folder=Path(), is_new=is_new)


def resolve_model(options: dict[str, Any]) -> Resolved:
    """The model and the data that options of `robustq attack` mean, found and hashed, without any attack."""
    model = model_entry(options["model"], options["weights"]) | normalize_entry(options)
    study, origin = one_off("package", model, [{"name": "clean"}], options | {"seed": 0, "examples": "all"})
    return resolve(study, origin, Path(), Path())


def one_off(
    name: str, model: dict[str, Any], attacks: list[dict[str, Any]], options: dict[str, Any]
) -> tuple[Study, Origin]:
    """The study of one model that a command means."""
    label = model_label(options["model"])
    data = {
        "name": name,
        "dataset": options["dataset"],
        "models": {label: model},
        "attacks": attacks,
        "seeds": [options["seed"]],
        "examples": count(options["examples"]),
    }
    given = {name: options[name] for name in (*READING_NAMES, "choose", "images") if options.get(name) is not None}
    data |= given | ({"size": side(given["size"])} if "size" in given else {})
    named = {name: f"--{name.replace('_', '-')}" for name in given}
    named |= {"dataset": "--dataset", "eps": "--eps", "norm": "--norm", "weights": "--weights", "train": "--param"}
    named |= {"normalize": "--normalize" if options["normalize"] else "--mean and --std"}
    named |= {
        "attacks": "--method" if name == EXPLAIN else "--attack",
        "models": "MODEL",
        "method": "--method",
        "against": "--against",
    }
    origin = Origin(name, {}, named)
    return check(data, origin), origin


def model_entry(model: str, weights: str | None) -> dict[str, Any]:
    """MODEL as a study's entry: what has a colon is the user's code, but for torchvision's; an ONNX file or a package
    is a model by itself.
    """
    if model.endswith(".py"):
        raise SpecError(f"MODEL: expected the function that builds it too, as {model}:build, got {model!r}")
    users = (":" in model and not model.startswith("torchvision:")) or is_file_alone(Path(model))
    entry = {"file": model} if users else {"arch": model}
    return entry | ({} if weights is None else {"weights": weights})


def model_label(model: str) -> str:
    """What results call a model that was given alone: the end of its place."""
    return Path(public(model) if is_address(model) else model).name


def normalize_entry(options: dict[str, Any]) -> dict[str, Any]:
    """How images are normalised, as a model's entry: by a name, or by a mean and a standard deviation."""
    name, mean, std = options["normalize"], options["mean"], options["std"]
    if name is not None and (mean is not None or std is not None):
        raise SpecError("expected --normalize or --mean and --std, got both")
    if (mean is None) != (std is None):
        raise SpecError(f"expected --mean and --std, got {'--std' if mean is None else '--mean'} alone")
    if mean is None or std is None:
        return {} if name is None else {"normalize": name}
    return {"normalize": {"mean": by_channel("--mean", mean), "std": by_channel("--std", std)}}


def by_channel(option: str, text: str) -> list[float]:
    """Numbers with commas between, one a channel, or one for all."""
    read = [read_number(part) for part in text.split(",")]
    known = [part for part in read if part is not None]
    if len(known) < len(read):
        raise SpecError(f"{option}: expected numbers such as 0.49,0.48,0.45, one a channel, got {text!r}")
    return known


def radius(text: str) -> float:
    try:
        return number_parsing.radius(text)
    except number_parsing.NotNumber as error:
        raise SpecError(f"--eps: {error}") from error


def parameters(texts: Sequence[str], taken: Mapping[str, str]) -> dict[str, Any]:
    """NAME=VALUE options, the values as a study would have them. taken: names that an option of their own says."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise SpecError(f"--param: expected NAME=VALUE, got {text!r}")
        if name in taken:
            raise SpecError(f"--param: {name} is said by {taken[name]}, got {text!r}")
        if name in found:
            raise SpecError(f"--param: {name} is given twice")
        try:
            found[name] = read_value(value)
        except ValueError as error:
            raise SpecError(f"--param: expected NAME=VALUE, got {text!r}: {error}") from error
    return found
