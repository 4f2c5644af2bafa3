"""Several radii as one search: monotone, verified, hardly weaker than a search at each, and for less than two."""

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlib.arguments import NORMS, Norm
from robustlib.attacks import ATTACKS, ENSEMBLES
from robustlib.attacks.types import AttackFunction, as_stage
from robustlib.evaluation.batches import Ready, evaluate_batches, evaluate_curve, make_ready
from robustlib.evaluation.descent import shrink_to
from robustlib.evaluation.multi_radius import curve, side_by_side
from robustlib.inference.fast_copy import make_replicas
from robustlib.inference.replica import Replica
from robustlib.losses import misclassified
from robustlib.norms import inside, size
from robustlib.rng import Draws

CURVES: list[tuple[Norm, list[float]]] = [
    ("Linf", [0.02 * k for k in range(1, 9)]),
    ("L2", [0.15 * k for k in range(1, 9)]),
]


def gradients(ready: Ready) -> int:
    assert ready.replicas is not None
    return ready.replicas.search.count.gradients


@pytest.mark.parametrize("norm, radii", CURVES)
def test_as_strong_as_a_search_at_each_radius_and_cheaper_than_two(norm: Norm, radii: list[float], net, test):
    x, y = test
    ready = make_ready(net, x, 10, torch.device("cpu"))

    def named(eps: float):
        return [("pgd", partial(ATTACKS["pgd"], norm=norm, eps=eps, steps=20))]

    options = {"norm": norm, "ready": ready, "num_classes": 10, "batch_size": len(x)}
    before = gradients(ready)
    (found,) = evaluate_curve(net, x, y, [(eps, named(eps)) for eps in radii], **options)
    cost = gradients(ready) - before
    single, costs = [], []
    for eps in radii:
        before = gradients(ready)
        (batch,) = evaluate_batches(net, x, y, named(eps), eps=eps, **options)
        costs.append(gradients(ready) - before)
        single.append(1 - batch.outcome.success.mean())
    together = [1 - batch.outcome.success.mean() for batch in found]
    assert together == sorted(together, reverse=True) and together[0] > 0.5 > together[-1]
    weaker = np.array(together) - np.array(single)
    assert (weaker <= 0.02).all() and weaker.mean() <= 0.003, (together, single)
    assert cost < 2 * max(costs)
    for eps, batch in zip(radii, found, strict=True):
        assert inside(batch.x_adv, x, eps, norm).all()
        assert np.array_equal(misclassified(net(batch.x_adv), y).numpy(), batch.outcome.success)
    for smaller, larger in pairwise(found):
        assert not (smaller.outcome.success & ~larger.outcome.success).any()


EACH = [(name, norm) for name in ("pgd", "apgd-ce", "apgd-t", "square", "fab", "fab-t") for norm in NORMS]


@pytest.mark.parametrize("name, norm", EACH)
def test_each_example_at_its_own_radius_is_as_alone(name: str, norm: Norm, net, test):
    x, y = test[0][:48], test[1][:48]
    search = make_replicas(net, x, half=False).search
    radii = {"Linf": (0.03, 0.1), "L2": (0.2, 0.7), "L1": (0.8, 3.0)}[norm]
    attack = partial(ATTACKS[name], norm=norm, **({"queries": 300} if name == "square" else {"steps": 12}))
    draws = Draws(0, torch.arange(48))
    which = torch.arange(48) % 2
    together = attack(search, x, y, eps=torch.tensor(radii, dtype=torch.float64)[which], draws=draws)
    for place, eps in enumerate(radii):
        rows = (which == place).nonzero().squeeze(1)
        alone = attack(search, x[rows], y[rows], eps=eps, draws=draws[rows])
        assert torch.equal(together[rows], alone) and not torch.equal(alone, x[rows])


