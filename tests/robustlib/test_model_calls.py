"""Models that write into their images, keep them, or write over what they answered: the numbers of the pure model."""

import ast
import copy
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks import ATTACKS
from robustlib.audit.audit import Audit, audit
from robustlib.audit.gradient_bypass import module_surrogates
from robustlib.defences import DEFENCES
from robustlib.defences.smoothing import certify
from robustlib.evaluation.attack_sequence import attack_in_sequence
from robustlib.evaluation.batches import evaluate_batches, make_ready
from robustlib.inference.expectation import Expectation, is_randomised
from robustlib.inference.fast_copy import exact_replica
from robustlib.inference.gradients import pull
from robustlib.inference.replica import Replica
from robustlib.inference.threads import make_threaded
from robustlib.model_calls import ask
from robustlib.models.black_box import BlackBoxModel
from robustlib.outcome import Outcome
from robustlib.settings import TrainSettings
from robustlib.training.loop import fit

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2] / "robustlib"
X = torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A small network; `before` is what it does to its images first, `after` to its logits last."""

    def __init__(self, before: Any, after: Any = None):
        super().__init__()
        self.before, self.after = before, after
        self.one, self.two = nn.Linear(16, 12), nn.Linear(12, 10)
        with torch.no_grad():
            self.one.weight.copy_((torch.arange(192.0) * 0.7).sin().reshape(12, 16))
            self.two.weight.copy_((torch.arange(120.0) * 1.3).cos().reshape(10, 12))
            self.one.bias.fill_(0.1)
            self.two.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.two(self.one(self.before(x).flatten(1)).tanh())
        return logits if self.after is None else self.after(logits)


def minus(x: Tensor) -> Tensor:
    return x - 0.5


def by_numpy(x: Tensor) -> Tensor:
    """No tensor tells of this: its version stays. The gradient of a shift is the identity all the same."""
    array = x.detach().numpy()
    array -= np.float32(0.5)
    return x


class Sometimes:
    """Writes at every third call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.sub_(0.5) if self.calls % 3 == 0 else x - 0.5


class Keeps:
    """Keeps its images, and writes into those of the call before."""

    def __init__(self) -> None:
        self.last: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        for before in self.last:
            before.zero_()
        self.last = [x.detach()]
        return x - 0.5


