"""Training: one loop, and objectives by the names that studies use."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from robustlib.attacks.deepfool import deepfool
from robustlib.attacks.pgd import fgsm, pgd
from robustlib.training.objectives import adversarial, standard

OBJECTIVES: dict[str, Callable[..., Tensor]] = {
    "standard": standard,
    "fgsm": partial(adversarial, attack=fgsm),
    "pgd": partial(adversarial, attack=pgd),
    "deepfool": partial(adversarial, attack=deepfool),
}
