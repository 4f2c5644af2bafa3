"""Images proved to stand: spared attacks, and the same outcome to the bit."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks import ATTACKS
from robustlib.attacks.autoattack import Named
from robustlib.bounds.proofs import Prover
from robustlib.bounds.traced_network import network_of
from robustlib.evaluation import fixed_models, proofs
from robustlib.evaluation.attack_sequence import attack_in_sequence
from robustlib.evaluation.batches import evaluate_curve
from robustlib.evaluation.evaluation import evaluate
from robustlib.evaluation.proofs import BoundProofs, make_proofs
from robustlib.outcome import Batch

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3)
    ).eval()


def images(n: int = 24) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, network()(x).argmax(1)


def attacks(eps: float) -> list[Named]:
    pgd, square = ATTACKS["pgd"], ATTACKS["square"]
    return [("pgd", pgd.given(eps=eps, steps=5)), ("square", square.given(eps=eps, queries=600))]


def found(radii: list[float], **options) -> list[Batch]:
    x, y = images()
    (batches,) = evaluate_curve(network(), x, y, [(eps, attacks(eps)) for eps in radii], **options)
    return list(batches)


@pytest.mark.parametrize("radii", [[0.02], [0.001, 0.004, 0.02]])
def test_proofs_change_no_bit_of_the_outcome(radii: list[float], monkeypatch: pytest.MonkeyPatch):
    with_proofs = found(radii)
    monkeypatch.setattr(fixed_models, "make_proofs", lambda *_: None)
    without = found(radii)
    stands = np.array([(~batch.outcome.success).sum() for batch in without])
    assert (stands > 0).all() and stands[-1] < 24
    for one, other in zip(with_proofs, without, strict=True):
        for name, values in vars(other.outcome).items():
            assert np.array_equal(getattr(one.outcome, name), values, equal_nan=values.dtype.kind == "f"), name
        assert torch.equal(one.x_adv, other.x_adv) and other.proved is None
        assert one.proved is not None and not (one.proved & one.outcome.success).any()
    proved = [int(batch.proved.sum()) for batch in with_proofs if batch.proved is not None]
    assert proved == sorted(proved, reverse=True) and 0 < proved[-1] < 24
    assert len(radii) == 1 or proved[0] > proved[-1]


class WritesIntoItsImages(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5).div_(0.2)
        return self.net(x)


def test_images_that_a_model_writes_into_stay_as_they_are(monkeypatch: pytest.MonkeyPatch):
    (x, _), model = images(), WritesIntoItsImages().eval()
    given, y = x.clone(), model(x.clone()).argmax(1)
    one = evaluate(model, x, y, partial(ATTACKS["square"].run, queries=600), eps=0.02)
    assert torch.equal(x, given)
    monkeypatch.setattr(fixed_models, "make_proofs", lambda *_: None)
    other = evaluate(model, x, y, partial(ATTACKS["square"].run, queries=600), eps=0.02)
    assert 0 < other.outcome.success.sum() < 24
    assert torch.equal(one.x_adv, other.x_adv) and np.array_equal(one.outcome.success, other.outcome.success)


def test_what_is_proved_is_not_attacked_again():
    seen: list[Tensor] = []

    def taken(model: nn.Module, x: Tensor, y: Tensor, *, draws: object) -> Tensor:
        seen.append(draws.index)  # pyright: ignore[reportAttributeAccessIssue]
        return x

    x, y = images()
    prover = Prover(network_of(network(), x))
    holds = torch.tensor([prover.proof(x[i : i + 1], int(y[i]), 0.01).holds for i in range(len(x))])
    assert 0 < holds.sum() < len(x)
    stages = [taken, taken, taken]
    result = attack_in_sequence(network(), x, y, stages, proofs=BoundProofs(prover, (0.01,), 1, 0.01))
    assert result.proved is not None and torch.equal(result.proved, holds)
    assert [len(index) for index in seen] == [len(x), *2 * [int((~holds).sum())]]
    assert torch.equal(seen[1], (~holds).nonzero().squeeze(1))
    assert (result.broken_by == 3).all() and torch.equal(result.x_adv, x)


def test_each_example_is_proved_at_its_own_radius():
    x, y = images()
    prover = Prover(network_of(network(), x))
    eps = torch.tensor([0.002, 0.02] * 12, dtype=torch.float64)
    expected = [prover.proof(x[i : i + 1], int(y[i]), float(eps[i])).holds for i in range(len(x))]
    assert BoundProofs(prover, (0.002, 0.02), 0).hold(x, y, eps).tolist() == expected
    only = BoundProofs(prover, (0.002,), 0).hold(x, y, eps)
    assert only.tolist() == [one and i % 2 == 0 for i, one in enumerate(expected)]


def own(model: nn.Module, x: Tensor, y: Tensor, *, draws: object = None) -> Tensor:
    return x


class Sines(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin().flatten(1)[:, :3]


def test_proofs_are_made_where_they_are_known_to_pay():
    x, _ = images()
    given = make_proofs(network(), x, [(0.004, attacks(0.004))], "Linf", CPU)
    assert given is not None and (given.radii, given.before, given.eps) == ((0.004,), 1, 0.004)
    several = make_proofs(network(), x, [(eps, attacks(eps)) for eps in (0.004, 0.5)], "Linf", CPU)
    assert several is not None and (several.radii, several.eps) == ((0.004,), None)  # none holds at the larger one

    assert make_proofs(network(), x, [(0.004, attacks(0.004))], "L2", CPU) is None
    assert make_proofs(network(), x, [(0.004, attacks(0.004))], "Linf", torch.device("cuda")) is None
    assert make_proofs(network(), x, [(0.5, attacks(0.5))], "Linf", CPU) is None
    assert make_proofs(Sines(), x, [(0.004, attacks(0.004))], "Linf", CPU) is None
    assert make_proofs(network(), x, [(None, attacks(0.004))], "Linf", CPU) is None
    short = [*attacks(0.004)[:1], ("square", ATTACKS["square"].given(eps=0.004, queries=99))]
    assert make_proofs(network(), x, [(0.004, short)], "Linf", CPU) is None
    mine = [*attacks(0.004), ("own attack", own)]  # which may do something besides
    assert make_proofs(network(), x, [(0.004, mine)], "Linf", CPU) is None
    nes = [("nes", ATTACKS["nes"].given(eps=0.004, queries=5000))]  # whose queries are its own affair
    assert make_proofs(network(), x, [(0.004, nes)], "Linf", CPU) is None


def test_where_memory_is_short_no_proofs_are_made(monkeypatch: pytest.MonkeyPatch):
    def short(model: nn.Module, sample: Tensor) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(proofs, "network_of", short)
    assert make_proofs(network(), images()[0], [(0.004, attacks(0.004))], "Linf", CPU) is None


def test_an_evaluation_says_what_was_proved():
    x, y = images()
    result = evaluate(network(), x, y, partial(ATTACKS["square"].run, queries=600), eps=0.004)
    assert result.proved is not None and result.proved.shape == (24,)
    assert 10 < result.proved.sum() <= round(24 * result.robust_accuracy)
    assert evaluate(network(), x, y, "pgd", eps=0.004).proved is None
