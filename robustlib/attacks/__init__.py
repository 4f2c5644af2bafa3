"""Attacks: functions (model, x, y, *, norm, eps, ...) -> x_adv, by the names that studies use.

An ensemble is a function of a budget that gives a list of attacks. Attacks in CURVES get no weaker as their radius
grows, so that several radii may be one search: see robustlib.evaluation.multi_radius.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from robustlib.attacks.apgd import apgd, apgd_targeted
from robustlib.attacks.autoattack import Recipe, autoattack
from robustlib.attacks.corruptions import corruption
from robustlib.attacks.cw import cw
from robustlib.attacks.deepfool import deepfool
from robustlib.attacks.fab import fab, fab_targeted
from robustlib.attacks.fmn import fmn
from robustlib.attacks.hopskipjump import hopskipjump
from robustlib.attacks.pgd import fgsm, pgd
from robustlib.attacks.random_search import noise
from robustlib.attacks.spsa import nes, spsa
from robustlib.attacks.square import square
from robustlib.attacks.transfer import transfer
from robustlib.input_checks import checked


@checked
def clean(model: nn.Module, x: Tensor, y: Tensor, *, draws: object = None) -> Tensor:
    """No attack: the images as they are."""
    return x


ATTACKS: dict[str, Callable[..., Tensor]] = {
    "clean": clean,
    "fgsm": fgsm,
    "pgd": partial(pgd, stop_at_success=True),
    "apgd-ce": partial(apgd, loss="ce"),
    "apgd-dlr": partial(apgd, loss="dlr"),
    "apgd-t": apgd_targeted,
    "fab": fab,
    "fab-t": fab_targeted,
    "square": square,
    "deepfool": deepfool,
    "cw": cw,
    "fmn": fmn,
    "spsa": spsa,
    "nes": nes,
    "hopskipjump": hopskipjump,
    "noise": noise,
    "transfer": transfer,
    "corruption": corruption,
}

ENSEMBLES: dict[str, Callable[..., Recipe]] = {"autoattack": autoattack}

CURVES = frozenset({"pgd", "apgd-ce", "apgd-dlr", "apgd-t", "square", "autoattack"})
