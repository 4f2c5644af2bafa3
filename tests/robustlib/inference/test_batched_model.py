"""Fixed batch sizes, search copies and what they fall back to: nothing of it may change a number."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.attacks import ATTACKS
from robustlib.evaluation.attack_sequence import attack_in_sequence
from robustlib.evaluation.batches import evaluate_batches
from robustlib.inference.batch_sizes import CPU_SIZES, batch_sizes
from robustlib.inference.fast_copy import make_replicas
from robustlib.inference.oracle import Oracle, as_oracle
from robustlib.inference.predict import correct
from robustlib.inference.replica import Replica, Unseen
from robustlib.losses import cross_entropy, misclassified
from robustlib.rng import Draws


@pytest.mark.parametrize("n", range(1, 150, 7))
def test_chunks_cover_every_example_once_and_fill_little(n: int):
    replica = Replica(nn.Identity(), sizes=(16, 32, 64))
    pieces, rest = [], n
    while rest > 0:
        pieces.append(min(replica.piece(rest), rest))
        rest -= pieces[-1]
    filled = sum(next(size for size in replica.sizes if size >= piece) for piece in pieces)
    assert sum(pieces) == n and filled - n < 16


def test_sizes_follow_the_images():
    assert batch_sizes(torch.zeros(1, 3, 32, 32)) == tuple(range(8, 65, 8))
    assert batch_sizes(torch.zeros(1, 1, 8, 8)) == CPU_SIZES
    assert batch_sizes(torch.zeros(1, 3, 224, 224)) == (8,)


def test_a_replica_gives_the_models_own_numbers(net: nn.Module, test):
    x, y = test[0][:77], test[1][:77]
    replicas = make_replicas(net, x[:64], half=False)
    assert replicas.search.mode == "float32, folded, channels-last" and 0 < replicas.search.drift < 1e-3
    assert replicas.fine is replicas.search
    assert replicas.search.judge is not None and replicas.search.judge.net is replicas.fine.net
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in replicas.search.modules())
    for replica in (replicas.exact, replicas.search):
        for found, expected in zip(
            replica.value_and_grad(x, cross_entropy, y), as_oracle(net).value_and_grad(x, cross_entropy, y), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
        assert replica.count.forwards == 77 and replica.count.gradients == 77
        torch.testing.assert_close(replica(x), net(x), rtol=1e-4, atol=1e-4)


def test_gradients_of_several_values_match_one_at_a_time(net: nn.Module, test):
    x, chosen = test[0][:20], torch.tensor([[1, 4, 7]] * 20)
    replica = make_replicas(net, x).exact
    _, values, gradients = replica.values_and_grads(x, lambda z, k: z.gather(1, k), chosen)
    for k in range(3):
        _, value, gradient = as_oracle(net).value_and_grad(
            x, lambda z, k: z.gather(1, k).squeeze(1), chosen[:, k : k + 1]
        )
        torch.testing.assert_close(values[:, k], value, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradients[:, k], gradient, rtol=1e-3, atol=1e-5)


def test_half_precision_keeps_gradients_that_it_could_not_hold():
    """Cross-entropy of a confident example: its gradient is far below what half precision holds next to one."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        linear[1].bias.copy_(torch.tensor([30.0, 0.0, -5.0]))  # pyright: ignore[reportCallIssue]
    x, y = torch.rand(20, 1, 4, 4), torch.zeros(20, dtype=torch.long)
    replica = Replica(copy.deepcopy(linear).half(), dtype=torch.float16)
    expected = as_oracle(linear).value_and_grad(x, cross_entropy, y)[2]
    assert expected.abs().max() < 1e-10
    found = replica.value_and_grad(x, cross_entropy, y)[2]
    torch.testing.assert_close(found / expected.abs().max(), expected / expected.abs().max(), rtol=0.05, atol=0.02)


