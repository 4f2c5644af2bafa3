"""What the quick copy of a model is trusted with: each fault here is one that made a model look robust."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.hard_nets import Faint, Steep
from robustlib.attacks import ATTACKS
from robustlib.evaluation.batches import Ready, evaluate_batches
from robustlib.inference import fast_copy
from robustlib.inference.cuda_graphs import Graphs
from robustlib.inference.fast_copy import attempt, make_replicas
from robustlib.inference.replica import Replica
from robustlib.losses import misclassified
from robustlib.rng import Draws


@pytest.fixture
def float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attacks search in float16, as on a GPU."""
    monkeypatch.setattr(fast_copy, "suits_half", lambda model, device: True)
    monkeypatch.setattr(fast_copy, "halves", lambda device: [torch.float16])


OPTIONS: dict[str, dict[str, Any]] = {
    "pgd": {"steps": 20, "random_start": False, "loss": "margin"},
    "fgsm": {},
    "apgd-ce": {"steps": 20},
    "fab": {"steps": 20},
    "square": {"queries": 200},
    "deepfool": {"norm": "Linf"},
    "fmn": {"norm": "Linf", "steps": 40},
    "spsa": {"queries": 2000, "step_size": 0.05},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_what_is_beyond_float16_is_computed_in_float32(name: str, float16: None):
    """In float16 the gradient is NaN, whose sign is 0: the images stood still, and 100 % were robust."""
    torch.manual_seed(0)
    net, x = Steep().eval(), (0.5 + 0.02 * torch.randn(64, 3, 4, 4)).clamp(0, 1)
    y, attack = torch.zeros(64, dtype=torch.long), partial(ATTACKS[name], eps=0.1, **OPTIONS[name])
    accuracies = []
    for half in (True, False):
        ready = Ready(net, replicas := make_replicas(net, x, half=half), 2, 0.0)
        (batch,) = evaluate_batches(net, x, y, [(name, attack)], eps=0.1, ready=ready)
        accuracies.append(1 - batch.outcome.success.mean())
        assert (replicas.passes.overflows > 0) == half
    assert replicas.search.mode == "float32, folded"
    assert accuracies[0] == accuracies[1] == 0


def test_a_copy_beyond_its_range_on_clean_images_is_not_used(float16: None):
    net, x = Steep().eval(), torch.rand(64, 3, 4, 4) * 0.1 + 0.6
    replicas = make_replicas(net, x)
    assert replicas.search.mode == (
        "float32, folded (given up: float16, folded: numbers beyond its range; "
        "float16, as given: numbers beyond its range)"
    )


def test_a_search_in_float16_ends_in_float32(float16: None):
    net, sample = Faint().double().eval(), torch.rand(64, 1, 4, 4)
    x, y = torch.full((3, 1, 4, 4), 0.2), torch.zeros(3, dtype=torch.long)
    corner = torch.full((1, 1, 4, 4), 0.3, dtype=torch.float64)
    assert net(corner).argmax(1) == 1
    net = net.float()
    assert net(corner.float()).argmax(1) == 1
    replicas = make_replicas(net, sample)
    assert (replicas.search.precision, replicas.fine.precision) == (torch.float16, torch.float32)
    assert replicas.search.judge is not None and replicas.search.judge.net is replicas.fine.net
    assert replicas.search.in_float32 is not None and replicas.search.in_float32.net is replicas.fine.net
    attack = partial(ATTACKS["apgd-ce"], eps=0.1, steps=10, draws=Draws(1, torch.arange(3)))
    assert misclassified(net(attack(replicas.search, x, y)), y).all()
    alone = replicas.search.but(in_float32=None)
    # Only those fall whose random start lies beyond the boundary already.
    assert misclassified(net(attack(alone, x, y)), y).sum() < 3


class Bent(torch.autograd.Function):
    """The identity, with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bend: Callable[[Tensor, dict], Tensor]) -> Tensor:
        ctx.bend, ctx.seen = bend, {}
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.bend(gradients[0], ctx.seen), None


BENDS: dict[str, Callable[[Tensor, dict], Tensor]] = {
    "none": lambda g, seen: g,
    "reversed": lambda g, seen: -g,
    "nan": lambda g, seen: g * torch.nan,
    "zero": lambda g, seen: g * 0,
    "twice as long, and more": lambda g, seen: 2.5 * g,
    "the first of several for all": lambda g, seen: seen.setdefault("first", g.clone()),
}


@pytest.mark.parametrize("bend", BENDS)
def test_a_copy_with_another_gradient_is_not_used(bend: str, net: nn.Module, test):
    x, told = test[0][:64], list[str]()

    def make() -> Replica:
        return Replica(lambda images: net(Bent.apply(images, BENDS[bend])), mode="bent")

    exact = fast_copy.exact_replica(net, x)
    found = attempt(make, x, exact(x), fast_copy.known_slopes(exact, x), told)
    if bend == "none":
        assert found is not None and told == []
    else:
        assert found is None and told == ["bent: other gradients"]


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("fault", ["logits", "gradients"])
def test_a_copy_is_compared_at_each_batch_size(fault: str, size: int, net: nn.Module, test):
    class Wrong(Graphs):
        def __call__(self, x: Tensor) -> Tensor:
            if len(x) != size:
                return self.net(x)
            return self.net(x.detach() + 0.1 if fault == "logits" else Bent.apply(x, BENDS["reversed"]))

    x, told = test[0][:64], list[str]()
    exact = fast_copy.exact_replica(net, x)
    make = partial(Replica, Wrong(net), sizes=(16, 64), mode="recorded", recorded=True)
    assert attempt(make, x, exact(x), fast_copy.known_slopes(exact, x), told) is None
    assert told == [f"recorded: other {fault}"] or fault == "logits"


@pytest.mark.parametrize("fault", ["other logits", "other gradients", "RuntimeError (no kernel for it)", ""])
def test_larger_batches_are_compared_when_they_are_used(fault: str, net: nn.Module, test, monkeypatch):
    """What differs there is left to smaller ones; how large the batches of an attack are, nobody knows before."""
    seen = list[int]()

    class Wrong(Graphs):
        def __call__(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            if len(x) == 16 or not fault:
                return self.net(x)
            if fault.startswith("RuntimeError"):
                raise RuntimeError("no kernel for it\nat a line of its own")
            return self.net(x + 0.1 if fault == "other logits" else Bent.apply(x, BENDS["reversed"]))

    monkeypatch.setattr(fast_copy, "steady_sizes", lambda replica, sample: replica.sizes)  # as on a GPU
    x = test[0][:60]
    exact = fast_copy.exact_replica(net, x[:16])
    make = partial(Replica, Wrong(net), sizes=(16, 64), mode="recorded", recorded=True)
    replica = attempt(make, x[:16], exact(x[:16]), fast_copy.known_slopes(exact, x[:16]))
    assert replica is not None and replica.unseen is not None and set(seen) == {16}
    gradients = replica.values_and_grads(x, lambda z: z[:, :1])[2]
    torch.testing.assert_close(gradients, exact.values_and_grads(x, lambda z: z[:, :1])[2], rtol=1e-4, atol=1e-4)
    assert set(seen) == {16, 64} and replica.sizes == ((16,) if fault else (16, 64))
    assert replica.mode == (f"recorded, no batches of 64: {fault}" if fault else "recorded")
    assert (replica.count.forwards, replica.count.gradients) == (60, 60)


def test_memory_that_ran_out_is_said_and_no_error(net: nn.Module, test, monkeypatch: pytest.MonkeyPatch):
    def full(model: nn.Module) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(fast_copy, "folded", full)
    replicas = make_replicas(net, test[0][:64], half=False)
    assert replicas.search.mode == "float32, as given, channels-last (given up: no memory for it)"


class Divides(nn.Module):
    """Divides by a norm that float16 cannot hold on attacked images: there the logits are finite, and the bias alone."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.last = nn.Linear(48, 4, bias=False), nn.Linear(4, 2)
        self.scale.weight.data.copy_(torch.tensor([[1.0], [-1.0], [1.0], [1.0]]) * 10)
        self.last.weight.data.copy_(torch.tensor([[-0.2], [0.2]]).repeat(1, 4))
        self.last.bias.data.copy_(torch.tensor([0.2, -0.2]))

    def forward(self, x: Tensor) -> Tensor:
        z = self.scale(x.flatten(1))
        return self.last(z * (z.pow(2).mean(1, keepdim=True) + 1e-6).rsqrt())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mine", "pgd", "apgd-ce", "fab", "deepfool", "square"])
def test_what_float16_computes_otherwise_without_a_nan_is_found_out(name: str, float16: None):
    torch.manual_seed(0)
    net, x = Divides().eval(), 0.4 + 0.05 * torch.rand(64, 3, 4, 4)
    y = net(x).argmax(1)
    there = torch.full_like(x, 0.65)  # beyond the norm that float16 holds
    net.last.bias.data.copy_(torch.tensor([0.5, -0.5]))
    assert not torch.equal(net(there), net(x))
    options: dict[str, dict[str, Any]] = {
        "fab": {"steps": 20},
        "square": {"queries": 100},
        "deepfool": {"norm": "Linf"},
    }
    mine = (lambda model, x, y, *, draws: there[: len(x)]) if name == "mine" else None
    attack = mine or partial(ATTACKS[name], eps=0.3, **options.get(name, {}))
    outcomes = []
    for half in (True, False):
        ready = Ready(net, make_replicas(net, x, half=half), 2, 0.0)
        (batch,) = evaluate_batches(net, x, y, [(name, attack)], eps=0.3, ready=ready)
        outcomes.append(batch.outcome.success.mean())
        with torch.no_grad():
            assert torch.equal(torch.from_numpy(batch.outcome.success), net(batch.x_adv).argmax(1) != y)
    assert outcomes[0] == outcomes[1]


class Saturated(nn.Module):
    """1 - tanh^2 is 0 in half precision where float32 still has a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(48, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.flatten(1)).tanh())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_gradient_that_half_precision_loses_is_computed_in_float32(dtype: torch.dtype):
    torch.manual_seed(0)
    net, x = Saturated().eval(), torch.rand(64, 3, 4, 4)
    net.a.weight.data.zero_()
    net.a.weight.data[:, 0] = 8.0
    net.a.bias.data.zero_()
    x[:, 0, 0, 0] = torch.where(torch.arange(64) % 4 == 0, 0.9, 0.05)  # at 0.9 saturated, at 0.05 not
    fine = fast_copy.exact_replica(net, x)
    replica = fast_copy.search_replica(fast_copy.plain, net, dtype, (64,), False)
    values = partial(torch.narrow, dim=1, start=0, length=1)
    lost = (replica.values_and_grads(x, values)[2] == 0).flatten(1).all(1)
    assert 0 < lost.sum() < 64
    replica = replica.but(spare=fine)
    found, expected = replica.values_and_grads(x, values)[2], fine.values_and_grads(x, values)[2]
    assert (found != 0).flatten(1).any(1).all() and replica.count.overflows == lost.sum()
    torch.testing.assert_close(found[lost], expected[lost])
