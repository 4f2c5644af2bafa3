"""Transfer: from the model itself it is white-box PGD, from a linear surrogate the outcome is known, and it is nobody's
better than white-box.
"""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks import ATTACKS
from robustlib.attacks.pgd import pgd
from robustlib.attacks.surrogate_training import train_surrogate
from robustlib.attacks.transfer import parts, transfer
from robustlib.evaluation.attack_sequence import attack_in_sequence
from robustlib.evaluation.batches import Ready, evaluate_batches, make_ready
from robustlib.models.randomised import InferenceDropout
from robustlib.norms import inside
from robustlib.outcome import Outcome, join
from robustlib.rng import Draws
from tests.helpers.counting_model import Counted

CPU = torch.device("cpu")
NORMS: list[Norm] = ["Linf", "L2"]
EPS: dict[Norm, float] = {"Linf": 0.12, "L2": 0.8, "L1": 4.0}


class Plane(nn.Module):
    """Two classes on the sides of a plane through the middle of the box."""

    def __init__(self, normal: Tensor):
        super().__init__()
        self.normal = normal

    def forward(self, x: Tensor) -> Tensor:
        rise = ((x - 0.5) * self.normal).flatten(1).sum(1)
        return torch.stack([-rise, rise], 1)


@pytest.fixture(scope="module")
def learnt(net: nn.Module, train: tuple[Tensor, Tensor]) -> nn.Module:
    """A network that learnt the answers of `net` on images that no test attacks."""
    return train_surrogate(net, train[0][:600].float() / 255, 10)


@pytest.fixture(scope="module")
def ready(learnt: nn.Module, test: tuple[Tensor, Tensor]) -> Ready:
    return make_ready(learnt, test[0], 10, CPU)


def outcome(model: nn.Module, test, ready: Ready, norm: Norm, n: int = 100, **options) -> tuple[Outcome, Tensor]:
    x, y = test[0][:n], test[1][:n]
    named = [("transfer", partial(transfer, norm=norm, eps=EPS[norm], steps=20))]
    run = evaluate_batches(model, x, y, named, norm=norm, eps=EPS[norm], surrogate=ready.as_surrogate(), **options)
    batches = list(run)
    return join([batch.outcome for batch in batches]), torch.cat([batch.x_adv for batch in batches])


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_from_the_model_itself_it_is_pgd(norm: Norm, net: nn.Module, test):
    x, y = test[0][:40], test[1][:40]
    options = {"norm": norm, "eps": EPS[norm], "steps": 12, "loss": "margin", "draws": Draws(3, torch.arange(40) + 7)}
    assert torch.equal(transfer(net, x, y, surrogate=net, **options), pgd(net, x, y, **options))
    # Asked after every step, it ends where PGD that stops at success does; that one does not look after its last step.
    asked = transfer(net, x, y, surrogate=net, queries=12, **options)
    fell = net(asked).argmax(1) != y
    stopped = net(pgd(net, x, y, stop_at_success=True, **options)).argmax(1) != y
    assert torch.equal(fell, stopped) and fell.any()


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_a_model_that_is_asked_on_the_way_changes_no_step(norm: Norm, net: nn.Module, test):
    """A model that is never fooled: twelve parts of one step go where twelve steps go."""
    x, y = test[0][:40], test[1][:40]

    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.one_hot(y, 10).float()

    never = Never()
    options = {"norm": norm, "eps": EPS[norm], "steps": 12, "draws": Draws(3, torch.arange(40))}
    in_parts = transfer(never, x, y, surrogate=net, queries=12, **options)
    torch.testing.assert_close(in_parts, transfer(never, x, y, surrogate=net, **options), rtol=0, atol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 0.5, 1.2])
def test_between_two_planes_the_radius_is_known(angle: float):
    """Along the surrogate's normal u, or to its corner sign(u), the model's rise w . x changes by so much."""
    generator = torch.Generator().manual_seed(1)
    w, aside = torch.randn(2, 1, 8, 8, generator=generator)
    u = torch.cos(torch.tensor(angle)) * w + torch.sin(torch.tensor(angle)) * aside
    model, surrogate = Plane(w), Plane(u)
    rise = torch.linspace(-3, 3, 200)
    x = 0.5 + rise[:, None, None, None] * w / w.square().sum()
    y = (rise > 0).long()
    eps: dict[Norm, float] = {"Linf": 0.05, "L2": 0.3}
    gains = {"Linf": eps["Linf"] * (w * u.sign()).sum(), "L2": eps["L2"] * (w * u).sum() / u.norm()}
    for norm in NORMS:
        budget = {"norm": norm, "eps": eps[norm], "steps": 30, "step_size": eps[norm]}  # long steps forget the start
        found = transfer(model, x, y, surrogate=surrogate, **budget)
        fell, expected = model(found).argmax(1) != y, rise.abs() < gains[norm]
        sure = (rise.abs() / gains[norm] - 1).abs() > 1e-4
        assert 0.05 < expected.float().mean() < 0.95 and torch.equal(fell[sure], expected[sure])


