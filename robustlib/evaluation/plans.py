"""Plans of an evaluation: radii, each with its attacks by name."""

from collections.abc import Sequence

from robustlib.attacks import ATTACKS
from robustlib.attacks.autoattack import Named
from robustlib.attacks.types import AttackFunction, as_stage
from robustlib.inference.replica import Replica

Plan = Sequence[tuple[float | None, Sequence[Named]]]  # radii, each with its attacks by name

MANY = 500  # passes of an example at one radius, from which on its attacks are shared out among processes


def is_worth_forks(plan: Plan) -> bool:
    """Whether the attacks are ours, since what a user's does besides must be done in this process, and so long that the
    making of processes, some 0.1 s, is little: of few passes, in large batches, Python has little to do.
    """
    attacks = [(name, as_stage(attack)) for _, named in plan for name, attack in named]
    if not all(stage.is_ours for _, stage in attacks):
        return False
    known = [(ATTACKS[name], stage.defaults) for name, stage in attacks if name in ATTACKS]
    passes = [attack.cost(given).forwards for attack, given in known if attack.defaults.keys() <= given.keys()]
    return sum(passes) >= len(plan) * MANY


def given(named: Sequence[tuple[str, AttackFunction]], surrogate: Replica | None) -> list[tuple[str, AttackFunction]]:
    """The attacks, those that make their images on a surrogate with it."""
    if surrogate is None:
        return list(named)
    stages = [(name, as_stage(attack)) for name, attack in named]
    return [(name, stage.given(surrogate=surrogate) if stage.lacks_surrogate else stage) for name, stage in stages]
