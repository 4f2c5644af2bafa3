"""Models that adapt as they answer are told from those that only hold a state, or draw their noise from one."""

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad as known_from_the_start

from robustlib.audit.diagnosis import name_cause
from robustlib.checks.adaptation import TAKES_GRADIENTS, WATCHERS, Watched, restore_state, state_of
from robustlib.checks.thresholds import CheckResult
from robustlib.evaluation.batches import make_ready

CPU = torch.device("cpu")


class Linear(nn.Module):
    """Four classes, linear in sixteen pixels."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 4)
        nn.init.normal_(self.layer.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))

    def score(self, x: Tensor) -> Tensor:
        return Linear.forward(self, x).logsumexp(1).sum()


class Moves(Linear):
    """Moves its images along a gradient of its own before it answers."""

    def __init__(self, slope: Callable[["Moves", Tensor], Tensor]):
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            slope = self.slope(self, x.detach().clone().requires_grad_())
        return super().forward((x + 0.05 * slope.detach().sign()).clamp(0, 1))


def backward(model: Moves, x: Tensor) -> Tensor:
    model.score(x).backward()
    assert x.grad is not None
    return x.grad


def onwards(model: Moves, x: Tensor) -> Tensor:
    return torch.func.jvp(model.score, (x.detach(),), (torch.ones_like(x),))[1] * torch.ones_like(x)


WAYS: dict[str, Callable[[Moves, Tensor], Tensor]] = {
    "torch.autograd.grad": lambda model, x: torch.autograd.grad(model.score(x), x)[0],
    "grad by another name": lambda model, x: known_from_the_start(model.score(x), x)[0],
    "Tensor.backward": backward,
    "torch.func.grad": lambda model, x: torch.func.grad(model.score)(x.detach()),
    "torch.func.vjp": lambda model, x: torch.func.vjp(model.score, x.detach())[1](torch.tensor(1.0))[0],
    "torch.func.jacrev": lambda model, x: torch.func.jacrev(model.score)(x.detach()),  # pyright: ignore[reportReturnType]
    "torch.func.jvp": onwards,
}


class Learns(Linear):
    """Entropy minimisation at test time, Wang et al. 2021, https://arxiv.org/abs/2006.10726, of all its weights."""

    def __init__(self):
        super().__init__()
        self.optimizer = torch.optim.SGD(self.parameters(), lr=0.5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            p = super().forward(x.detach()).softmax(1)
            self.optimizer.zero_grad()
            (-(p * p.log()).sum(1).mean()).backward()
            self.optimizer.step()
        return super().forward(x)


class Follows(Linear):
    """Takes off a running mean of the images that it was asked."""

    mean: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean.lerp_(x.flatten(1).mean(0), 0.1)
        return super().forward(x - self.mean.reshape(1, 1, 4, 4))


class Remembers(Linear):
    """Answers otherwise where the last images were others; what it remembers is no buffer."""

    last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        first = x[0].detach().clone()
        new, self.last = self.last is not None and not torch.equal(self.last, first), first
        return super().forward(x) + torch.tensor([float(new), 0, 0, 0])


class Counts(Linear):
    """Counts its calls, and says the same as before."""

    calls: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class Noise(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(4)


class OwnNoise(Counts):
    """Noise from a generator that no seed of ours reaches, in a model whose state changes besides."""

    def __init__(self):
        super().__init__()
        self.own = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(4, generator=self.own)


class Lazy(Linear):
    """Makes a mask when it is first asked."""

    mask: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "mask"):
            self.register_buffer("mask", torch.ones_like(x[:1]))
        return super().forward(x * self.mask)


def look(model: nn.Module) -> CheckResult:
    x = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    before = [getattr(owner, name) for owner, name in TAKES_GRADIENTS]
    (found,) = [one for one in make_ready(model.eval(), x, 4, CPU).checks if one.name == "test-time"]
    assert [getattr(owner, name) for owner, name in TAKES_GRADIENTS] == before
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own, within torch.func.jvp
@pytest.mark.parametrize("way", WAYS)
def test_a_forward_pass_that_takes_gradients_is_named(way: str):
    found = look(Moves(WAYS[way]))
    assert (found.value, found.verdict, found.note) == (2, "fail", "the forward pass takes gradients")


@pytest.mark.parametrize("make", [Learns, Follows, Remembers])
def test_answers_that_change_with_what_was_asked_are_named(make: Callable[[], nn.Module]):
    found = look(make())
    assert (found.value, found.verdict) == (2, "fail")
    assert "answers to the same images change with what was asked before" in found.note
    assert ("takes gradients" in found.note, "layer.weight" in found.note) == (make is Learns, make is Learns)
    assert ("changed as it answered: mean" in found.note) == (make is Follows)


@pytest.mark.parametrize(
    ("make", "moved"), [(Linear, ""), (Noise, ""), (Lazy, ""), (Counts, "calls"), (OwnNoise, "calls")], ids=str
)
def test_what_only_holds_a_state_keeps_its_verdict(make: Callable[[], nn.Module], moved: str):
    found = look(make())
    assert (found.value, found.verdict) == (0, "pass")
    assert found.note == f"changed as it answered: {moved}" if moved else "changed" not in found.note


def test_a_state_of_numbers_that_answers_do_not_follow_warns():
    class Averages(Linear):
        mean: Tensor

        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(16))

        def forward(self, x: Tensor) -> Tensor:
            self.mean.lerp_(x.detach().flatten(1).mean(0), 0.1)
            return super().forward(x)

    found = look(Averages())
    assert (found.value, found.verdict, found.note) == (1, "warn", "changed as it answered: mean")


