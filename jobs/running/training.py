"""A training job."""

import io
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import safetensors.torch
import torch
from torch import nn

from robustlib.datasets.lazy_images import LazyImages
from robustlib.memory import out_of_memory
from robustlib.training.loop import Training, fit, split
from robustq.jobs.running.context import Context, Progress, Result, surroundings
from robustq.jobs.running.inputs import build_model, load_data
from robustq.jobs.specs import TrainSpec
from robustq.jobs.store import artifacts
from robustq.jobs.text.safe_text import say


def run_training(spec: TrainSpec, context: Context) -> Iterator[Progress | Result]:
    """Train, keeping every epoch's state; a state that is there already is taken up."""
    train = load_data(spec.data, "train")
    model = build_model(spec.model, train, spec.seed, context.folder)
    key, total = spec.key(), spec.settings.epochs
    told: list[str] = []
    state = state_of(key, context, model, told)
    for line in told:
        say(f"robustq: {line}", err=True)
        yield Progress(0, total, line)
    x, y = LazyImages(train.images), torch.from_numpy(train.y)
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
        "extra": {"history": history, "best": best, "mode": modes(history)},
    }
    yield Result(row | surroundings(context), artifacts=(stored,))


def state_of(key: str, context: Context, model: nn.Module, told: list[str]) -> dict[str, Any] | None:
    """The state that an earlier run kept last, as far as it can be taken up; None where the training begins.

    told: gets a line for each that cannot.
    """
    fresh = {name: value.shape for name, value in model.state_dict().items()}
    for kept in artifacts.get_partial(context.artifacts, key, told.append):
        try:
            state = torch.load(io.BytesIO(kept), map_location=context.device, weights_only=True)
            if {name: value.shape for name, value in state["model"].items()} == fresh:
                return state
            why = "is of a model with other parameters"
        except Exception as error:  # as it was written, by another version of PyTorch
            if out_of_memory(error):
                raise
            why = f"cannot be read ({type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''})"
        told.append(f"the state of the unfinished training {key[:12]} {why}: {artifacts.INSTEAD}")
    return None


def modes(history: list[dict[str, Any]]) -> str:
    """In which forms the network was attacked while it trained, in words."""
    return "; ".join(dict.fromkeys(epoch.get("search", "") for epoch in history))
