"""The engine with certificates: its answers are decisions of the package's network."""

from pathlib import Path

import numpy as np
import pytest
import torch

from robustlib.attacks.pgd import pgd
from robustlib.datasets import load
from robustlib.defences.votes import QuickVoter
from robustlib.defences.votes_in_rounds import decide
from robustlib.inference.cuda_graphs import Graphs
from robustlib.inference.model_modes import strict_float32
from robustlib.inference.replica import Replica
from robustlib.packages.golden import as_floats, read_golden
from robustlib.packages.manifest import GOLDEN, open_package
from robustlib.rng import Draws
from robustq.jobs.serving.answers import ABSTAINED
from robustq.jobs.serving.smoothed import GROUP, Smoothed
from tests.helpers.fake_cuda import install
from tests.helpers.packaged import altered

OPTIONS: dict = {"sigma": 0.2, "radii": (0.1, 0.2), "n": 1000, "n0": 50}


def images_of(place: Path) -> np.ndarray:
    return as_floats(read_golden(open_package(place).read(GOLDEN)).images)


def test_its_answers_are_the_networks_decisions(place: Path):
    engine, x = Smoothed(open_package(place), seed=5, **OPTIONS), images_of(place)[:16]
    x.flags.writeable = False  # as a request's are
    answers = engine.answer(x)
    with strict_float32():
        expected = decide(engine.voter, torch.from_numpy(x.copy()), draws=Draws(5, torch.arange(16)), **OPTIONS)
    assert [answer.label for answer in answers] == expected.label.tolist()
    assert engine.image == x.shape[1:] and engine.classes == [str(k) for k in range(10)]
    for answer, holds, votes, shares in zip(answers, expected.holds, expected.votes, expected.shares, strict=True):
        told = answer.certificate
        assert told is not None and told.holds == dict(zip((0.1, 0.2), holds.tolist(), strict=True))
        assert (told.votes, told.sigma, told.alpha) == (votes, 0.2, 0.001)
        assert answer.kind == "votes" and np.allclose(answer.scores, shares) and answer.scores.dtype == np.float32
    assert expected.holds.any() and not expected.holds.all()
    assert engine.mode.startswith("sigma 0.2, alpha 0.001, at most 1000 votes; ")


def test_where_it_abstains_nothing_holds(place: Path):
    """Noise drowns the image."""
    engine = Smoothed(open_package(place), sigma=3.0, radii=(0.1,), n=400, n0=50, seed=0)
    answers = engine.answer(images_of(place)[:8])
    assert ABSTAINED in {answer.label for answer in answers}
    for answer in answers:
        assert answer.certificate is not None
        assert answer.label != ABSTAINED or answer.certificate.holds == {0.1: False}


def test_its_noise_is_fresh_each_time(place: Path):
    engine, x = Smoothed(open_package(place), sigma=0.6, n=200), images_of(place)[:16]
    first, second = (np.stack([answer.scores for answer in engine.answer(x)]) for _ in range(2))
    assert not np.array_equal(first, second)


def test_on_a_gpu_all_batches_have_one_size(place: Path, monkeypatch: pytest.MonkeyPatch):
    """So that one recording of votes does for all: what is filled up is not answered."""
    install(monkeypatch)
    plain, engine = (Smoothed(open_package(place), device="cpu", seed=5, **OPTIONS) for _ in range(2))
    sizes, x = (8, 32), images_of(place)[:11]
    engine.voter = QuickVoter(
        Replica(plain.network, sizes=sizes),
        Replica(Graphs(plain.network), sizes=sizes, recorded=True, mode="half"),
        0.05,
    )
    found = engine.answer(x)
    assert [answer.label for answer in found] == [answer.label for answer in plain.answer(x)] and len(found) == 11
    first = engine.voter.latest
    engine.answer(x[:1])
    assert first is not None and first is engine.voter.latest and first.recorded is not None and len(first.x) == GROUP


def test_without_a_network_the_program_votes(place: Path, tmp_path: Path):
    """As of a user's own code, which no package has: the decisions are the same, but for rounding."""
    copy = altered(place, tmp_path / "copy", files={}, card={})
    package = open_package(copy)
    package.card["network"] = package.network | {"arch": None}
    x = images_of(place)[:16]
    program, network = (Smoothed(each, seed=1, **OPTIONS) for each in (package, open_package(place)))
    assert type(program.network).__name__ == "BlackBoxModel"
    told = [[(a.label, a.certificate, a.scores.tolist()) for a in each.answer(x)] for each in (program, network)]
    assert told[0] == told[1]


def test_images_within_a_radius_that_holds_keep_their_class(place: Path):
    """The nearest that an attack on the network comes is no nearer than what was certified."""
    data = load.load("digits", "test")
    x, y = torch.from_numpy(data.x[:16]).float() / 255, torch.from_numpy(data.y[:16])
    engine = Smoothed(open_package(place), seed=2, sigma=0.2, radii=(0.1,), n=400, n0=50)
    answers = engine.answer(x.numpy())
    held = [i for i, answer in enumerate(answers) if answer.certificate is not None and answer.certificate.holds[0.1]]
    x_adv = pgd(engine.network, x[held], y[held], norm="L2", eps=0.1, steps=10)
    again = engine.answer(x_adv.detach().numpy())
    assert len(held) > 6
    assert all(one.label in (answers[i].label, ABSTAINED) for i, one in zip(held, again, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sigma": 0.0}, "smoothing: expected sigma above 0, got 0.0"), ({"radii": (2.0,)}, "radius 2 at sigma 0.2: no number of votes"),
     ({"n": 50}, "more votes in all")],
)  # fmt: skip
def test_numbers_that_make_no_sense_are_one_line(options: dict, message: str, place: Path):
    with pytest.raises(ValueError, match=message):
        Smoothed(open_package(place), **OPTIONS | options)