def test_the_model_is_left_as_it_was():
    model = Follows()
    state = copy.deepcopy(model.state_dict())
    kept = state_of(model)
    model(torch.ones(1, 1, 4, 4))
    assert not torch.equal(model.mean, state["mean"])
    restore_state(model, kept)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_an_audit_names_the_cause():
    """Such a model looks randomised, and dependent on its batch: neither is what is to be mended."""
    results = [CheckResult(name, 2.0, 1.0, "fail", "") for name in ("randomness", "batch-independence", "test-time")]
    assert name_cause(results, [], {}) == "test-time"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_is_not_taken_for_one_that_takes_gradients(test):
    """While it compiles, PyTorch takes a gradient once, to see how it is computed."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    compiled = torch.compile(net, backend="aot_eager", dynamic=False)
    watched = Watched(compiled)  # pyright: ignore[reportArgumentType]
    watched(test[0][:8].clone().requires_grad_())
    assert not watched.takes_gradients


class Counted(nn.Module):
    """Noise whose seed is a count of the passes, kept in a buffer beside one that cannot be written to."""

    passes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros((), dtype=torch.long))
        self.register_buffer("wide", torch.ones(1).expand(10))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(int(self.passes)))
        return self.linear((x + 0.3 * noise).flatten(1))


def test_a_model_that_seeds_its_noise_by_counting_does_not_adapt(test):
    ready = make_ready(Counted().eval(), test[0][:64], 10, torch.device("cpu"))
    (found,) = (result for result in ready.checks if result.name == "test-time")
    assert ready.replicas is None and (found.verdict, found.note) == ("pass", "changed as it answered: passes")


def test_who_watches_in_another_thread_is_told_nothing_and_all_is_put_back(test):
    before = [getattr(owner, name) for owner, name in TAKES_GRADIENTS]
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), test[0][:4]
    started, go_on = threading.Event(), threading.Event()

    class Waits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            started.set()
            assert go_on.wait(30)
            return net(x)

    first = Watched(Waits())
    thread = threading.Thread(target=first, args=(x,))
    thread.start()
    assert started.wait(30)
    with WATCHERS.watching(second := Watched(net)):
        torch.autograd.grad(net(x.clone().requires_grad_()).sum(), list(net.parameters()))
        go_on.set()
        thread.join()
    assert second.takes_gradients and not first.takes_gradients
    assert [getattr(owner, name) for owner, name in TAKES_GRADIENTS] == before
