"""Models made ready once a process: a worker's jobs mostly share theirs."""

from functools import lru_cache

import safetensors.torch
import torch
from torch import nn

from robustlib import models
from robustlib.datasets import load
from robustlib.datasets.lazy_images import LazyImages
from robustlib.evaluation.batches import Ready, make_ready
from robustq.jobs.running.context import Context
from robustq.jobs.running.inputs import build_network, load_data, unmeasured
from robustq.jobs.running.package_models import defend
from robustq.jobs.specs import DataRef, EvalSpec, ModelSpec
from robustq.jobs.store import artifacts

Given = tuple[str, DataRef, int, str | None, str, str, str, str]  # the arguments of make_model_ready


def ready_model(spec: EvalSpec, context: Context) -> tuple[Ready, bool]:
    """The model ready to be evaluated, and whether it was so already."""
    before = make_model_ready.cache_info().hits
    ready = make_model_ready(*given(spec.model, spec.train, spec, context))
    return ready.for_evaluation(), make_model_ready.cache_info().hits > before


def given(model: ModelSpec, train: str | None, spec: EvalSpec, context: Context) -> Given:
    """All that a model of an evaluation is made of: its own, or its surrogate."""
    weights = context.weights[train] if train is not None else ""
    about = (model.model_dump_json(), spec.data, spec.seed, train, weights)
    return (*about, context.device, context.artifacts, context.folder)


@lru_cache(maxsize=3)  # the model, the one before it, and a surrogate
def make_model_ready(
    model: str,
    ref: DataRef,
    seed: int,
    train: str | None,
    weights: str,
    device: str,
    artifacts: str,
    folder: str,
) -> Ready:
    test = load_data(ref)
    spec = ModelSpec.model_validate_json(model)
    context = Context(device, artifacts, folder, {train: weights} if train else {})
    built = trained_model(spec, test, seed, context, train)
    return make_ready(built, LazyImages(test.images), test.num_classes, torch.device(device))


def trained_model(spec: ModelSpec, dataset: load.Dataset, seed: int, context: Context, train: str | None) -> nn.Module:
    """The model with the weights that its training job left, or as given."""
    given = spec if train is None else unmeasured(spec, dataset)
    model = build_network(given, dataset, seed, context.folder)
    if train is not None:
        sha256 = context.weights[train]
        weights = safetensors.torch.load(artifacts.get(context.artifacts, sha256))
        models.load(model, weights, f"artifact {sha256[:12]}")
    return defend(model, spec)
