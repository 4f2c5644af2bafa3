"""Attack only what still stands: restarts and ensembles are the same thing."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from robustlib.draws import Draws, default_draws

Attack = Callable[..., Tensor]


@torch.no_grad()
def correct(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images the model classifies correctly, shape (B,)."""
    return model(x).argmax(1) == y


def cascade(
    model: nn.Module, x: Tensor, y: Tensor, attacks: Sequence[Attack], *, draws: Draws | None = None
) -> tuple[Tensor, Tensor]:
    """Run the attacks in turn, each on the examples that all before it left standing.

    Each attack is called as `attack(model, x, y, draws=...)`; repeats of one attack get fresh draws.
    Returns x_adv, with the clean image where nothing was found, and the position of the attack that broke each example,
    shape (B,): -1 where the clean image is misclassified already, len(attacks) where the example stands.
    """
    draws = default_draws(x, draws)
    x_adv = x.clone()
    broken_by = torch.where(correct(model, x, y), len(attacks), -1)
    for position, attack in enumerate(attacks):
        standing = (broken_by == len(attacks)).nonzero().squeeze(1)
        if len(standing) == 0:
            break
        found = attack(model, x[standing], y[standing], draws=draws[standing].restart(position))
        fell = ~correct(model, found, y[standing])
        x_adv[standing[fell]] = found[fell]
        broken_by[standing[fell]] = position
    return x_adv, broken_by
