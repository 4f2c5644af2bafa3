"""What a job means: a spec in, kernels called, a result out. The only file of this floor that knows torch."""

import inspect
import io
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import safetensors.torch
import torch
from pydantic import TypeAdapter
from torch import nn

from jobs import artifacts, examples
from jobs.artifacts import Artifact
from jobs.specs import AttackSpec, DataRef, EvalSpec, ModelSpec, TrainSpec
from robustlib import KERNEL_VERSION, data, models
from robustlib.attacks import ATTACKS
from robustlib.draws import seeded
from robustlib.evaluate import evaluate
from robustlib.metrics import summarise
from robustlib.modes import as_images
from robustlib.outcome import check_classes, join
from robustlib.settings import NORMS, TrainSettings
from robustlib.training import OBJECTIVES
from robustlib.training.loop import Training, fit, split


@dataclass(frozen=True)
class Context:
    """Where a job runs: device ("cpu" or "cuda"), the artifact folder, hashes of the weights it needs by job key."""

    device: str
    artifacts: str
    weights: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """How far a job is: done of total units, a sentence for people."""

    done: int
    total: int
    note: str


@dataclass(frozen=True)
class Result:
    """What a job gave: columns of its result row, per-example outcomes as Arrow bytes, files it left behind."""

    row: dict[str, Any]
    examples: bytes | None = None
    artifacts: tuple[Artifact, ...] = ()


def run(spec: TrainSpec | EvalSpec, context: Context) -> Iterator[Progress | Result]:
    """Do the job: progress as it goes, then its result."""
    match spec:
        case TrainSpec():
            yield from run_training(spec, context)
        case EvalSpec():
            yield from run_evaluation(spec, context)


def load_data(ref: DataRef, split: str) -> data.Dataset:
    return open_data(ref.place, ref.sha256, split)


@lru_cache(maxsize=4)  # a worker's jobs mostly share their data
def open_data(place: str, sha256: str, split: str) -> data.Dataset:
    if data.fingerprint(place) != sha256:
        raise ValueError(f"dataset {place} has changed since the job was submitted: submit the study again")
    return data.load(place, split)


def build_model(spec: ModelSpec, dataset: data.Dataset, seed: int) -> nn.Module:
    """The spec's model for this data, in eval mode; fresh weights come from the seed."""
    normalize = None
    if spec.normalize == "dataset":
        normalize = dataset.mean, dataset.std
    elif spec.normalize is not None:
        normalize = spec.normalize.mean, spec.normalize.std
    with seeded(seed, "weights", torch.device("cpu")):
        model = models.build(
            arch=spec.arch,
            file=None if spec.code is None else spec.code.reference,
            weights=None if spec.weights is None else Path(spec.weights.place),
            in_channels=dataset.in_channels,
            num_classes=dataset.num_classes,
            image_size=dataset.image_size,
            normalize=normalize,
            dropout=spec.dropout_at_inference,
            options=spec.options,
        )
    if spec.arch in models.MODELS:
        # Twice as fast on a CPU, and what tensor cores want. A user's own model may rely on the usual order.
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return model


def run_training(spec: TrainSpec, context: Context) -> Iterator[Progress | Result]:
    """Train, keeping every epoch's state; a state that is there already is taken up."""
    train = load_data(spec.data, "train")
    model = build_model(spec.model, train, spec.seed)
    key, total = spec.key(), spec.settings.epochs
    kept = artifacts.get_partial(context.artifacts, key)
    state = None if kept is None else torch.load(io.BytesIO(kept), map_location=context.device, weights_only=True)
    x, y = torch.from_numpy(train.x), torch.from_numpy(train.y)
    done: Training | None = None
    epochs = fit(model, x, y, spec.settings, seed=spec.seed, device=torch.device(context.device), state=state)
    for done in epochs:
        buffer = io.BytesIO()
        torch.save(done.state, buffer)
        artifacts.put_partial(context.artifacts, key, buffer.getvalue())
        last = done.history[-1]
        note = f"loss {last.loss:.3f}, clean {last.clean_accuracy:.3f}, attacked {last.attacked_accuracy:.3f}"
        yield Progress(last.epoch + 1, total, note)
    if done is None:  # killed between the last epoch and the result
        assert state is not None
        history, weights, best = state["history"], state["kept"], state["best"]
    else:
        history, weights, best = [asdict(epoch) for epoch in done.history], done.weights, done.best
    stored = artifacts.put(context.artifacts, "weights", safetensors.torch.save(weights))
    shown = history[best]
    row = {
        "n": len(split(len(x), spec.settings, spec.seed)[1]),
        "clean_accuracy": shown["clean_accuracy"],
        "robust_accuracy": shown["attacked_accuracy"],
        "seconds": sum(epoch["seconds"] for epoch in history),
        "extra": {"history": history, "best": best},
    }
    yield Result(row | surroundings(context), artifacts=(stored,))


