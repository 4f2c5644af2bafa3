"""Several radii as one search: what falls at a radius is drawn back to the next, and attacked again from there."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks.types import Attack, AttackFunction, as_stage
from robustlib.evaluation.attack_sequence import Found, Proofs, attack_in_sequence
from robustlib.evaluation.descent import Descent, Plan
from robustlib.evaluation.radii_in_one_batch import descend
from robustlib.inference.oracle import as_oracle
from robustlib.inference.predict import verdict
from robustlib.rng import Draws, default_draws


def curve(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    plan: Plan,
    *,
    norm: Norm,
    draws: Draws | None = None,
    search: nn.Module | None = None,
    clean: Tensor | None = None,
    proofs: Proofs | None = None,
) -> list[Found]:
    """Attacks in turn at each of several radii as one search, each example from the largest radius down.

    plan: radii, rising, each with its attacks, which are the same but for the radius.
    What stands at a radius stands at the smaller ones. What fell is shrunk to the next radius first, which costs one
    pass forward and breaks many; only the rest is attacked again, from there. So an example pays for one failing run,
    at the largest radius at which it stands, and not for one at each. Examples are attacked side by side, each at the
    radius that it has come to, where the attacks take that: batches stay full.
    Queries are those of the search down to a radius, in which a shrunk image is one; those at a radius are what its
    attacks showed, without it. Of examples attacked side by side each radius gets its share of the seconds.
    proofs: see `attack_in_sequence`.
    """
    draws = default_draws(x, draws)
    search = model if search is None else search
    clean = verdict(model, search, x, y) if clean is None else clean
    descent = Descent.begin(x, y, clean, plan)
    groups, oracle = side_by_side(plan), as_oracle(search)
    if len(groups) == 1 and len(plan) > 1 and oracle.mixes_steps and (attack := one_run(plan[0][1])) is not None:
        repeats = len(plan[0][1])
        descend(descent, model, oracle, attack, repeats=repeats, norm=norm, draws=draws, clean=clean)
        return descent.found()
    going, start = torch.arange(len(x), device=x.device), None
    while len(going):
        for levels in groups:
            rows = going[torch.isin(descent.level[going], torch.tensor(levels, device=x.device))]
            if len(rows):
                known = {"start": None if start is None else start[rows], "clean": clean[rows]}
                known |= {"eps": descent.eps[descent.level[rows]]} if len(levels) > 1 else {}
                radius, attacks = plan[levels[0]]
                known["proofs"] = None if proofs is None else proofs.at(radius)
                found = attack_in_sequence(model, x[rows], y[rows], attacks, draws=draws[rows], search=search, **known)
                descent.record(rows, found)
        start = descent.image
        going = descent.go_down(going, lambda images, rows: verdict(model, search, images, y[rows]), norm)
    return descent.found()


def side_by_side(plan: Plan) -> list[list[int]]:
    """Which radii, by their places, one call of each attack can serve."""
    groups: list[tuple[list[Any], list[int]]] = []
    for level, (_, attacks) in enumerate(plan):
        kinds = [but_for_eps(attack) for attack in attacks]
        if groups and None not in kinds and kinds == groups[-1][0]:
            groups[-1][1].append(level)
        else:
            groups.append((kinds, [level]))
    return [levels for _, levels in groups]


def but_for_eps(attack: AttackFunction) -> tuple[Any, ...] | None:
    """What tells an attack from others but its radius; None where its examples cannot each have their own."""
    stage = as_stage(attack)
    if not isinstance(stage.run, partial) or not stage.eps_per_example:
        return None
    return stage.run.func, stage.run.args, {k: value for k, value in stage.run.keywords.items() if k != "eps"}


def one_run(attacks: Sequence[AttackFunction]) -> AttackFunction | None:
    """The attack that all of these are, if it is one whose runs of equal steps may share a batch at any step."""
    stages = [as_stage(attack) for attack in attacks]
    if not stages or any(but_for_eps(stage) != but_for_eps(stages[0]) for stage in stages):
        return None
    return attacks[0] if isinstance(stages[0], Attack) and stages[0].one_run else None
