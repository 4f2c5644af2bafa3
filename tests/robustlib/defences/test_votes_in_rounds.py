"""Certificates by votes in rounds, beside the same votes counted one image at a time, and a closed form."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlib.defences.smoothing import certify
from robustlib.defences.stopping_rule import HALF, make_rule, share_of_radius
from robustlib.defences.votes import QuickVoter, make_voter, vote
from robustlib.defences.votes_in_rounds import decide, unknown_draws
from robustlib.inference.cuda_graphs import Graphs
from robustlib.inference.fast_copy import make_replicas
from robustlib.inference.model_modes import strict_float32
from robustlib.inference.replica import Replica
from robustlib.rng import Draws
from tests.helpers.fake_cuda import install

SIGMA, RADII = 0.3, (0.15, 0.3)
SMALL = {"sigma": SIGMA, "radii": RADII, "n0": 20, "n": 320, "alpha": 0.02}


def test_it_is_the_rule_on_votes_one_image_at_a_time(net: nn.Module, test: tuple[Tensor, Tensor]):
    x, draws = test[0][:24], Draws(7, torch.arange(24) + 3)
    found = decide(net, x, draws=draws, **SMALL)
    rule = make_rule((HALF, *(share_of_radius(r, SIGMA) for r in RADII)), n=300, alpha=0.02)
    for i in range(24):
        count = partial(vote, net, x[i : i + 1], SIGMA, draws=draws[i : i + 1])
        chosen = count(20, stream="rounds/select")[0]
        guess, hits, state, total = int(chosen.argmax()), 0, [0, 0, 0], 0
        for number, total in enumerate(rule.rounds):
            hits += int(count(total - ([0, *rule.rounds][number]), stream=f"rounds/{number}")[0, guess])
            for t in range(3):
                if state[t] == 0:
                    state[t] = 1 if hits >= rule.enough[number, t] else -1 if hits <= rule.too_few[number, t] else 0
            if 0 not in state:
                break
        assert int(found.label[i]) == (guess if state[0] == 1 else -1) and int(found.guess[i]) == guess
        assert found.holds[i].tolist() == [state[1] == 1, state[2] == 1] and int(found.votes[i]) == 20 + total
        assert torch.equal(found.shares[i], chosen / 20)
    assert len(found.votes.unique()) > 3 and 0 < (found.label == -1).sum() < 24
    assert 0 < found.holds[:, 1].sum() < found.holds[:, 0].sum() < 24


class Linear(nn.Module):
    """Two classes told apart by a plane: smoothed, the radius is the distance from it, for any sigma."""

    def __init__(self, pixels: int):
        super().__init__()
        weight = torch.randn(pixels, generator=torch.Generator().manual_seed(1))
        self.weight = nn.Parameter(weight / weight.norm())

    def forward(self, x: Tensor) -> Tensor:
        side = (x.flatten(1) - 0.5) @ self.weight
        return torch.stack([side, -side], 1)


def test_of_a_linear_model_what_holds_is_within_the_distance():
    """Closed form. 2 x 60 statements at alpha 0.001, and the seed is fixed."""
    net = Linear(48).eval()
    signed = torch.linspace(-0.5, 0.5, 60)
    x = (0.5 + signed.reshape(-1, 1, 1, 1) * net.weight.detach().reshape(3, 4, 4)).clamp(0, 1)
    side = net(x)[:, 0].detach()
    radii = (0.1, 0.3)
    found = decide(net, x, sigma=0.25, radii=radii, n=2000, draws=Draws(0, torch.arange(60)))
    assert (found.label[found.label >= 0] == (side < 0).long()[found.label >= 0]).all()
    for k, radius in enumerate(radii):
        holds = found.holds[:, k]
        assert (side.abs()[holds] >= radius).all() and holds[side.abs() > radius + 0.05].all()
    assert (found.votes[found.holds[:, 1]] < 1000).any() and found.votes.max() <= 2000


def test_the_quick_copys_decisions_are_the_models(net: nn.Module, test: tuple[Tensor, Tensor]):
    x, draws = test[0][:16], Draws(3, torch.arange(16))
    with strict_float32():
        replicas = make_replicas(net, test[0][:64], half=True)
        voter = make_voter(replicas.exact, replicas.search, test[0][:64], SIGMA)
        assert isinstance(voter, QuickVoter)
        found, expected = (decide(each, x, draws=draws, **SMALL) for each in (voter, replicas.exact))
    for name, value in vars(expected).items():
        assert torch.equal(getattr(found, name), value), name


def test_recorded_votes_are_decided_as_others_are(
    monkeypatch: pytest.MonkeyPatch, net: nn.Module, test: tuple[Tensor, Tensor]
):
    """As on a GPU: one recording for the whole batch, in which those that are decided stay and are not counted."""
    install(monkeypatch)
    sizes, x, draws = (8, 32), test[0][:6], Draws(5, torch.arange(6))
    voter = QuickVoter(Replica(net, sizes=sizes), Replica(Graphs(net), sizes=sizes, recorded=True, mode="half"), 0.05)
    found, expected = (decide(each, x, draws=draws, **SMALL) for each in (voter, Replica(net, sizes=sizes)))
    for name, value in vars(expected).items():
        assert torch.equal(getattr(found, name), value), name
    assert len(expected.votes.unique()) > 1 and voter.latest is not None and voter.latest.recorded is not None
    assert len(voter.latest.x) == 6


def test_an_image_that_is_decided_is_asked_no_more(net: nn.Module, test: tuple[Tensor, Tensor]):
    counted = Replica(net)
    found = decide(counted, test[0][:16], draws=Draws(0, torch.arange(16)), **SMALL)
    assert counted.count.forwards == int(found.votes.sum()) and found.votes.min() < found.votes.max() / 4


def test_what_holds_offline_certificates_hold_too(net: nn.Module, test: tuple[Tensor, Tensor]):
    """With noise of its own for each: where the bound of 1,000 votes is far from a radius, both say the same."""
    x = test[0][:24]
    found = decide(net, x, sigma=SIGMA, radii=RADII, n=1000, draws=Draws(1, torch.arange(24)))
    offline = certify(net, x, sigma=SIGMA, n=1000, draws=Draws(2, torch.arange(24)))
    for k, radius in enumerate(RADII):
        far = (offline.radius - radius).abs() > 0.06
        assert far.sum() > 8 and torch.equal(found.holds[far, k], (offline.radius >= radius)[far])
        assert torch.equal(found.label[far & found.holds[:, k]], offline.prediction[far & found.holds[:, k]])


def test_noise_is_nobodys_to_know_unless_it_is_given(net: nn.Module, test: tuple[Tensor, Tensor]):
    """Not a function of torch's generator, as a server's would be after a restart; and another one each time."""
    x, shares = test[0][:20], []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        shares.append(decide(net, x, sigma=0.6, n0=50, n=100).shares)
    assert not torch.equal(*shares)
    seeds = {unknown_draws(x).seed for _ in range(20)}
    assert len(seeds) == 20 and min(seed.bit_length() for seed in seeds) > 100


@pytest.mark.parametrize(
    ("options", "message"),
    [({"radii": (0.5, 0.25)}, "expected radii that rise, got 0.5, 0.25"), ({"n": 100}, "more votes in all, n, than n0"),
     ({"radii": (1.0,)}, r"radius 1 at sigma 0.25: expected at least \d+ votes .* ask for a smaller radius, or more of n"),
     ({"radii": (9.0,)}, r"radius 9 at sigma 0.25: no number of votes .*: ask for a smaller radius, or a larger sigma$"),
     ({"n": 10**18}, "expected n from 1 to 1000000, got 1000000000000000000"),
     ({"radii": (-0.1,)}, "expected radius of at least 0"), ({"alpha": 1.0}, "alpha between 0 and 1"),
     ({"sigma": None}, "expected sigma, the noise to smooth")],
)  # fmt: skip
def test_what_cannot_be_decided_is_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        decide(Linear(4), torch.zeros(1, 1, 2, 2), **{"sigma": 0.25, "radii": (0.25,)} | options)