@pytest.mark.parametrize("norm", NORMS)
def test_no_more_falls_than_to_the_models_own_gradients(norm: Norm, net: nn.Module, learnt: nn.Module, test, ready):
    x, y = test[0][:100], test[1][:100]
    found, x_adv = outcome(net, test, ready, norm)
    own = partial(ATTACKS["pgd"], norm=norm, eps=EPS[norm], steps=20, loss="margin")
    white = join([batch.outcome for batch in evaluate_batches(net, x, y, [("pgd", own)], norm=norm, eps=EPS[norm])])
    assert 0.1 < 1 - white.success.mean() <= 1 - found.success.mean() < found.clean_correct.mean()
    assert inside(x_adv, x, EPS[norm], norm).all()
    assert set(found.broken_by[found.success]) == {"clean", "transfer"}
    attacked = found.broken_by != "clean"
    assert (found.queries[attacked] == 1).all() and (found.queries[~attacked] == -1).all()
    with torch.no_grad():
        assert ((net(x_adv).argmax(1) != y).numpy() == found.success).all()


@pytest.mark.parametrize("norm", NORMS)
def test_no_bit_depends_on_batch_order_or_threads(norm: Norm, net: nn.Module, test, ready: Ready):
    before = torch.get_num_threads()
    order = torch.randperm(100, generator=torch.Generator().manual_seed(5))
    try:
        torch.set_num_threads(1)
        whole, images = outcome(net, test, ready, norm)
        found = [outcome(net, test, ready, norm, batch_size=size, index=order) for size in (7, 64)]
        torch.set_num_threads(2)
        found.append(outcome(net, test, ready, norm, index=order))
    finally:
        torch.set_num_threads(before)
    for other, others in found:
        assert torch.equal(others, images[order])
        for name, values in vars(whole).items():
            assert values[order.numpy()].tobytes() == getattr(other, name).tobytes(), name


def test_every_pass_of_the_surrogate_is_counted_whatever_the_threads(net: nn.Module, test, learnt: nn.Module):
    before, passes = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            made_on = make_ready(learnt, test[0], 10, CPU)
            outcome(net, test, made_on, "Linf", n=60)
            count = made_on.as_surrogate().count
            passes.append((count.forwards, count.gradients))
    finally:
        torch.set_num_threads(before)
    standing = int((net(test[0][:60]).argmax(1) == test[1][:60]).sum())
    assert passes == [(20 * standing, 20 * standing)] * 2


@pytest.mark.parametrize("queries", [1, 3, 10, 50])
def test_queries_are_those_that_the_model_saw(queries: int, net: nn.Module, learnt: nn.Module, test):
    x, y = test[0][:60], test[1][:60]
    model, spent = Counted(net), torch.zeros(60, dtype=torch.int64)
    found = transfer(model, x, y, surrogate=learnt, eps=0.2, steps=20, queries=queries, spent=spent)
    assert spent.sum() == model.shown and spent.max() <= min(queries, 20) and spent.min() >= 1
    stands = net(found).argmax(1) == y
    assert stands.any() and (spent[stands] == min(queries, 20)).all()
    assert queries == 1 or (spent[~stands] < min(queries, 20)).any()


def test_more_queries_find_no_less(net: nn.Module, learnt: nn.Module, test):
    x, y = test[0][:100], test[1][:100]
    attacks = [partial(transfer, surrogate=learnt, eps=0.15, steps=20, queries=n) for n in (1, 20)]
    few, many = (attack_in_sequence(net, x, y, [attack]).broken_by for attack in attacks)
    assert not ((few == 0) & (many == 1)).any() and (many == 0).sum() > (few == 0).sum()


def test_steps_are_cut_nearly_alike():
    assert parts(50, 1) == [50] and parts(10, 4) == [2, 3, 2, 3] and parts(3, 9) == [1, 1, 1] and parts(5, 0) == [5]
    assert all(sum(parts(steps, n)) == steps for steps in range(1, 30) for n in range(1, 40))


def test_a_model_that_answers_by_chance_is_attacked_too(net: nn.Module, test, ready: Ready):
    model = nn.Sequential(InferenceDropout(0.05), net).eval()
    found, x_adv = outcome(model, test, ready, "Linf", n=40, draws=20, eot_draws=3)
    assert found.success.mean() > 0.1 and set(found.broken_by) <= {"", "clean", "transfer"}
    assert inside(x_adv, test[0][:40], EPS["Linf"], "Linf").all()


def test_what_images_cannot_be_made_on_is_refused(net: nn.Module, test):
    x, y = test[0][:8], test[1][:8]
    with pytest.raises(ValueError, match="transfer expects a surrogate to make its images on, got none"):
        transfer(net, x, y)
    chance = nn.Sequential(InferenceDropout(0.2), net).eval()
    with pytest.raises(ValueError, match="the surrogate changes its answers from pass to pass"):
        make_ready(chance, x, 10, CPU).as_surrogate()

    class Deaf(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return net(x).detach()

    with pytest.raises(ValueError, match="the surrogate has no gradient to make images by"):
        make_ready(Deaf(), x, 10, CPU).as_surrogate()
