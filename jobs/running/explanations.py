"""An explanation job: maps of images and of the same images disturbed, their measures, and what checks say of them."""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from robustlib.checks.explanation_sanity import explanation_checks
from robustlib.datasets.choose import choose
from robustlib.datasets.lazy_images import LazyImages
from robustlib.evaluation.explanation_stability import StabilityBatch, stability_batches
from robustlib.number_text import counted
from robustq.jobs.running.checks import verdict_columns
from robustq.jobs.running.context import Context, Progress, Result, surroundings
from robustq.jobs.running.evaluation import examples_of, peak_memory
from robustq.jobs.running.inputs import load_data
from robustq.jobs.running.warm_models import ready_model
from robustq.jobs.specs import EvalSpec, ShardSpec
from robustq.jobs.statistics.explanation_means import clean_accuracy, means_rows
from robustq.jobs.store import artifacts
from robustq.jobs.store.explanations import measures

MAPS = "maps"  # the role of the file with the images and maps that are kept
TOGETHER = 64  # images of a batch where the study names no number


def run_explanations(spec: EvalSpec, context: Context) -> Iterator[Progress | Result]:
    """Explain the chosen examples of a split, in file order."""
    start = time.perf_counter()
    device = torch.device(context.device)
    test = load_data(spec.data)
    rows = torch.from_numpy(examples_of(spec, test.y))
    ready, warm = ready_model(spec, context)
    if ready.replicas is None:
        raise ValueError("explain: expected a model that always gives the same answer, this one is randomised")
    keep = 0 if isinstance(spec, ShardSpec) and spec.first else spec.images  # the first shard holds all that are kept
    kept, columns, done = list[StabilityBatch](), list[dict[str, np.ndarray]](), 0
    look = partial(stability_batches, ready.model, LazyImages(test.images), torch.from_numpy(test.y), device=device)
    for batch in look(**arguments_of(spec), index=rows):
        columns.append(batch.columns)
        if explained_in(kept) < keep:
            kept.append(batch)
        done += len(np.unique(batch.columns["index"]))
        yield Progress(done, len(rows), "examples")
    after = places_after(spec, test.y)
    if explained_in(kept) < keep and len(after):
        for batch in look(**arguments_of(spec), index=after):
            kept.append(batch)
            yield Progress(done, len(rows), f"examples, {min(explained_in(kept), keep)} of {counted(keep, 'map')}")
            if explained_in(kept) >= keep:
                break
    whole = {name: np.concatenate([one[name] for one in columns]) for name in columns[0]}
    row = clean_accuracy(whole) | surroundings(context) | {"seconds": time.perf_counter() - start}
    warmup = 0.0 if warm else ready.seconds
    row["extra"] = {"mode": "float32, as given", "warmup_seconds": warmup, "peak_memory_bytes": peak_memory(device)}
    checks = list(ready.checks)
    if not isinstance(spec, ShardSpec):  # a shard's few images are not all that these are about
        checks += explanation_checks(whole)
        row["explanations"] = means_rows(whole, spec.attack.params)
    stored = ()
    if maps := first_maps(kept, keep):
        stored = (artifacts.put(context.artifacts, MAPS, safetensors.torch.save(maps)),)
    yield Result(row | verdict_columns(checks), measures.encode(whole), stored)


def explained_in(batches: Sequence[StabilityBatch]) -> int:
    return sum(len(one.index) for one in batches)


def places_after(spec: EvalSpec, y: np.ndarray) -> Tensor:
    """Places of the examples after those of a first shard, which keeps the maps of the whole: with the true class as
    target an image that the model takes for another one has none, and its own may be too few.
    """
    rows = choose(y, spec.examples, spec.choose)
    last = spec.last if isinstance(spec, ShardSpec) else rows[-1] + 1
    return torch.from_numpy(rows[rows >= last])


def arguments_of(spec: EvalSpec) -> dict[str, Any]:
    """Those of `stability_batches` that a spec has."""
    params = dict(spec.attack.params)
    against = tuple((one["name"], one["params"]) for one in params.pop("against"))
    about = {"norm": spec.attack.norm, "eps": spec.attack.eps, "seed": spec.seed}
    return params | about | {"against": against, "batch_size": spec.batch_size or TOGETHER}


def first_maps(batches: Sequence[StabilityBatch], most: int) -> dict[str, Tensor]:
    """The first images that were explained, as they were disturbed, and their maps; empty for none.

    index: their places in the split.  image/NAME, map/NAME: float32, shape (n, C, H, W), and (n, 1 or C, H, W), NAME
    being CLEAN and what they were disturbed by.
    """
    batches = [batch for batch in batches if len(batch.index)]
    if not batches or not most:
        return {}
    found = {"index": torch.cat([batch.index for batch in batches])}
    for name in batches[0].images:
        found[f"image/{name}"] = torch.cat([batch.images[name] for batch in batches])
        found[f"map/{name}"] = torch.cat([batch.maps[name] for batch in batches])
    return {name: values[:most].contiguous() for name, values in found.items()}
