"""An evaluation job: a model made ready once, its attacks run, a result for each radius."""

import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import safetensors.torch
import torch

from robustlib.attacks.autoattack import Recipe
from robustlib.attacks.types import AttackFunction
from robustlib.checks.whole_evaluation import check_whole
from robustlib.datasets.choose import choose
from robustlib.datasets.lazy_images import LazyImages
from robustlib.evaluation.batches import Ready, evaluate_curve, given
from robustlib.evaluation.certified import evaluate_certified, voter_for
from robustlib.evaluation.kept_images import KeptImages
from robustlib.evaluation.outcome_checks import check_outcome
from robustlib.inference.replica import Replica
from robustlib.metrics import summarise
from robustlib.outcome import Batch, all_proved, join
from robustlib.settings import AUDIT, BEYOND_HALF, CERTIFY
from robustq.jobs.running.attacks import recipe_of
from robustq.jobs.running.audit import run_audit
from robustq.jobs.running.checks import verdict_columns
from robustq.jobs.running.context import Context, Progress, Result, surroundings
from robustq.jobs.running.inputs import load_data
from robustq.jobs.running.surrogates import surrogate_of
from robustq.jobs.running.warm_models import ready_model
from robustq.jobs.specs import EvalSpec, ShardSpec, SubsetSpec
from robustq.jobs.store import artifacts, example_outcomes


def run_evaluation(spec: EvalSpec, context: Context) -> Iterator[Progress | Result]:
    """Attack the chosen examples of a split, in file order. The radii of a curve are one search, run once."""
    if spec.attack.name == AUDIT:
        yield from run_audit(spec, context, ready_model(spec, context)[0])
        return
    family = (
        context.artifacts
        + context.device
        + spec.model_copy(update={"attack": spec.attack.model_copy(update={"eps": None})}).key()
    )
    if family not in last_curve or not are_kept(last_curve[family][spec.attack.eps], context):
        results: dict[float | None, Result] = {}
        for step in search_radii(spec, context):
            if isinstance(step, Progress):
                yield step
            else:
                results = step
        last_curve.clear()
        last_curve[family] = results
    yield last_curve[family][spec.attack.eps]
    if not spec.attack.curve:
        last_curve.clear()


def are_kept(found: Result, context: Context) -> bool:
    """Whether the files that a result left are there still: they may be what it is asked for again."""
    return not any(artifacts.reason_of(context.artifacts, stored.sha256) for stored in found.artifacts)


# PyTorch's generator gives a GPU's threads numbers each, so that how many run at once decides which go where.
CARDS = ", its own random numbers those of this card"

# What the latest curve found at each radius: the jobs of a curve run one after the other in one process.
last_curve: dict[str, dict[float | None, Result]] = {}


def search_radii(spec: EvalSpec, context: Context) -> Iterator[Progress | dict[float | None, Result]]:
    """Evaluate at the attack's radius, or at all radii of its curve: progress, then a result for each."""
    start = time.perf_counter()
    device = torch.device(context.device)
    test = load_data(spec.data)
    x, y = LazyImages(test.images), torch.from_numpy(test.y)
    rows = torch.from_numpy(examples_of(spec, test.y))
    ready, warm = ready_model(spec, context)
    surrogate = surrogate_of(spec, context)
    made_on = None if surrogate is None else surrogate.replica
    radii = spec.attack.curve or (spec.attack.eps,)
    recipes = [recipe_of(spec.attack, eps, ready.classes) for eps in radii]
    budgets = [0.0 if spec.attack.name == "clean" else eps for eps in radii]
    before, batches, voter = cost(ready, made_on), [], None
    common: Any = {"seed": spec.seed, "index": rows, "device": device}
    if spec.attack.name == CERTIFY:
        voter = voter_for(ready, x, spec.attack.params.get("sigma"), device)
        found = evaluate_certified(ready, x, y, radii, voter=voter, **common, **spec.attack.params)
    else:
        plan = [(eps, recipe.stages) for eps, recipe in zip(budgets, recipes, strict=True)]
        search: Any = {"norm": spec.attack.norm or "Linf", "batch_size": spec.batch_size}
        chance: Any = {"draws": spec.draws, "eot_draws": spec.eot_draws, "surrogate": made_on}
        found = evaluate_curve(ready.model, x, y, plan, ready=ready, **common, **search, **chance)
    keep = 0 if isinstance(spec, ShardSpec) and spec.first else spec.images  # the first shard holds all that are kept
    kept = [KeptImages(keep) for _ in radii]
    for batch in found:
        for images, one in zip(kept, batch, strict=True):
            images.add(one)
        batches.append(tuple(replace(one, x_adv=one.x_adv[:0].clone()) for one in batch))
        yield Progress(sum(len(done[0].outcome.index) for done in batches), len(rows), "examples")
    seconds = time.perf_counter() - start
    shared = surroundings(context) | {"seconds": seconds / len(recipes)}
    mode = mode_of(ready, budgets[0], device) if voter is None else voter.mode
    extra: dict[str, Any] = {"mode": mode, "warmup_seconds": 0.0 if warm else ready.seconds}
    if len(radii) > 1:
        extra["curve_seconds"] = seconds
    extra |= {name: after - before[name] for name, after in cost(ready, made_on).items()}
    if extra.get("overflows"):
        extra["mode"] += BEYOND_HALF
    extra |= {"peak_memory_bytes": peak_memory(device)}
    if ready.replicas is None and len(radii) > 1 and spec.attack.name != CERTIFY:
        extra["radii"] = accuracies(radii, batches)  # each was searched by itself
    if surrogate is not None:
        extra["surrogate"] = surrogate.told(join([batch[0].outcome for batch in batches]), x, device)
    results: dict[float | None, Result] = {}
    for eps, recipe, images, found in zip(radii, recipes, kept, zip(*batches, strict=True), strict=True):
        own = extra | {"substitutions": list(recipe.substitutions)}
        if (proved := all_proved(found)) is not None:
            own["proved"] = int(proved.sum())
        if ready.replicas is not None:
            own["stages"] = stages(recipe, found)
        attacks = [attack for _, attack in given(recipe.stages, made_on)]
        results[eps] = result(found, images, spec, context, shared | {"extra": own}, ready, eps, attacks)
    yield results


