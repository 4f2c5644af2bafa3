"""Votes by a quick copy are the model's votes, one by one: where it is in doubt, beyond its range, or another function."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlib.defences.smoothing import certify
from robustlib.defences.votes import QuickVoter, make_voter, vote
from robustlib.evaluation.batches import Ready
from robustlib.evaluation.certified import evaluate_certified, voter_for
from robustlib.inference.cuda_graphs import Graphs
from robustlib.inference.fast_copy import make_replicas
from robustlib.inference.model_modes import strict_float32
from robustlib.inference.replica import Replica
from robustlib.inference.replicas import Replicas
from robustlib.outcome import join
from robustlib.rng import Draws
from tests.helpers.fake_cuda import FakeCuda, install

CPU = torch.device("cpu")
SIZES = (8, 32)


def voter_of(net: nn.Module, x: Tensor, sigma: float) -> QuickVoter:
    """The model with its copy in bfloat16, whatever the machine."""
    replicas = make_replicas(net, x[:64], half=True)
    voter = make_voter(replicas.exact, replicas.search, x[:64], sigma)
    assert isinstance(voter, QuickVoter) and "bfloat16" in voter.mode
    return voter


@pytest.mark.parametrize("sigma", [0.12, 0.4])
def test_no_vote_of_a_trained_network_is_another_one(sigma: float, net: nn.Module, test: tuple[Tensor, Tensor]):
    """12,000 votes on 40 images: hits of each, and so class and radius; most of them by the copy."""
    x, draws = test[0][:40], Draws(3, torch.arange(40) + 100)
    with strict_float32():
        voter = voter_of(net, test[0], sigma)
        voter.exact.count.clear()
        found = certify(voter, x, sigma=sigma, n0=20, n=300, draws=draws)
        asked = voter.exact.count.forwards - 20 * 40
        expected = certify(voter.exact, x, sigma=sigma, n0=20, n=300, draws=draws)
        hits = voter.hits(x, sigma, 300, draws, "certify/estimate", found.guess, torch.ones(40, dtype=torch.bool))
        votes = vote(voter.exact, x, sigma, 300, draws, "certify/estimate")
    assert torch.equal(found.guess, expected.guess) and torch.equal(found.radius, expected.radius)
    assert torch.equal(hits, votes.gather(1, found.guess[:, None]).squeeze(1))
    assert 0 < asked < 0.5 * 40 * 300
    assert (expected.radius > 0).any() and (hits < 300).any()


class Linear(nn.Module):
    """Two classes told apart by a plane: smoothed, the radius is the distance from it, for any sigma."""

    def __init__(self, pixels: int):
        super().__init__()
        self.plane = nn.Linear(pixels, 2)
        with torch.no_grad():
            weight = torch.randn(pixels, generator=torch.Generator().manual_seed(1))
            weight /= weight.norm()
            self.plane.weight.copy_(torch.stack([weight, -weight]))
            self.plane.bias.copy_(-0.5 * self.plane.weight.sum(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.plane(x.flatten(1))


@pytest.mark.slow
def test_of_a_linear_model_no_radius_is_above_the_distance():
    """Closed form: the margin over the length of its gradient. 48 bounds at alpha 0.001, and the seed is fixed."""
    net = Linear(48).eval()
    weight = net.plane.weight[0].reshape(3, 4, 4)
    distance = torch.linspace(-0.5, 0.5, 48)
    x = (0.5 + distance.reshape(-1, 1, 1, 1) * weight).clamp(0, 1).detach()
    distance = (net(x)[:, 0] / 1.0).abs()
    with strict_float32():
        voter = voter_of(net, x, 0.25)
        found = certify(voter, x, sigma=0.25, n=2000)
        expected = certify(voter.exact, x, sigma=0.25, n=2000)
    certain = found.prediction >= 0
    assert certain.sum() > 30 and (found.radius <= distance + 1e-9).all()
    assert torch.equal(found.prediction, expected.prediction) and torch.equal(found.radius, expected.radius)


class Spoilt(nn.Module):
    """A network that gives something else beyond a range: where the first pixel of an image lies above a number."""

    def __init__(self, net: nn.Module, above: float, by: Callable[[Tensor], Tensor]):
        super().__init__()
        self.net, self.above, self.by = net, above, by

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return torch.where(x.flatten(1)[:, :1] > self.above, self.by(logits), logits)


OVERFLOWS = {
    "nan": lambda logits: torch.full_like(logits, torch.nan),
    "first infinite": lambda logits: torch.cat([torch.full_like(logits[:, :1], torch.inf), logits[:, 1:]], 1),
    "others infinite": lambda logits: torch.cat([logits[:, :1], torch.full_like(logits[:, 1:], -torch.inf)], 1),
}


@pytest.mark.parametrize("kind", OVERFLOWS)
def test_what_is_beyond_the_copys_range_is_no_vote(kind: str, net: nn.Module, test: tuple[Tensor, Tensor]):
    """Where the copy overflows it would vote for the first class, and certify it."""
    x, sigma, draws = test[0][:8], 0.3, Draws(0, torch.arange(8))
    exact, spoilt = Replica(net, sizes=(64,)), Replica(Spoilt(net, 0.4, OVERFLOWS[kind]), sizes=(64,))
    voter = QuickVoter(exact, spoilt, 0.01)
    everyone = torch.ones(8, dtype=torch.bool)
    votes = vote(exact, x, sigma, 200, draws, "s")
    for guess in (torch.zeros_like(draws.index), votes.argmax(1)):
        expected = votes.gather(1, guess[:, None]).squeeze(1)
        assert torch.equal(voter.hits(x, sigma, 200, draws, "s", guess, everyone), expected)
    found, right = (certify(each, x, sigma=sigma, n0=10, n=200, draws=draws) for each in (voter, exact))
    assert torch.equal(found.prediction, right.prediction) and torch.equal(found.radius, right.radius)


def test_a_copy_that_overflows_on_noisy_images_alone_is_given_up(net: nn.Module, test: tuple[Tensor, Tensor]):
    x = test[0][:64]
    exact = Replica(net, sizes=(64,), mode="float32, as given")
    copy = Replica(Spoilt(net, 0.7, OVERFLOWS["nan"]), sizes=(64,), mode="half", precision=torch.bfloat16)
    assert torch.equal(copy(x), exact(x))
    voter = make_voter(exact, copy, x, 0.5)
    assert isinstance(voter, Replica)
    assert voter.net is net and voter.mode == "float32, as given (given up: half: other logits on noisy images)"


def test_steps_of_other_evaluations_are_no_words_of_votes(net: nn.Module, test: tuple[Tensor, Tensor]):
    """The replicas are those of a warm model, whose recorded steps an attack before may have taken."""
    x = test[0][:16]
    exact = Replica(net, sizes=(64,), mode="float32, as given")
    for above in (0.0, 1e9):  # given up, and not
        copy = Replica(Spoilt(net, above, OVERFLOWS["nan"]), sizes=(64,), mode="half", precision=torch.bfloat16)
        copy.recordings.played = 5
        assert "recorded" in copy.mode and "recorded" not in make_voter(exact, copy, x, 0.5).mode


def test_a_copy_that_is_another_function_near_an_image_does_not_vote_there(net: nn.Module, test: tuple[Tensor, Tensor]):
    """Finite logits of something else, as of a norm that is infinite: the selection's noisy copies tell."""
    x, draws = test[0][:20], Draws(0, torch.arange(20))
    x = x.clone()
    x[:10, :, 0, 0] = 0.9
    exact = Replica(net, sizes=(64,))
    voter = QuickVoter(exact, Replica(Spoilt(net, 0.8, lambda z: z.roll(1, 1)), sizes=(64,)), 0.01)
    guess, trusted = voter.select(x, 0.02, 20, draws, "certify/select")
    assert not trusted[:10].any() and trusted[10:].sum() > 5
    found, right = (certify(each, x, sigma=0.02, n0=20, n=200, draws=draws) for each in (voter, exact))
    assert torch.equal(guess, right.guess)
    assert torch.equal(found.prediction, right.prediction) and torch.equal(found.radius, right.radius)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return install(monkeypatch)