@pytest.mark.parametrize("norm, radii", CURVES)
@pytest.mark.parametrize("name", ["pgd", "autoattack"])
def test_radii_side_by_side_are_radii_one_after_the_other(name: str, norm: Norm, radii: list[float], net, test):
    """The twin: the same attacks where they take no radius of each example's own."""
    x, y = test[0][:64], test[1][:64]
    replicas = make_replicas(net, x, half=False)
    short = {"apgd-ce": {"steps": 8}, "apgd-t": {"steps": 8}, "fab-t": {"steps": 4}, "square": {"queries": 60}}
    plan: list[tuple[float, list[AttackFunction]]] = []
    for eps in radii[::2]:
        if name == "pgd":
            attacks = [partial(ATTACKS["pgd"], norm=norm, eps=eps)] * 2
        else:
            stages = ENSEMBLES[name](norm=norm, eps=eps, classes=10).stages
            attacks = [partial(attack, **short[stage]) for stage, attack in stages]
        plan.append((eps, attacks))
    assert side_by_side(plan) == [[0, 1, 2, 3]]
    apart = [(eps, [unlike(attack) for attack in attacks]) for eps, attacks in plan]
    assert side_by_side(apart) == [[0], [1], [2], [3]]
    options = {"norm": norm, "search": replicas.search}
    found, twin = (curve(replicas.exact, x, y, p, **options) for p in (plan, apart))
    for here, there in zip(found, twin, strict=True):
        assert torch.equal(here.x_adv, there.x_adv) and torch.equal(here.prediction, there.prediction)
        assert torch.equal(here.broken_by, there.broken_by) and torch.equal(here.queries, there.queries)
    assert len({tuple(result.broken_by.tolist()) for result in found}) == 4
    assert all(seconds >= 0 for result in found for seconds in result.seconds)
    assert sum(found[-1].seconds) > 0