def run_evaluation(spec: EvalSpec, context: Context) -> Iterator[Progress | Result]:
    """Attack the first examples of the test split, in file order."""
    start = time.perf_counter()
    test = load_data(spec.data, "test")
    model = trained_model(spec, test, context)
    n = len(test.x) if spec.examples == "all" else min(spec.examples, len(test.x))
    outcomes, kept = [], []
    for batch in evaluate(
        model,
        torch.from_numpy(test.x[:n]),
        torch.from_numpy(test.y[:n]),
        [(spec.attack.name, bind(spec.attack))] * spec.attack.restarts,
        norm=spec.attack.norm or "Linf",
        eps=0.0 if spec.attack.name == "clean" else spec.attack.eps,
        seed=spec.seed,
        num_classes=test.num_classes,
        batch_size=spec.batch_size,
        draws=spec.draws,
        eot_draws=spec.eot_draws,
        device=torch.device(context.device),
    ):
        done = sum(len(outcome.index) for outcome in outcomes)
        kept.append(batch.x_adv[: max(0, spec.images - done)])
        outcomes.append(batch.outcome)
        yield Progress(done + len(batch.outcome.index), n, "examples")
    outcome = join(outcomes)
    table = examples.to_table({f.name: getattr(outcome, f.name) for f in fields(outcome)})
    stored = ()
    if spec.images:
        packed = safetensors.torch.save({"x_adv": torch.cat(kept)})
        stored = (artifacts.put(context.artifacts, "images", packed),)
    row = summarise(vars(outcome)) | surroundings(context)
    row |= {"seconds": time.perf_counter() - start}
    yield Result(row, examples.encode(table), stored)


def trained_model(spec: EvalSpec, dataset: data.Dataset, context: Context) -> nn.Module:
    """The model with the weights that its training job left, or as given."""
    model = build_model(spec.model, dataset, spec.seed)
    if spec.train is not None:
        sha256 = context.weights[spec.train]
        weights = safetensors.torch.load(artifacts.get(context.artifacts, sha256))
        models.load(model, weights, f"artifact {sha256[:12]}")
    return model


def bind(attack: AttackSpec) -> Callable[..., Any]:
    """The attack's function with its parameters filled in."""
    given: dict[str, Any] = {"norm": attack.norm, "eps": attack.eps} if attack.norm else {}
    return partial(ATTACKS[attack.name], **given, **attack.params)


def surroundings(context: Context) -> dict[str, Any]:
    """What the numbers were made on and with."""
    device = cpu_name() if context.device == "cpu" else torch.cuda.get_device_name(context.device)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return {"device": f"{context.device}: {device}", "versions": versions | {"kernel": KERNEL_VERSION}}


def cpu_name() -> str:
    """The processor's name, as Linux and others tell it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# What follows checks a study before anything is queued: names, parameters and given models, against the kernels.


def parameters(function: Callable[..., Any], skip: frozenset[str]) -> dict[str, inspect.Parameter]:
    known = inspect.signature(function).parameters
    return {name: p for name, p in known.items() if p.kind is p.KEYWORD_ONLY and name not in skip}


def check_params(owner: str, known: dict[str, inspect.Parameter], given: dict[str, Any]) -> dict[str, Any]:
    """The given parameters over the defaults. Raises ValueError for an unknown name or a value of the wrong type."""
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{owner} has no parameter {name!r}, it has: {', '.join(sorted(known))}")
        kind = known[name].annotation
        try:
            TypeAdapter(kind).validate_python(value, strict=not isinstance(value, int) or float not in spread(kind))
        except ValueError as error:
            expected = getattr(kind, "__name__", str(kind))
            raise ValueError(f"{owner}: expected {name} of type {expected}, got {value!r}") from error
        if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
            raise ValueError(f"{owner}: expected {name} of at least 0, got {value}")
    return {name: p.default for name, p in known.items()} | given


def spread(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) or (kind,)


def complete_attack(name: str, norm: Any, eps: float | None, restarts: int, given: dict[str, Any]) -> AttackSpec:
    """The attack as a spec with every parameter spelt out."""
    if name not in ATTACKS:
        raise ValueError(f"unknown attack {name!r}, expected one of: {', '.join(ATTACKS)}")
    function = ATTACKS[name]
    params = check_params(name, parameters(function, frozenset({"norm", "eps", "draws"})), given)
    signature = inspect.signature(function).parameters
    if "norm" not in signature:
        if norm is not None or eps is not None:
            raise ValueError(f"{name} has no norm or eps")
        return AttackSpec(name=name, restarts=restarts, params=params)
    norm = norm or signature["norm"].default
    if norm not in NORMS:
        raise ValueError(f"unknown norm {norm!r}, expected one of: {', '.join(NORMS)}")
    eps = signature["eps"].default if eps is None else eps
    return AttackSpec(name=name, norm=norm, eps=eps, restarts=restarts, params=params)


def complete_training(plain: dict[str, Any], attack: dict[str, Any]) -> TrainSettings:
    """Training settings with the objective's attack parameters checked."""
    settings = TypeAdapter(TrainSettings).validate_python(plain)
    if settings.objective not in OBJECTIVES:
        raise ValueError(f"unknown objective {settings.objective!r}, expected one of: {', '.join(OBJECTIVES)}")
    objective: Any = OBJECTIVES[settings.objective]
    crafted_by = getattr(objective, "keywords", {}).get("attack")
    known = {} if crafted_by is None else parameters(crafted_by, frozenset({"draws"}))
    if crafted_by is None and attack:
        known_names = sorted(f.name for f in fields(TrainSettings) if f.name != "attack")
        raise ValueError(f"training has no setting {min(attack)!r}, it has: {', '.join(known_names)}")
    check_params(f"training on {settings.objective}", known, attack)
    return replace(settings, attack=attack)


def check_model(spec: ModelSpec, ref: DataRef) -> None:
    """Build the model once as a job would: what does not fit is found before anything is queued."""
    dataset = load_data(ref, "test")
    model = build_model(spec, dataset, 0)
    check_classes(model, as_images(torch.from_numpy(dataset.x[:2]), torch.device("cpu")), dataset.num_classes)