def recorded_voter(net: nn.Module) -> QuickVoter:
    return QuickVoter(Replica(net, sizes=SIZES), Replica(Graphs(net), sizes=SIZES, recorded=True, mode="half"), 0.05)


def test_a_recorded_chunk_counts_what_the_eager_one_does(cuda: FakeCuda, net: nn.Module, test: tuple[Tensor, Tensor]):
    """Of groups in turn, which one recording does; 11 chunks, the last one not full: each has noise of its own."""
    voter, plain = recorded_voter(net), Replica(net, sizes=SIZES)
    chunks = set()
    for first in (0, 6):
        x, draws = test[0][first : first + 6], Draws(5, torch.arange(6) + first)
        found, right = (certify(each, x, sigma=0.3, n0=10, n=52, draws=draws) for each in (voter, plain))
        assert torch.equal(found.guess, right.guess) and torch.equal(found.radius, right.radius)
        trusted = torch.tensor([True, False, True, True, True, True])
        hits = voter.hits(x, 0.3, 52, draws, "s", right.guess, trusted)
        votes = vote(plain, x, 0.3, 52, draws, "s").gather(1, right.guess[:, None]).squeeze(1)
        assert torch.equal(hits, votes) and (votes < 52).any()
        chunks.add(id(voter.latest))
    assert len(chunks) == 1 and voter.latest is not None and voter.latest.recorded is not None
    assert voter.mode == "votes in half, recorded; selection and votes in doubt in float32"