def test_no_radius_of_a_joint_search_takes_more_queries_than_allowed():
    """Class 1 where the mean is above one half: Square's stripes find what lies within reach, in vain further on.

    Of five examples one is wrong as it is, one stands everywhere and three fall at some of three radii.
    """

    class Threshold(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = x.flatten(1).mean(1)
            return torch.stack([torch.full_like(mean, 0.5), mean], 1)

    x = torch.tensor([0.6, 0.46, 0.42, 0.36, 0.1])[:, None, None, None].expand(5, 1, 6, 6).clone()
    y = torch.zeros(5, dtype=torch.long)
    allowed = 40
    asked: list[tuple[float, list[int], list[int]]] = []

    def counting(model: nn.Module, x: Tensor, y: Tensor, *, draws: Draws, spent: Tensor, eps: float) -> Tensor:
        found = ATTACKS["square"](model, x, y, draws=draws, spent=spent, eps=eps, queries=allowed)
        asked.append((eps, draws.index.tolist(), spent.tolist()))
        return found

    radii = (0.05, 0.1, 0.15)
    found = curve(Threshold(), x, y, [(eps, [partial(counting, eps=eps)]) for eps in radii], norm="Linf")
    own = {(eps, i): n for eps, index, spent in asked for i, n in zip(index, spent, strict=True)}
    lowest = [min((eps for eps in radii if (eps, i) in own), default=1.0) for i in range(5)]
    for place, result in enumerate(found):
        assert result.radius_queries is not None and result.radius_queries.max() <= allowed
        here = [own.get((radii[place], i), -1 if i == 0 else 0) for i in range(5)]
        assert result.radius_queries.tolist() == here
        # All that it took down to here: each attack's, and one for every image drawn back from a larger radius.
        for i in range(1, 5):
            drawn = sum(1 for eps in radii[place:-1] if found[radii.index(eps) + 1].broken_by[i] == 0)
            taken = sum(n for (eps, j), n in own.items() if j == i and eps >= radii[place])
            assert result.queries[i] == taken + drawn
    assert found[0].queries.max() > allowed >= found[-1].queries.max()  # of several radii together
    assert lowest[4] == 0.15 and found[0].queries[4] == found[-1].queries[4] == allowed
    assert found[0].queries[0] == -1


def unlike(attack: AttackFunction) -> AttackFunction:
    """The attack as a function that takes no eps."""
    stage = as_stage(attack)
    if stage.takes_start:
        return lambda model, x, y, *, draws, start=None: attack(model, x, y, draws=draws, start=start)
    if stage.counts_queries:
        return lambda model, x, y, *, draws, spent: attack(model, x, y, draws=draws, spent=spent)
    return lambda model, x, y, *, draws: attack(model, x, y, draws=draws)


@pytest.mark.parametrize("given", [{}, {"stop_at_success": False, "step_size": 0.02}], ids=["stops", "goes on"])
def test_one_running_batch_finds_what_rounds_find_in_fewer_steps(given: dict, net, test, monkeypatch):
    x, y = test[0][:120], test[1][:120]
    replicas = make_replicas(net, x[:64], half=True)
    attacks = [(eps, partial(ATTACKS["pgd"], eps=eps, steps=20, **given)) for eps in CURVES[0][1]]
    options = {"norm": "Linf", "search": replicas.search}
    asked: list[int] = []
    gradients = Replica.values_and_grads

    def counted(self: Replica, x: Tensor, *rest: Any) -> Any:
        asked.append(len(x))
        return gradients(self, x, *rest)

    monkeypatch.setattr(Replica, "values_and_grads", counted)
    found = curve(replicas.exact, x, y, [(eps, [attack]) for eps, attack in attacks], **options)
    together, asked = asked, []
    twin = curve(replicas.exact, x, y, [(eps, [unlike(attack)]) for eps, attack in attacks], **options)
    for here, there in zip(found, twin, strict=True):
        for mine, theirs in zip(here[:3], there[:3], strict=True):
            assert torch.equal(mine, theirs)
        assert torch.equal(here.queries, there.queries)
    assert sum(together) == sum(asked) and len(together) < 0.7 * len(asked)
    seconds = [result.seconds[0] for result in found]
    assert min(seconds) >= 0 and seconds[-1] == max(seconds) > 0


def test_shrinking_keeps_what_lies_inside_already():
    x = torch.full((2, 1, 2, 2), 0.5)
    x_adv = x + torch.tensor([0.1, 0.4])[:, None, None, None]
    shrunk = shrink_to(x_adv, x, torch.tensor([0.2, 0.2]), "Linf")
    assert torch.equal(shrunk[0], x_adv[0])
    torch.testing.assert_close(size(shrunk - x, "Linf"), torch.tensor([0.1, 0.2]))


def test_an_example_is_attacked_until_it_stands_and_never_after():
    """Class 1 where the first pixel is above one half: examples at known distances below it."""

    class Threshold(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([torch.full_like(x[:, 0, 0, 0], 0.5), x[:, 0, 0, 0]], 1)

    seen: dict[float, list[int]] = {}

    def push(model: nn.Module, x: Tensor, y: Tensor, *, draws, eps: float) -> Tensor:
        seen[eps] = draws.index.tolist()
        return x + eps

    x = torch.tensor([0.45, 0.35, 0.1, 0.9])[:, None, None, None].expand(4, 1, 1, 2).clone()
    y = torch.zeros(4, dtype=torch.long)
    plan = [(eps, [partial(push, eps=eps)]) for eps in (0.1, 0.2, 0.3)]
    found = curve(Threshold(), x, y, plan, norm="Linf")
    assert [result.broken_by.tolist() for result in found] == [[0, 1, 1, -1], [0, 0, 1, -1], [0, 0, 1, -1]]
    # The third stands at 0.3 and is done with; the second is shrunk to 0.2, found there, and attacked in vain at 0.1.
    assert seen == {0.3: [0, 1, 2], 0.1: [1]}
