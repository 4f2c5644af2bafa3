"""Images that explanations are compared under: noisy, attacked for another class, attacked for another explanation."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from robustlib.arguments import Norm, check_norm
from robustlib.attacks import ATTACKS, ENSEMBLES
from robustlib.attacks.types import Attack
from robustlib.evaluation.explanation import Explained, attacked
from robustlib.names import unknown
from robustlib.norms import added, draw_on_sphere
from robustlib.outcome import check_attacked, check_budget
from robustlib.rng import Draws
from robustlib.settings import EXPLANATION_ATTACK, NOISE


def disturbed(
    ready: Explained,
    name: str,
    params: Mapping[str, Any],
    x: Tensor,
    target: Tensor,
    draws: Draws,
    *,
    norm: Norm,
    eps: float,
    method: str,
    options: Mapping[str, Any],
    share: float,
) -> Tensor:
    """Images disturbed within a radius, in the box; shaped like x, on its device.

    name, params: NOISE, which has no parameters; EXPLANATION_ATTACK; or an attack on the class and its parameters.
    target: the class that is attacked, or kept, shape (B,).  method, options, share: of the explanation that is
    attacked.  An attack on the class is that of an evaluation with one restart, on the model in strict float32, and
    gives an image also where the class withstands it.
    Raises RuntimeError where an attack leaves the ball or the box.
    """
    if name == NOISE:
        delta = draw_on_sphere(x, eps, norm, draws, "explanations/noise")
        found = added(x, delta, norm).clamp(0, 1)
    elif name == EXPLANATION_ATTACK:
        found = attacked(ready, method, x, target, draws, dict(options), norm=norm, eps=eps, share=share, **params)
    else:
        found = ATTACKS[name](ready.oracle, x, target, norm=norm, eps=eps, draws=draws, **params)
    check_attacked(name, found, x)
    found = found.detach()
    check_budget(found, x, norm, eps, [name])
    return found


def class_attacks() -> dict[str, Attack]:
    """Attacks on the class that make their images within a radius, on the model itself."""
    fits = {name: attack for name, attack in ATTACKS.items() if attack.takes_eps and not attack.lacks_surrogate}
    return {name: attack for name, attack in fits.items() if name != NOISE}


def check_against(names: Sequence[str], norm: str) -> None:
    """Raises ValueError for what no explanation can be compared under in this norm, and for a name that comes twice."""
    known = [NOISE, EXPLANATION_ATTACK, *class_attacks()]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise ValueError(f"against: {name} is named twice")
        expected = ", ".join(known)
        if name in ENSEMBLES:
            raise ValueError(f"against: {name} is several attacks in turn, expected one: {expected}")
        if name not in known and name in ATTACKS:
            raise ValueError(f"against: {name} makes no image within a radius on the model itself, expected {expected}")
        if name not in known:
            raise ValueError(f"against: {unknown('name', name, known)}")
        if name in class_attacks():
            check_norm(f"against: {name}", norm, ATTACKS[name].norms)