def test_votes_that_cannot_be_recorded_are_counted_eagerly(cuda: FakeCuda, net: nn.Module, test: tuple[Tensor, Tensor]):
    voter, x = recorded_voter(net), test[0][:6]
    cuda.refuses = "operation not permitted when stream is capturing"
    voter.copy.net = net  # whose own passes would not be recorded either
    found, right = (certify(each, x, sigma=0.3, n0=10, n=50) for each in (voter, Replica(net, sizes=SIZES)))
    assert torch.equal(found.radius, right.radius)
    assert voter.mode == "votes in half, not recorded; selection and votes in doubt in float32"


def test_an_evaluation_says_how_its_votes_were_made(cuda: FakeCuda, net: nn.Module, test: tuple[Tensor, Tensor]):
    """As on a GPU: the same outcome as by the model alone."""
    exact = Replica(net, sizes=SIZES, mode="float32, as given")
    half = exact.but(net=Graphs(net), recorded=True, mode="half, graphs", precision=torch.float16, sizes=SIZES)
    ready = Ready(net, Replicas(exact, half, exact), 10, 0.0)
    voter = voter_for(ready, test[0], 0.3, CPU)
    assert isinstance(voter, QuickVoter)
    run = partial(evaluate_certified, ready, *test, [0.1], seed=0, index=torch.arange(12), device=CPU, sigma=0.3, n=60)
    quick, alone = (vars(join([batch.outcome for (batch,) in run(voter=each)])) for each in (voter, exact))
    for name, values in alone.items():
        np.testing.assert_array_equal(quick[name], values)
    assert voter.mode == "votes in half, graphs, recorded; selection and votes in doubt in float32, as given"


def test_where_there_is_no_half_precision_the_model_votes(net: nn.Module, test: tuple[Tensor, Tensor]):
    replicas = make_replicas(net, test[0][:64], half=False)
    ready = Ready(net, replicas, 10, 0.0)
    assert voter_for(ready, test[0], 0.3, CPU) is replicas.exact


def test_one_class_has_all_votes():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 1)).eval()
    exact, copy = Replica(net), Replica(nn.Sequential(nn.Flatten(), nn.Linear(12, 1)).eval(), precision=torch.bfloat16)
    found = certify(QuickVoter(exact, copy, 10.0), torch.rand(4, 3, 2, 2), sigma=0.25, n0=10, n=100)
    assert found.guess.tolist() == found.prediction.tolist() == [0] * 4
