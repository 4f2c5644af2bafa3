"""Training: one loop, and objectives by the names that studies use."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from robustlib.attacks.deepfool import deepfool
from robustlib.attacks.pgd import fgsm, pgd
from robustlib.training.objectives import attacked, standard

OBJECTIVES: dict[str, Callable[..., Tensor]] = {
    "standard": standard,
    "fgsm": partial(attacked, attack=fgsm),
    "pgd": partial(attacked, attack=pgd),
    "deepfool": partial(attacked, attack=deepfool),
}
