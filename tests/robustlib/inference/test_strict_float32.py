"""Strict float32 is strict, whoever holds it, and only as long as it is held."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks import ATTACKS
from robustlib.audit.audit import audit
from robustlib.checks.evaluation_checks import look_at_outcome
from robustlib.evaluation.batches import evaluate_batches, make_ready
from robustlib.inference import fast_copy, float32_switches
from robustlib.inference.fast_copy import make_replicas
from robustlib.inference.float32_switches import is_strict, read_switches, switch, write_switches
from robustlib.inference.model_modes import strict_float32
from robustlib.inference.replica import Replica


def arithmetic() -> set[str]:
    """How float32 is computed now, wherever; before torch 2.9 two switches told."""
    found = {switch(name).fp32_precision for name in float32_switches.PRECISIONS}
    return found or {"ieee" if is_strict() else "tf32"}


class Spy(nn.Module):
    """Notes how float32 is computed whenever it is asked, and may do something besides."""

    def __init__(self, besides: Callable[[], object] = lambda: None):
        super().__init__()
        self.linear, self.besides = nn.Linear(4, 3), besides
        self.seen: set[str] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.seen |= arithmetic()
        self.seen |= {"autocast"} if torch.is_autocast_enabled("cpu") else set()
        self.besides()
        return self.linear(x.flatten(1))


X, Y = torch.rand(40, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
FGSM = [("fgsm", partial(ATTACKS["fgsm"], eps=0.1))]


@pytest.fixture
def tf32() -> Iterator[dict[str, Any]]:
    """TF32 and bfloat16 allowed wherever they can be, as users set it."""
    before = read_switches()
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("medium")
    yield read_switches()
    write_switches(before)


def test_evaluations_in_turn_are_strict_and_leave_nothing_behind(tf32: dict[str, Any]):
    spies = [Spy().eval(), Spy().eval()]
    runs = [evaluate_batches(spy, X, Y, FGSM, eps=0.1, batch_size=16) for spy in spies]
    steps, between = 0, []
    for step in zip(*runs, strict=True):
        steps += len(step)
        between.append(read_switches())
    assert steps == 6 and all(spy.seen == {"ieee"} for spy in spies)
    assert all(found == tf32 for found in (*between, read_switches()))


def test_an_evaluation_that_is_left_half_done_leaves_nothing_behind(tf32: dict[str, Any]):
    model = Spy().train()
    next(evaluate_batches(model, X, Y, FGSM, eps=0.1, batch_size=16))
    assert read_switches() == tf32 and model.training


def test_whoever_leaves_first_takes_nothing_from_the_others(tf32: dict[str, Any]):
    first, second = strict_float32(), strict_float32()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert arithmetic() == {"ieee"}
    second.__exit__(None, None, None)
    assert read_switches() == tf32


def test_checks_after_an_evaluation_are_strict(tf32: dict[str, Any]):
    spy = Spy().eval()
    ready = make_ready(spy, X, 3, torch.device("cpu"))
    (batch,) = evaluate_batches(spy, X, Y, FGSM, eps=0.1, ready=ready)
    assert ready.replicas is not None
    spy.seen.clear()
    look_at_outcome(ready.replicas.exact, X, Y, batch.x_adv, batch.outcome, norm="Linf", eps=0.1, seed=0)
    assert spy.seen == {"ieee"}


def test_an_autocast_around_it_does_not_judge(tf32: dict[str, Any]):
    spy = Spy().eval()
    exact = make_replicas(spy, X).exact
    expected, spy.seen = exact(X), set()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(exact(X), expected)
        exact.values_and_grads(X, lambda z: z[:, :1])
        list(evaluate_batches(spy, X, Y, FGSM, eps=0.1))
    assert spy.seen == {"ieee"}


def test_a_model_that_moves_the_old_switches_itself_works():
    def flags() -> None:
        with torch.backends.cudnn.flags(enabled=False):
            pass

    spy = Spy(flags).eval()
    assert [len(batch.x_adv) for batch in evaluate_batches(spy, X, Y, FGSM, eps=0.1)] == [40]
    assert torch.backends.cudnn.allow_tf32 in (True, False)  # it can be read: no contradiction is left


def test_a_model_that_allows_tf32_is_asked_strictly_the_next_time():
    def careless() -> None:
        torch.backends.cudnn.allow_tf32 = True

    spy, before = Spy(careless).eval(), read_switches()
    exact = make_replicas(spy, X).exact
    spy.seen.clear()
    with strict_float32():
        exact(X[:8])
        exact(X[:8])
    assert spy.seen == {"ieee"} and read_switches() == before


def test_a_model_stays_where_it_is():
    class Asked(Spy):
        def to(self, *args: Any, **kwargs: Any) -> Any:
            asked.append(args[0])
            return self

    asked: list[torch.device] = []
    model = Asked().to_empty(device="meta")
    for run in (
        evaluate_batches(model, X, Y, FGSM, eps=0.1),
        audit(model, X, Y, eps=0.1),
    ):
        with pytest.raises(ValueError, match="meta"):
            next(run)  # there is nothing to compute with on "meta"
    assert set(asked) <= {torch.device("meta")} and model.linear.weight.is_meta


def test_cudnn_is_tuned_for_fixed_batch_sizes_alone_and_put_back():
    class Tuned(Spy):
        def forward(self, x: Tensor) -> Tensor:
            found.append(torch.backends.cudnn.benchmark)
            return super().forward(x)

    found: list[bool] = []
    before = torch.backends.cudnn.benchmark
    for sizes, expected in ((8,), True), ((), False):
        replica = Replica(Tuned().eval(), sizes=sizes, tuned=True)
        with strict_float32():
            replica(X[:8])
            replica.but(mode="other").values_and_grads(X[:8], lambda z: z[:, :1])
        assert set(found) == {expected} and torch.backends.cudnn.benchmark == before
        found.clear()


@pytest.mark.parametrize("seconds, last", [((0.5, 1.0), True), ((0.99, 1.0), False), ((2.0, 1.0), False)])
def test_a_gpu_gets_images_channels_last_where_that_is_much_quicker(
    seconds: tuple[float, float], last: bool, monkeypatch: pytest.MonkeyPatch
):
    """Of the two layouts, each is timed on the same batch, and channels-last first."""
    shown: list[Tensor] = []

    class Shown(Spy):
        def forward(self, x: Tensor) -> Tensor:
            shown.append(x)
            return super().forward(x)

    times = iter(seconds)
    monkeypatch.setattr(fast_copy, "seconds_of", lambda call, device: (call(), next(times))[1])
    replica = Replica(Shown().eval(), sizes=(8, 16))
    assert fast_copy.quicker_channels_last(replica, X[:3]) == last
    assert [x.is_contiguous(memory_format=torch.channels_last) for x in shown][:1] == [True]
    assert [len(x) for x in shown] == [8, 8]


def test_the_switches_of_before_torch_2_9_are_enough_there(monkeypatch: pytest.MonkeyPatch):
    """As it is where PyTorch has no others: both are set, looked at again, and put back."""
    whole = read_switches()
    with monkeypatch.context() as patch:
        for name, value in {"FINE": False, "PRECISIONS": (), "GENERAL": (), "LOOKED_AT": ()}.items():
            patch.setattr(float32_switches, name, value)
        torch.set_float32_matmul_precision("medium")
        before = read_switches()
        with strict_float32():
            assert read_switches() == {"cudnn": False, "matmul": "highest"} and is_strict()
            torch.set_float32_matmul_precision("high")
            assert not is_strict()
            with strict_float32():
                assert is_strict()
        assert read_switches() == before and before["matmul"] == "medium"
    write_switches(whole)
    assert read_switches() == whole
