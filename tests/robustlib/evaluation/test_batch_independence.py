"""No number depends on who shares a batch: batch sizes, shards, order and turns give the same bits, in half precision too."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks import ATTACKS
from robustlib.evaluation.batches import Ready, evaluate_batches
from robustlib.inference.fast_copy import make_replicas, steady_sizes
from robustlib.inference.replica import Replica
from robustlib.losses import cross_entropy, misclassified
from robustlib.norms import inside
from robustlib.outcome import Outcome, join

BUDGETS: list[tuple[Norm, float]] = [("Linf", 0.06), ("L2", 0.4), ("L1", 2.0)]
FIELDS = ("index", "adversarial_prediction", "success", "distance", "broken_by", "clean_correct", "adversarial_correct")


@pytest.mark.parametrize("half", [False, True])
def test_every_batch_size_gives_the_same_bits(half: bool, net: nn.Module, test):
    x, y = test
    replicas = make_replicas(net, x[:64], half=half)
    for replica in (replicas.exact, replicas.search):
        logits, _, slopes = replica.value_and_grad(x, cross_entropy, y)
        every = replica.sizes
        assert len(every) > 10
        for size in (*every[:4], every[-2]):
            found, _, gradients = replica.but(sizes=(size,)).value_and_grad(x, cross_entropy, y)
            assert torch.equal(found, logits) and torch.equal(gradients, slopes), size


def test_sizes_whose_bits_differ_are_left_out():
    def net(x: Tensor) -> Tensor:
        return x.flatten(1) + (1e-7 if len(x) < 24 else 0)

    replica = Replica(net, sizes=(8, 16, 24, 32))
    assert steady_sizes(replica, torch.rand(20, 1, 2, 2)) == (24, 32)


def every_attack(norm: Norm, eps: float):
    shorter = {
        "pgd": {"steps": 6},
        "apgd-ce": {"steps": 12},
        "apgd-dlr": {"steps": 12},
        "apgd-t": {"steps": 8, "targets": 3},
    }
    shorter |= {"fab": {"steps": 5}, "fab-t": {"steps": 6, "targets": 3}, "square": {"queries": 40}}
    return [(name, partial(ATTACKS[name], norm=norm, eps=eps, **options)) for name, options in shorter.items()]


def run(
    net: nn.Module, x: Tensor, y: Tensor, norm: Norm, eps: float, index: Tensor, batch_size: int
) -> tuple[Outcome, Tensor]:
    options = {"norm": norm, "eps": eps, "index": index, "batch_size": batch_size, "num_classes": 10}
    batches = list(evaluate_batches(net, x, y, every_attack(norm, eps), **options))
    outcome, x_adv = join([batch.outcome for batch in batches]), torch.cat([batch.x_adv for batch in batches])
    order = torch.from_numpy(outcome.index).argsort()
    assert torch.equal(torch.from_numpy(outcome.index)[order], index.sort().values)
    return Outcome(**{name: values[order.numpy()] for name, values in vars(outcome).items()}), x_adv[order]


@pytest.mark.parametrize("norm, eps", BUDGETS)
def test_no_bit_depends_on_batch_size_shard_or_order(norm: Norm, eps: float, net: nn.Module, test):
    x, y = test[0][:250], test[1][:250]
    everything = torch.arange(250)
    expected, images = run(net, x, y, norm, eps, everything, 250)
    assert 0.02 < expected.success.mean() < 1 and len(set(expected.broken_by)) >= 4
    assert inside(images, x, eps, norm).all()
    shuffled = torch.randperm(250, generator=torch.Generator().manual_seed(0))
    parts = [run(net, x, y, norm, eps, shard, 250) for shard in everything.split(100)]
    others = [
        run(net, x, y, norm, eps, everything, 37),
        run(net, x, y, norm, eps, shuffled, 64),
        (join([outcome for outcome, _ in parts]), torch.cat([x_adv for _, x_adv in parts])),
    ]
    for outcome, x_adv in others:
        assert torch.equal(x_adv, images)
        for name in FIELDS:
            assert getattr(outcome, name).tobytes() == getattr(expected, name).tobytes(), name
    few, alone = run(net, x, y, norm, eps, everything[:12], 1)
    assert torch.equal(alone, images[:12]) and few.distance.tobytes() == expected.distance[:12].tobytes()


@pytest.mark.parametrize("name", ["apgd-t", "fab-t"])
@pytest.mark.parametrize("norm, eps", BUDGETS)
def test_targets_side_by_side_are_targets_in_turn(name: str, norm: Norm, eps: float, net: nn.Module, test):
    x, y = test[0][:20], test[1][:20]
    attack = partial(ATTACKS[name], x=x, y=y, norm=norm, eps=eps, steps=10, targets=4)
    one_by_one, together = Replica(net, sizes=(16, 24)), Replica(net, sizes=tuple(range(16, 89, 8)))
    in_turn, at_once = attack(one_by_one), attack(together)
    assert torch.equal(in_turn, at_once)
    fell = misclassified(net(in_turn), y)
    assert fell.any() and not fell.all()
    # The targets after one that succeeds are run for a while beside it, and no step longer than it needs.
    assert one_by_one.count.gradients <= together.count.gradients < 2 * one_by_one.count.gradients


@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "apgd-t", "fab-t", "square"])
@pytest.mark.parametrize("norm, eps", BUDGETS[:2])
def test_half_precision_finds_as_much_and_calls_nothing_broken_that_stands(
    name: str, norm: Norm, eps: float, net: nn.Module, test
):
    x, y = test
    options = {"steps": 10} if "steps" in ATTACKS[name].params else {"queries": 200}
    attack = (name, partial(ATTACKS[name], norm=norm, eps=eps, **options))
    found = {}
    for half in (False, True):
        ready = Ready(net, make_replicas(net, x[:64], half=half), 10, 0.0)
        assert ready.mode(eps).startswith("bfloat16, folded" if half else "float32, folded")
        assert ready.mode(None).startswith("float32, folded")
        (batch,) = evaluate_batches(
            net, x, y, [attack], norm=norm, eps=eps, num_classes=10, ready=ready, batch_size=len(x)
        )
        assert torch.equal(torch.from_numpy(batch.outcome.success), misclassified(net(batch.x_adv), y))
        assert inside(batch.x_adv, x, eps, norm).all()
        found[half] = batch.outcome.success.mean()
    # 0.016 is the most that was seen, of L2 on a processor with bfloat16 products and no matrix unit.
    assert found[True] == pytest.approx(found[False], abs=0.02)