class Static(torch.autograd.Function):
    """The logits in memory that stays the same, and their gradient too."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, out: Tensor, back: Tensor) -> Tensor:
        ctx.back = back[: len(logits)]
        return out[: len(logits)].copy_(logits).detach()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        return ctx.back.copy_(slopes[0]), None, None


class Buffer:
    """Answers in the same memory each time, as a runtime or a recorded CUDA graph does."""

    def __init__(self) -> None:
        self.out, self.back = torch.zeros(8192, 10), torch.zeros(8192, 10)

    def __call__(self, logits: Tensor) -> Tensor:
        return Static.apply(logits, self.out, self.back)  # pyright: ignore[reportReturnType]


ODD: dict[str, Callable[[], Net]] = {
    "sub_": lambda: Net(lambda x: x.sub_(0.5)),
    "sub_ of a view": lambda: Net(lambda x: x.flatten(1).sub_(0.5)),
    "numpy": lambda: Net(by_numpy),
    "sometimes": lambda: Net(Sometimes()),
    "keeps": lambda: Net(Keeps()),
    "buffer": lambda: Net(minus, Buffer()),
}
Y = Net(minus)(X).argmax(1)
QUERIES = {"square": 60, "spsa": 700, "nes": 700, "noise": 40, "hopskipjump": 400}
BUDGETS: dict[str, dict[str, Any]] = {
    name: {"eps": 2.0 if name == "hopskipjump" else 0.1} | ({"queries": QUERIES[name]} if name in QUERIES else {})
    for name in ATTACKS
    if name not in ("clean", "corruption")
}
for name in ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "fmn", "cw"):
    BUDGETS[name]["steps"] = 6
BUDGETS["cw"]["search_steps"] = 2
odd_ones = pytest.mark.parametrize("odd", ODD.values(), ids=list(ODD))


@pytest.mark.slow
@odd_ones
@pytest.mark.parametrize("name", BUDGETS)
def test_an_attack_called_by_itself_finds_the_same_bits(name: str, odd: Callable[[], Net]):
    def found(make: Callable[[], Net]) -> Tensor:
        besides = {"surrogate": make()} if name == "transfer" else {}
        return ATTACKS[name](make(), X, Y, **BUDGETS[name], **besides)

    before = X.clone()
    assert torch.equal(found(odd), found(lambda: Net(minus)))
    assert torch.equal(X, before)


def same(one: Outcome, other: Outcome) -> bool:
    return all(
        np.array_equal(getattr(one, f.name), getattr(other, f.name), equal_nan=f.name == "distance")
        for f in fields(one)
    )


@pytest.mark.slow
@odd_ones
def test_an_evaluation_says_the_same_of_every_example(odd: Callable[[], Net]):
    attacks = [(name, partial(ATTACKS[name], **BUDGETS[name])) for name in ("pgd", "square")]

    def found(model: Net) -> tuple[Any, str]:
        ready = make_ready(model, X, 10, CPU)
        (batch,) = evaluate_batches(model, X, Y, attacks, eps=0.1, ready=ready)
        return batch, ready.mode(0.1)

    before = X.clone()
    (mine, mode), (pure, _) = found(odd()), found(Net(minus))
    assert torch.equal(X, before) and mode.startswith("float32")
    assert pure.outcome.clean_correct.all() and 0 < pure.outcome.success.mean() < 1
    assert same(mine.outcome, pure.outcome) and torch.equal(mine.x_adv, pure.x_adv)


@pytest.mark.slow
@odd_ones
def test_checks_and_an_audit_find_nothing_else(odd: Callable[[], Net]):
    def found(model: Net) -> Audit:
        return next(a for a in audit(model, X, Y, eps=0.05, queries=60, num_classes=10) if isinstance(a, Audit))

    mine, pure = found(odd()), found(Net(minus))
    assert same(mine.outcome, pure.outcome) and torch.equal(mine.x_adv, pure.x_adv)
    assert [(f.name, f.verdict) for f in mine.checks] == [(f.name, f.verdict) for f in pure.checks]


@pytest.mark.slow
@odd_ones
def test_gradients_certificates_defences_and_cascades(odd: Callable[[], Net]):
    def values(logits: Tensor) -> Tensor:
        return logits[:, :3]

    for net, other in ((odd(), Net(minus)), (Replica(odd(), sizes=(8,)), Replica(Net(minus), sizes=(8,)))):
        pulled = [
            model.values_and_grads(X, values) if isinstance(model, Replica) else pull(model, X, values)
            for model in (net, other)
        ]
        for mine, pure in zip(*pulled, strict=True):
            assert torch.equal(mine, pure)
    mine, pure = (certify(model, X, sigma=0.1, n0=10, n=50) for model in (odd(), Net(minus)))
    assert torch.equal(mine.radius, pure.radius) and pure.radius.max() > 0
    for name in ("median", "bit_depth", "jpeg"):
        mine, pure = (ask(DEFENCES[name](model), X) for model in (odd(), Net(minus)))
        assert torch.equal(mine, pure)
    mine, pure = (attack_in_sequence(m, X, Y, [partial(ATTACKS["pgd"], eps=0.05)] * 2) for m in (odd(), Net(minus)))
    assert torch.equal(mine.x_adv, pure.x_adv) and torch.equal(mine.broken_by, pure.broken_by)


@pytest.mark.slow
@odd_ones
def test_training_comes_to_the_same_weights(odd: Callable[[], Net]):
    settings = TrainSettings(
        epochs=1, batch_size=8, objective="pgd", attack={"eps": 0.05, "steps": 2}, crop=0, flip=False
    )

    def trained(model: Net, x: Tensor) -> list[Tensor]:
        return [list(run.model.state_dict().values()) for run in fit(model, x, Y, settings, seed=0, device=CPU)][-1]

    levels: list[Tensor] = [X, (X * 255).byte()]
    for x in levels:
        before = x.clone()
        assert all(map(torch.equal, trained(odd(), x), trained(Net(minus), x)))
        assert torch.equal(x, before)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [nn.Hardtanh(0.3, 0.7), nn.ELU(), nn.Threshold(0.4, 0.0)], ids=str)
def test_a_first_layer_in_place(layer: nn.Module):
    twin = copy.deepcopy(layer)
    setattr(twin, "inplace", True)  # noqa: B010
    (mine,), (pure,) = (
        evaluate_batches(Net(m), X, Y, [("pgd", partial(ATTACKS["pgd"], eps=0.1))], eps=0.1) for m in (twin, layer)
    )
    assert same(mine.outcome, pure.outcome) and torch.equal(mine.x_adv, pure.x_adv)


def test_a_module_is_looked_at_through_what_it_got():
    """A module that writes into what it gets has no line from that to what it gives but the one before it wrote."""

    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x.data.mul_(0.5).add_(0.25)
            return x.detach()

    (slope, offset) = module_surrogates(nn.Sequential(nn.Flatten(), Halves(), nn.Linear(16, 10)), X)["1"]
    torch.testing.assert_close((slope.mean(), offset.mean()), (torch.tensor(0.5), torch.tensor(0.25)))


def test_a_randomised_model_is_one_whatever_memory_it_answers_in():
    """Two answers in one memory are always alike."""
    model = Net(lambda x: x + 0.1 * torch.randn_like(x), Buffer())
    assert is_randomised(model, X) and make_ready(model, X, 10, CPU).replicas is None
    assert not is_randomised(Net(minus, Buffer()), X)


def test_the_mean_of_answers_in_one_memory():
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls, self.out = 0, torch.zeros(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.out.copy_(x.mul_(2) * self.calls)

    assert Expectation(Counts(), 4)(torch.ones(2, 3)).tolist() == [[5.0] * 3] * 2  # 2 (1 + 2 + 3 + 4) / 4


def test_batches_in_one_memory():
    replica = Replica(Net(minus, Buffer()), sizes=(8,))
    first = replica(X)
    kept = first.clone()
    replica(1 - X)
    assert torch.equal(first, kept)
    torch.testing.assert_close(first, Net(minus)(X))


def test_an_answer_of_inference_mode_may_be_written_to():
    net = Net(minus)
    answer = ask(torch.inference_mode()(net.forward), X)
    answer[0] = 0
    assert torch.equal(answer[1:], net(X)[1:])


class Runtime:
    """What a compiled runtime does: normalises the given array itself, and answers in its own output."""

    def __init__(self, kind: str):
        self.kind, self.out = kind, np.zeros((1024, 10), np.float32)

    def __call__(self, x: Tensor) -> Any:
        images = x.numpy()
        images -= np.float32(0.5)
        with torch.no_grad():
            self.out[: len(x)] = Net(lambda x: x)(torch.from_numpy(images.copy())).numpy()
        found = self.out[: len(x)]
        return torch.from_numpy(found) if self.kind == "tensor" else found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_a_callable_over_numpy(kind: str):
    before = X.clone()
    (mine,), (pure,) = (
        evaluate_batches(model, X, Y, [("square", partial(ATTACKS["square"], eps=0.1, queries=60))], eps=0.1)
        for model in (BlackBoxModel(Runtime(kind)), BlackBoxModel(lambda x: Net(minus)(x)))
    )
    assert torch.equal(X, before)
    assert same(mine.outcome, pure.outcome) and torch.equal(mine.x_adv, pure.x_adv)
    model = BlackBoxModel(Runtime(kind))
    first = model(X)
    kept = first.clone()
    model(1 - X)
    assert torch.equal(first, kept) and torch.equal(X, before)


@pytest.mark.slow
def test_members_of_a_crew_take_turns_at_a_function():
    """Copies of a function are the function itself, with its one output."""
    out = torch.zeros(1024, 10)

    def answer(x: Tensor) -> Tensor:
        found = out[: len(x)].copy_(Net(minus)(x).detach())
        torch.rand(20_000).sort()  # time for another to come between
        return found

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        replicas = make_ready(BlackBoxModel(answer), X, 10, CPU).replicas
        assert replicas is not None
        threaded = make_threaded(replicas, CPU)
        assert threaded is not None and len(threaded.replicas) == 2
        expected = exact_replica(Net(minus), X)
        for turn in range(20):
            x = X.roll(turn, 0)
            for rows, found in threaded.scatter(len(X), lambda replicas, rows, x=x: replicas.exact(x[rows])):
                torch.testing.assert_close(found, expected(x[rows]), rtol=1e-5, atol=1e-5)
    finally:
        torch.set_num_threads(before)


# Where a model is called but by `ask`, and why that hands on memory of its own.
OTHERS = {
    "model_calls.py": "itself",
    "inference/batched_model.py": "filled batches are copies, and answers are copied",
    "inference/gradients.py": "handed a copy, by `hand`",
    "inference/recorded_call.py": "handed a filled copy, and its answer is read in the same recording",
    "bounds/traced_network.py": "handed a copy, and its answer is compared at once",
    "inference/split_replica.py": "a traced copy, handed points that were made for it",
    "inference/cuda_graphs.py": "recorded on a copy, and what is given out is one",
    "attacks/surrogate_training.py": "a network of ours",
    "audit/gradient_bypass.py": "handed a copy, by name",
    "checks/adaptation.py": "what watches a model is asked",
    "defences/preprocess.py": "the images that it made",
}


@pytest.mark.slow
def test_models_are_called_through_ask():
    found = set()
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).removeprefix("self.") in ("model", "net", "base"):
                found.add(str(path.relative_to(ROOT)))
    assert found == OTHERS.keys()
