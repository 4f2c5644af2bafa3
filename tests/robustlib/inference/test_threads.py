"""Threads that share out a batch: the same bits as one thread, in the same order, with every pass counted."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks import ATTACKS
from robustlib.evaluation.batches import evaluate_batches, evaluate_curve, make_ready
from robustlib.inference.threads import make_threaded
from robustlib.outcome import join

CPU = torch.device("cpu")


@pytest.fixture
def threads():
    """Sets the number of threads for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def stages():
    short = {"apgd-ce": {"steps": 8}, "fab-t": {"steps": 4, "targets": 2}, "square": {"queries": 30}}
    return [(name, partial(ATTACKS[name], eps=0.06, **options)) for name, options in short.items()]


@pytest.mark.parametrize("number", [2, 3, 8])
def test_every_number_of_threads_gives_the_same_bits(number: int, threads, net: nn.Module, test):
    x, y = test[0][:90], test[1][:90]
    found = {}
    for n in (1, number):
        threads(n)
        ready = make_ready(net, x, 10, CPU)
        batches = list(evaluate_batches(net, x, y, stages(), eps=0.06, ready=ready, batch_size=40))
        assert torch.get_num_threads() == n and ready.replicas is not None
        outcome = join([batch.outcome for batch in batches])
        found[n] = outcome, torch.cat([batch.x_adv for batch in batches]), ready.replicas.passes
        assert [len(batch.seconds) for batch in batches] == [3, 3, 3]
    (one, x_one, passes_one), (many, x_many, passes_many) = found.values()
    assert one.index.tolist() == many.index.tolist() == list(range(90)) and 0 < one.success.mean() < 1
    if number < 8:  # beyond four members, operations have several threads each
        assert torch.equal(x_one, x_many)
        for name, values in vars(one).items():
            assert values.tobytes() == getattr(many, name).tobytes(), name
    assert one.success.mean() == pytest.approx(many.success.mean(), abs=0.02)
    # Turns side by side, and so what is passed in vain, differ with the size of a share.
    assert 0 < passes_one.gradients <= passes_many.gradients < 1.5 * passes_one.gradients


def test_a_curve_is_shared_out_too(threads, net: nn.Module, test):
    x, y = test[0][:50], test[1][:50]
    plan = [(eps, [("pgd", partial(ATTACKS["pgd"], eps=eps))]) for eps in (0.03, 0.06, 0.09)]
    found = []
    for n in (1, 2):
        threads(n)
        (radii,) = evaluate_curve(net, x, y, plan, num_classes=10)
        found.append(torch.stack([batch.x_adv for batch in radii]))
    assert torch.equal(*found)


def test_fewer_examples_than_threads(threads, net: nn.Module, test):
    threads(4)
    for n in (1, 3):
        (batch,) = evaluate_batches(
            net, test[0][:5], test[1][:5], stages(), eps=0.06, index=torch.arange(n), num_classes=10
        )
        assert batch.outcome.index.tolist() == list(range(n)) and len(batch.x_adv) == n


def test_an_error_in_a_thread_is_the_evaluations(threads, net: nn.Module, test):
    def broken(model: nn.Module, x: Tensor, y: Tensor, *, draws: object) -> Tensor:
        raise ZeroDivisionError("mine")

    threads(2)
    with pytest.raises(ZeroDivisionError, match="mine"):
        list(evaluate_batches(net, test[0][:20], test[1][:20], [("broken", broken)], eps=0.1, num_classes=10))


def test_a_model_with_a_state_is_copied_for_each_thread_or_left_to_one(threads, net: nn.Module, test):
    class Remembers(nn.Module):
        """Keeps what it computed last: two threads on one such model would mix up their images."""

        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner, self.last = inner, torch.zeros(0)

        def forward(self, x: Tensor) -> Tensor:
            self.last = x
            return self.inner(self.last)

    threads(2)
    replicas = make_ready(Remembers(net).eval(), test[0], 10, CPU).replicas
    assert replicas is not None
    threaded = make_threaded(replicas, CPU)
    assert threaded is not None and len(threaded.replicas) == 2 and threaded.threads == 1
    mine, copy = threaded.replicas
    for one, other in ((mine.exact, copy.exact), (mine.search, copy.search)):
        assert one is not other and one.net is not other.net
    judge = copy.search.judge
    assert judge is not None and judge.net is copy.fine.net and judge is not mine.search.judge
    threads(1)
    assert make_threaded(replicas, CPU) is None
    threads(2)

    class Held(Remembers):
        def __deepcopy__(self, memo: object):
            raise TypeError("not to be copied")

    replicas = make_ready(Held(net).eval(), test[0], 10, CPU).replicas
    assert replicas is not None and make_threaded(replicas, CPU) is None