class Branches(nn.Module):
    """Data-dependent control flow, which tracing cannot follow."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.mean() > -1 else self.inner(-x)


class Neighbours(nn.Module):
    """Logits that depend on who else is in the batch."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x - x.mean(0, keepdim=True))


class Counting(nn.Module):
    """Cannot be copied: it holds on to something of the outside."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner, self.lines = inner, open(__file__)  # noqa: SIM115

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if self.lines else x


@pytest.mark.parametrize(
    "wrap, mode",
    [
        (Branches, "float32, as given, channels-last"),
        (Neighbours, "float32, as given, batches as they come"),
        (Counting, "float32, as given"),
    ],
)
def test_models_that_cannot_be_folded_or_copied_fall_back(wrap, mode: str, net: nn.Module, test):
    x, y = test[0][:64], test[1][:64]
    model = wrap(net).eval()
    replicas = make_replicas(model, x, half=False)
    assert replicas.search.mode == mode
    if wrap is not Neighbours:
        torch.testing.assert_close(replicas.search(x), net(x), rtol=1e-4, atol=1e-4)
    (batch,) = evaluate_batches(model, x, y, [("pgd", partial(ATTACKS["pgd"], eps=0.1))], norm="Linf", eps=0.1)
    assert 0 < batch.outcome.success.mean() <= 1
    if isinstance(model, Counting):
        model.lines.close()


class Judges(nn.Module):
    """A convolution, and then what not every layout of its images allows."""

    def __init__(self, kind: str):
        super().__init__()
        self.conv, self.linear, self.kind = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 8 * 8, 3), kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "asserts":
            assert x.is_contiguous()
        x = self.conv(x)
        if self.kind == "views":
            x = x.view(len(x), -1)
        if self.kind == "as it lies":
            x = x.as_strided((len(x), 4 * 8 * 8), (4 * 8 * 8, 1))
        return self.linear(x.flatten(1))


@pytest.mark.parametrize("kind", ["any", "views", "asserts", "as it lies"])
def test_the_model_judges_channels_last_only_where_it_can(kind: str):
    torch.manual_seed(0)
    model, x = Judges(kind).eval(), torch.rand(20, 3, 8, 8)
    replica = make_replicas(model, x).exact
    assert replica.net is model
    assert replica.memory_format == (torch.channels_last if kind == "any" else torch.contiguous_format)
    torch.testing.assert_close(replica(x), model(x))


def test_sizes_are_compared_at_their_first_use_where_memory_holds_them(net: nn.Module, test):
    tried, compared, x = list[int](), list[int](), test[0][:130]

    def tight(images: Tensor) -> Tensor:
        tried.append(len(images))
        if len(images) > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return net(images)

    def compare(replica: Replica, size: int) -> str:
        compared.append(size)
        return "" if torch.allclose(replica(x[:size]), net(x[:size]), atol=1e-5) else "other logits"

    replica = Replica(tight, sizes=(16, 64, 128), unseen=Unseen({64, 128}, compare))
    replica(x[:20])
    assert compared == []
    torch.testing.assert_close(replica(x), net(x))
    assert set(tried) == {16, 64, 128} and compared == [128, 64] and replica.sizes == (16, 64)
    assert replica.count.forwards == 150 and replica.unseen is not None and not replica.unseen.given_up


def test_all_sizes_may_be_compared_beforehand(net: nn.Module):
    faults = {32: "", 64: "other logits", 128: ""}
    replica = Replica(net, sizes=(16, 32, 64, 128), unseen=Unseen({32, 64, 128}, lambda copy, size: faults[size]))
    replica.see_all()
    assert replica.unseen is not None and replica.unseen.sizes == set() and replica.sizes == (16, 32, 128)
    assert replica.mode == "float32, no batches of 64: other logits"


def test_a_copy_that_computes_something_else_is_not_used(net: nn.Module, test, monkeypatch):
    def broken(model: nn.Module) -> tuple[nn.Module, str]:
        return nn.Sequential(copy.deepcopy(net), nn.Softmax(1)), "broken"

    monkeypatch.setattr("robustlib.inference.fast_copy.folded", broken)
    mode = make_replicas(net, test[0][:64], half=False).search.mode
    assert mode == "float32, as given, channels-last (given up: float32, broken, channels-last: other logits)"


@pytest.mark.parametrize("functional", [True, False])
def test_pooling_first_changes_nothing(functional: bool):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.relu, self.pool = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)
            self.fc = nn.Linear(8 * 9, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.bn(self.conv(x))
            x = F.max_pool2d(torch.relu(x), 2) if functional else self.pool(self.relu(x))
            return self.fc(x.flatten(1))

    torch.manual_seed(0)
    net, x, y = Net().eval(), torch.rand(32, 3, 8, 8), torch.arange(32) % 5
    for found, expected in zip(
        make_replicas(net, x, half=False).search.value_and_grad(x, cross_entropy, y),
        as_oracle(net).value_and_grad(x, cross_entropy, y),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_batch_that_does_not_fit_is_split_and_gives_the_same(net: nn.Module, test):
    x, y = test[0][:200], test[1][:200]
    tried: list[int] = []

    def tight(images: Tensor) -> Tensor:
        tried.append(len(images))
        if len(images) > 32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return net(images)

    sizes = CPU_SIZES[1:]  # on some CPUs the smallest gives bits of its own
    small, whole = Replica(tight, sizes=sizes), Replica(net, sizes=sizes)
    for found, expected in zip(
        small.value_and_grad(x, cross_entropy, y), whole.value_and_grad(x, cross_entropy, y), strict=True
    ):
        assert torch.equal(found, expected)
    assert torch.equal(small(x), whole(x))
    assert tried[:4] == [256, 128, 64, 32] and small.sizes == (16, 24, 32)


def too_large(most: int, tried: list[int]) -> Callable[[Tensor], Tensor]:
    def call(images: Tensor) -> Tensor:
        tried.append(len(images))
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images.flatten(1)[:, :2] * 2

    return call


def test_a_few_images_that_do_not_fit_when_filled_up_leave_ordinary_sizes():
    """Ten images are filled up to 128: it is 128 that did not fit, and not ten."""
    tried: list[int] = []
    replica, x = Replica(too_large(64, tried), sizes=(128, 512)), torch.rand(10, 1, 2, 2)
    torch.testing.assert_close(replica(x), x.flatten(1)[:, :2] * 2)
    assert tried == [128, 64] and replica.sizes == (64,)


def test_what_one_learns_of_memory_those_that_call_its_net_know_too():
    tried: list[int] = []
    replica, x = Replica(too_large(64, tried), sizes=(64, 128, 512)), torch.rand(100, 1, 2, 2)
    judge, apart = replica.but(drift=0.5), replica.but(sizes=(128,))
    replica(x)
    assert tried == [128, 64, 64] and judge.sizes == replica.sizes == (64,) and apart.sizes == (128,)
    whole = Replica(too_large(5, tried), sizes=())
    other = whole.but(drift=0.5)
    whole(x[:10])
    tried.clear()
    other(x[:10])
    assert tried == [5, 5]


def test_autograd_gets_the_gradient_that_the_model_has(net: nn.Module, test):
    x, y = test[0][:21].clone().requires_grad_(), test[1][:21]
    replica = Replica(net, sizes=(8, 16))
    logits = replica(x)
    assert torch.equal(logits, replica.logits(x))
    (found,) = torch.autograd.grad(cross_entropy(logits, y).sum(), x)
    torch.testing.assert_close(found, replica.value_and_grad(x, cross_entropy, y)[2])
    with torch.no_grad():
        assert not replica(x).requires_grad
    (slope,) = torch.autograd.grad(replica(x).logsumexp(1).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        slope.sum().backward()


def test_a_model_that_depends_on_its_batch_is_split_and_never_filled_up():
    tried: list[int] = []
    replica, x = Replica(too_large(5, tried), sizes=()), torch.rand(10, 1, 2, 2)
    torch.testing.assert_close(replica(x), x.flatten(1)[:, :2] * 2)
    assert tried == [10, 5, 5] and replica.sizes == ()
    replica(x[:3])
    assert tried[3:] == [3]


def test_memory_that_holds_not_even_one_image_is_an_error():
    def never(images: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        Replica(never)(torch.zeros(5, 1, 2, 2))


def test_a_model_without_gradients_says_so():
    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().flatten(1)[:, :2]

    x, y = torch.rand(4, 1, 2, 2), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="no gradient with respect to its images"):
        as_oracle(Detached()).values_and_grads(x, lambda z: z[:, :1])
    (batch,) = evaluate_batches(
        Detached(), x, y, [("square", partial(ATTACKS["square"], eps=0.5, queries=20))], eps=0.5
    )
    assert batch.outcome.success.any()


def test_what_only_the_copy_misclassifies_is_attacked_on_the_model():
    """The copy's boundary lies a little nearer: its verdict is not the model's, and the attack is not over."""

    class Line(nn.Module):
        def __init__(self, at: float):
            super().__init__()
            self.at = at

        def forward(self, x: Tensor) -> Tensor:
            value = x.flatten(1).mean(1) - self.at
            return torch.stack([torch.zeros_like(value), value], 1)

    def creep(model: Oracle, x: Tensor, y: Tensor, *, draws: Draws) -> Tensor:
        x_adv = x.clone()
        for _ in range(100):
            fell = model.is_adversarial(x_adv, y, misclassified(model(x_adv), y))
            x_adv = torch.where(fell[:, None, None, None], x_adv, x_adv + 0.01)
        return x_adv

    x, y = torch.full((3, 1, 2, 2), 0.2), torch.zeros(3, dtype=torch.long)
    model = Replica(Line(0.6))
    copy = Replica(Line(0.55), judge=model, drift=0.1)
    found = attack_in_sequence(model, x, y, [creep], search=copy)
    assert (found.broken_by == 0).all() and not correct(model, found.x_adv, y).any()
    assert (found.prediction == 1).all() and (found.x_adv > 0.6).all()
    # A copy whose word were taken would stop short of the model's boundary, and the model would be called robust.
    assert (attack_in_sequence(model, x, y, [creep], search=copy.but(judge=None)).broken_by == 1).all()
    # Where the copy stands on the other side, the model is asked as far as the two may differ.
    sure, copy = creep(model, x, y, draws=Draws(0, torch.arange(3))), Replica(Line(0.65), judge=model, drift=0.1)
    assert (attack_in_sequence(model, x, y, [lambda *_, **__: sure], search=copy).broken_by == 0).all()


def test_last_steps_are_taken_where_the_copys_rounding_does_not_hide_them():
    """The last pixel's weight is too small for the copy to see, and without it the ball ends before the boundary."""

    class Line(nn.Module):
        def __init__(self, last: float):
            super().__init__()
            self.weight = torch.tensor([*[1 / 15] * 15, last])

        def forward(self, x: Tensor) -> Tensor:
            value = (x.flatten(1) * self.weight).sum(1) - 0.30299  # 0.303 in the ball's corner
            return torch.stack([torch.zeros_like(value), value, *[value - 1] * 2], 1)

    x, y = torch.full((3, 1, 4, 4), 0.2), torch.zeros(3, dtype=torch.long)
    model = Replica(Line(0.01))
    copy = Replica(Line(0.0), judge=model, drift=0.01, precision=torch.bfloat16)
    for name in ("apgd-ce", "apgd-t"):
        attack = partial(ATTACKS[name], eps=0.1, steps=10, draws=Draws(1, torch.arange(3)))
        assert correct(model, attack(copy, x, y), y).all()
        assert not correct(model, attack(copy.but(in_float32=model), x, y), y).any()
