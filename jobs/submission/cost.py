"""The estimated cost of a study before any of it runs: passes of each job, and seconds by a calibration here."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robustlib.attacks import ATTACKS
from robustlib.attacks.surrogate_training import ARCH, EPOCHS
from robustlib.attacks.types import as_stage
from robustlib.defences import RANDOMISED
from robustlib.explanations import EXPLANATIONS
from robustlib.flop_count import flops_of
from robustlib.gpu_failures import asks_for_a_gpu
from robustlib.inference.model_modes import device_of, moved
from robustlib.inference.throughput import VERDICTS, Work
from robustlib.models import is_black_box
from robustlib.models.onnx_model import WithGradients
from robustlib.settings import AUDIT, CERTIFY, EXPLAIN, EXPLANATION_ATTACK, NOISE
from robustlib.training import OBJECTIVES
from robustlib.training.objectives import attack_of
from robustq.jobs.running.attacks import recipe_of
from robustq.jobs.running.inputs import build_model, load_data, unmeasured
from robustq.jobs.running.surrogates import pool_size
from robustq.jobs.specs import AnySpec, AttackSpec, DataRef, EvalSpec, ModelSpec, TrainSpec
from robustq.jobs.submission.plan import Planned, Resolved

CURVE = 2  # a curve costs about so many searches of its costliest radius: docs/architecture.md
BACKWARD = 2  # a gradient beside its pass forward, in passes
AUDIT_WORK = Work(1500, 1000)  # beside its queries, if all of the model's forms are tried: a rule of thumb
UNKNOWN = 100.0  # millions of multiplications, for a model that nothing is known of
STEP = Work(3, 2)  # a training step beside its attack, in passes of an evaluation: a rule of thumb, not measured


def with_costs(plan: list[Planned], resolved: Resolved) -> list[Planned]:
    """The jobs with what each is estimated to cost, in passes weighed by the model's multiplications."""
    weights: dict[str, float] = {}

    def weight(model: ModelSpec) -> float:
        if model.key() not in weights:
            weights[model.key()] = pass_cost(model, resolved.data)
        return weights[model.key()]

    return [replace(planned, cost=cost(planned, resolved, weight)) for planned in plan]


def cost(planned: Planned, resolved: Resolved, weight: Callable[[ModelSpec], float]) -> float:
    spec = planned.spec
    if not isinstance(spec, TrainSpec | EvalSpec):
        return 0.0
    passes = weighed(job_work(planned, resolved))
    random = spec.model.dropout_at_inference or any(part.name in RANDOMISED for part in spec.model.defence)
    if isinstance(spec, EvalSpec) and random:
        passes *= spec.eot_draws
    besides = sum(weight(model) * weighed(work) for model, work in surrogate_work(spec, resolved.data))
    return float(weight(resolved.models[planned.model]) * passes + besides)


def weighed(work: Work) -> int:
    return work.forwards + BACKWARD * work.gradients


def pass_cost(spec: ModelSpec, ref: DataRef) -> float:
    """Multiplications of one pass of the model forward, in millions: of a package those of its network; of its
    parameters, where it takes no pass; UNKNOWN where it cannot be built on this machine, or only answers.
    """
    test = load_data(ref)
    try:
        model = build_model(unmeasured(spec, test), test, 0)
    except ValueError as error:
        if not asks_for_a_gpu(error):
            raise
        return UNKNOWN  # a factory that puts its model on a GPU, where there is none
    x = torch.zeros(1, *test.images.shape[1:])
    try:
        device = device_of(model, x)
        flops = flops_of(lambda: moved(model, device)(x.to(device)))
        if any(isinstance(layer, WithGradients) for layer in model.modules()):
            flops = flops_of(lambda: asked_for_a_gradient(moved(model, device), x.to(device)))
    except Exception:  # its jobs will say what is wrong with it, and must be there to do so
        return sum(p.numel() for p in model.parameters()) / 1e6
    if not flops and is_black_box(model):  # what a program or a server computes, nobody counts
        return UNKNOWN
    return max(flops / 2e6, 1e-3)


def asked_for_a_gradient(model: nn.Module, x: Tensor) -> None:
    """A pass in which the network of a package takes part: what its program computes is not seen."""
    with torch.enable_grad():
        model(x.requires_grad_())


def job_work(planned: Planned, resolved: Resolved) -> Work:
    match planned.spec:
        case TrainSpec(settings=settings):
            total = len(load_data(resolved.train_data, "train"))
            n = total if settings.examples == "all" else min(settings.examples, total)
            stage = attack_of(OBJECTIVES[settings.objective])
            cost = None if stage is None else ATTACKS[settings.objective].cost(stage.defaults | settings.attack)
            return (STEP + (cost or Work(0))) * (n * settings.epochs)
        case EvalSpec(attack=attack, examples=examples):
            total = len(load_data(resolved.data))
            n = total if examples == "all" else min(examples, total)
            return (evaluation_work(attack, load_data(resolved.data).num_classes) + VERDICTS) * n
    raise TypeError(f"expected a training or an evaluation, got {type(planned.spec).__name__}")


def surrogate_work(spec: AnySpec, ref: DataRef) -> list[tuple[ModelSpec, Work]]:
    """The passes of an evaluation's surrogate, with what it is; those of its training, where it has to learn first."""
    if not isinstance(spec, EvalSpec) or spec.attack.eps == 0:
        return []
    known = ATTACKS.get(spec.attack.name)
    if known is None or known.surrogate_cost is None:
        return []
    attack, total = spec.attack, len(load_data(ref))
    n = total if spec.examples == "all" else min(spec.examples, total)
    work = known.surrogate_cost(attack.params) * (n * attack.restarts)
    if attack.surrogate is not None:
        return [(attack.surrogate.model, work)]
    return [(ModelSpec(arch=ARCH), work + STEP * (EPOCHS * pool_size(ref, spec.examples, spec.choose)))]


def evaluation_work(attack: AttackSpec, classes: int) -> Work:
    if attack.eps == 0:
        return Work(0)
    if attack.name == AUDIT:
        return AUDIT_WORK + Work(2 * attack.params["queries"])
    if attack.name == EXPLAIN:
        return explanation_work(attack.params)
    if attack.name == CERTIFY:
        work = Work(attack.params["n0"] + attack.params["n"])
    else:
        stages = recipe_of(attack, attack.eps, classes).stages
        work = sum((ATTACKS[name].cost(as_stage(stage).defaults) for name, stage in stages), Work(0))
    share = CURVE / len(attack.curve) if attack.curve else 1
    return Work(round(work.forwards * share), round(work.gradients * share))


def explanation_work(params: Mapping[str, Any]) -> Work:
    """The passes of an image of an explanation job: its maps, the curves of each, and what makes the images."""
    one = EXPLANATIONS[params["method"]].cost(params["options"])
    curves = Work(2 * (params["curve_steps"] + 1))
    found = (one + curves) * 2  # of the clean image; the map of randomised weights, and the curves of a random order
    for part in params["against"]:
        found += one + curves + Work(1)
        if part["name"] == EXPLANATION_ATTACK:  # of which each step has a gradient of a gradient
            found += Work(2, 2) * part["params"]["steps"] + (one + Work(1)) * (part["params"]["looks"] + 1)
        elif part["name"] != NOISE:
            attack = ATTACKS[part["name"]]
            found += attack.cost(attack.defaults | part["params"])
    return found