def mode_of(ready: Ready, eps: float | None, device: torch.device) -> str:
    """In which form the model is searched, in words; of a random one on a GPU also whose its random numbers are."""
    cards = ready.replicas is None and device.type == "cuda"
    return ready.mode(eps) + (CARDS if cards else "")


def examples_of(spec: EvalSpec, y: np.ndarray) -> np.ndarray:
    """Places of the examples that are evaluated; of a shard those in its range, of a subset those that it names."""
    rows = choose(y, spec.examples, spec.choose)
    if isinstance(spec, ShardSpec):
        rows = rows[(rows >= spec.first) & (rows < spec.last)]
    if isinstance(spec, SubsetSpec):
        rows = rows[np.isin(rows, spec.places)]
    return rows


def accuracies(radii: Sequence[float | None], batches: Sequence[tuple[Batch, ...]]) -> list[list[float | None]]:
    """Each radius with the robust accuracy there."""
    correct = [
        np.concatenate([batch.outcome.adversarial_correct for batch in column]) for column in zip(*batches, strict=True)
    ]
    return [[eps, float(right.mean(dtype=np.float64))] for eps, right in zip(radii, correct, strict=True)]


def stages(recipe: Recipe, batches: Sequence[Batch]) -> list[dict[str, Any]]:
    """Robust accuracy after each attack, and the seconds it took."""
    stage = np.concatenate([batch.stage for batch in batches])
    return [
        {
            "attack": name,
            "robust_accuracy": float((stage > position).mean()),
            "seconds": sum(batch.seconds[position] for batch in batches),
        }
        for position, (name, _) in enumerate(recipe.stages)
    ]


def result(
    batches: Sequence[Batch],
    images: KeptImages,
    spec: EvalSpec,
    context: Context,
    shared: dict[str, Any],
    ready: Ready,
    eps: float | None,
    attacks: Sequence[AttackFunction],
) -> Result:
    """The row, the per-example outcomes and the kept images of one radius, with what checks say of them."""
    start = time.perf_counter()
    outcome = join([batch.outcome for batch in batches])
    checks = []
    if spec.attack.name != CERTIFY:
        norm: Any = spec.attack.norm
        checks = check_outcome(
            ready, LazyImages(load_data(spec.data).images), outcome, images, norm=norm, eps=eps, seed=spec.seed,
            attacks=attacks, eot_draws=spec.eot_draws, device=torch.device(context.device),
        )  # fmt: skip
    if not isinstance(spec, ShardSpec):  # a shard's few images are not all that these are about
        checks += check_whole(vars(outcome), shared["extra"], eps, spec.draws)
    extra = shared["extra"] | {"check_seconds": time.perf_counter() - start}
    table = example_outcomes.to_table({f.name: getattr(outcome, f.name) for f in fields(outcome)})
    stored = ()
    if images.first:
        packed = safetensors.torch.save({"x_adv": images.first_images().contiguous()})
        stored = (artifacts.put(context.artifacts, "images", packed),)
    row = summarise(vars(outcome)) | shared | {"extra": extra} | verdict_columns(checks)
    return Result(row, example_outcomes.encode(table), stored)


def cost(ready: Ready, surrogate: Replica | None) -> dict[str, int]:
    """Examples passed forward and back so far."""
    if ready.replicas is None:
        return {}
    return asdict(replace(ready.replicas, surrogate=surrogate).passes)


def peak_memory(device: torch.device) -> int:
    """Bytes that the process has held at once: of the GPU's memory, or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
