"""Attacks: functions (model, x, y, *, norm, eps, ...) -> x_adv, by the names that studies use, each described once.

An ensemble is a function of a budget that gives a list of attacks.
"""

from functools import partial

from torch import Tensor, nn

from robustlib.attacks.apgd import apgd, apgd_targeted
from robustlib.attacks.autoattack import autoattack
from robustlib.attacks.corruptions import corruption
from robustlib.attacks.cw import cw
from robustlib.attacks.deepfool import deepfool
from robustlib.attacks.fab import fab, fab_targeted
from robustlib.attacks.fmn import fmn
from robustlib.attacks.hopskipjump import FIRST_STEP, hopskipjump
from robustlib.attacks.mifgsm import mifgsm
from robustlib.attacks.pgd import fgsm, pgd
from robustlib.attacks.random_search import noise
from robustlib.attacks.spsa import first_step, nes, spsa
from robustlib.attacks.square import square
from robustlib.attacks.transfer import transfer
from robustlib.attacks.types import Attack, Ensemble, Params
from robustlib.inference.throughput import Work, stepped
from robustlib.input_checks import checked


@checked
def clean(model: nn.Module, x: Tensor, y: Tensor, *, draws: object = None) -> Tensor:
    """No attack: the images as they are."""
    return x


def each_step(params: Params) -> Work:
    """A gradient for each step."""
    return stepped(params["steps"])


def each_query(params: Params) -> Work:
    """A pass for each query."""
    return Work(params["queries"])


def each_target(params: Params) -> Work:
    """Auto-PGD's steps for each target, and passes that rank the classes and tell who stands."""
    return Work(1 + params["targets"]) + stepped(params["steps"] + 1) * params["targets"]


def each_boundary(params: Params) -> Work:
    """DeepFool's gradients for each class. It stops at its first success, and is mostly done after five steps."""
    classes = params["classes"]
    return Work(1, classes) + Work(classes + 1, classes) * min(params["steps"], 5)


ATTACKS: dict[str, Attack] = {
    "clean": Attack(clean, lambda p: Work(0), restarts=False),
    "fgsm": Attack(fgsm, lambda p: stepped(1)),
    "pgd": Attack(partial(pgd, stop_at_success=True), each_step, one_search=True, one_run=True),
    "mifgsm": Attack(mifgsm, each_step, deterministic=True),
    "apgd-ce": Attack(partial(apgd, loss="ce"), lambda p: stepped(p["steps"] + 1), one_search=True),
    "apgd-dlr": Attack(partial(apgd, loss="dlr"), lambda p: stepped(p["steps"] + 1), one_search=True),
    "apgd-t": Attack(apgd_targeted, each_target, one_search=True),
    "fab": Attack(fab, lambda p: Work(1 + (p["classes"] + 1) * p["steps"], (p["classes"] - 1) * p["steps"])),
    "fab-t": Attack(fab_targeted, lambda p: Work(1 + 2 * p["steps"] * p["targets"], p["steps"] * p["targets"])),
    "square": Attack(square, each_query, one_search=True),
    "deepfool": Attack(deepfool, each_boundary, deterministic=True),
    "cw": Attack(cw, lambda p: stepped(p["steps"] * p["search_steps"]), deterministic=True),
    "fmn": Attack(fmn, each_step, deterministic=True),
    "spsa": Attack(spsa, each_query, first_step=first_step),
    "nes": Attack(nes, each_query, first_step=first_step),
    "hopskipjump": Attack(hopskipjump, each_query, first_step=lambda p: FIRST_STEP),
    "noise": Attack(noise, each_query),
    "transfer": Attack(transfer, each_query, surrogate_cost=each_step),
    "corruption": Attack(corruption, lambda p: Work(0), restarts=False),
}

ENSEMBLES: dict[str, Ensemble] = {"autoattack": Ensemble(autoattack, one_search=True)}
