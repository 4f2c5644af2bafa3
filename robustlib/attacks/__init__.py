"""Attacks: functions (model, x, y, *, norm, eps, ...) -> x_adv, by the names that studies use."""

from collections.abc import Callable

from torch import Tensor, nn

from robustlib.attacks.deepfool import deepfool
from robustlib.attacks.pgd import fgsm, pgd


def clean(model: nn.Module, x: Tensor, y: Tensor, *, draws: object = None) -> Tensor:
    """No attack: the images as they are."""
    return x


ATTACKS: dict[str, Callable[..., Tensor]] = {
    "clean": clean,
    "fgsm": fgsm,
    "pgd": pgd,
    "deepfool": deepfool,
}
