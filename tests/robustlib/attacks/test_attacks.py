"""What every attack promises, on linear models whose distance to the boundary is known, and on a trained network."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks import ATTACKS
from robustlib.attacks.pgd import fgsm, pgd
from robustlib.evaluation.attack_sequence import attack_in_sequence
from robustlib.inference.oracle import as_oracle
from robustlib.inference.predict import correct
from robustlib.losses import cross_entropy
from robustlib.norms import ascent
from robustlib.rng import Draws

NORMS: list[Norm] = ["Linf", "L2"]
ADVERSARIAL = {
    "fgsm": ATTACKS["fgsm"],
    "fgsm-start": partial(fgsm, random_start=True),
    "fgsm-margin": partial(fgsm, loss="margin"),
    "pgd": ATTACKS["pgd"],
    "pgd-plain": partial(pgd, random_start=False),
    "pgd-margin": partial(pgd, loss="margin"),
    "deepfool": ATTACKS["deepfool"],
}


class Rows(nn.Module):
    """A linear model that sums each image by itself: no bit of a result depends on who shares the batch."""

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1)[:, None] * self.weight).sum(2) + self.bias


def two_classes(dtype: torch.dtype = torch.float32) -> tuple[Rows, Tensor, Tensor, Tensor]:
    """A model of two classes and images near 0.5, far from the box: model, x, y, L2 distance to the boundary."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 64, generator=generator, dtype=torch.float64)
    normal = weight[1] - weight[0]
    normal /= normal.norm()
    distance = torch.linspace(0.1, 0.3, 128, dtype=torch.float64)
    y = torch.arange(128) % 2
    aside = 0.1 * torch.rand(128, 64, generator=generator, dtype=torch.float64) - 0.05
    aside -= (aside @ normal)[:, None] * normal
    x = 0.5 + aside + ((2 * y - 1) * distance)[:, None] * normal
    model = Rows(weight, -0.5 * weight.sum(1))
    return model.to(dtype), x.reshape(128, 1, 8, 8).to(dtype), y, distance


def to_norm(distance: Tensor, model: Rows, norm: Norm) -> Tensor:
    normal = (model.weight[1] - model.weight[0]).detach().double()
    return distance if norm == "L2" else distance * normal.norm() / normal.abs().sum()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", [name for name in ADVERSARIAL if name != "fgsm-start"])
def test_breaks_just_beyond_the_boundary_and_not_before(name: str, norm: Norm):
    model, x, y, distance = two_classes()
    nearest, furthest = to_norm(distance, model, norm).aminmax()
    attack = partial(ADVERSARIAL[name], model, x, y, norm=norm)
    assert correct(model, x, y).all()
    assert correct(model, attack(eps=0.99 * nearest.item()), y).all()
    assert not correct(model, attack(eps=1.05 * furthest.item()), y).any()


@pytest.mark.parametrize("norm", NORMS)
def test_breaks_exactly_what_is_nearer_than_eps(norm: Norm):
    model, x, y, distance = two_classes()
    distance = to_norm(distance, model, norm)
    eps = distance.median().item()
    for name in ("fgsm", "pgd-plain"):
        stands = correct(model, ADVERSARIAL[name](model, x, y, norm=norm, eps=eps), y)
        assert stands[distance > eps * 1.001].all() and not stands[distance < eps * 0.999].any()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", [*ADVERSARIAL, "clean"])
def test_eps_zero_returns_the_images_bit_for_bit(name: str, norm: Norm, net: nn.Module, test):
    x, y = test[0][:128], test[1][:128]
    attack = ATTACKS["clean"] if name == "clean" else partial(ADVERSARIAL[name], norm=norm, eps=0.0)
    assert torch.equal(attack(net, x, y), x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.parametrize("eps", [1e-4, 0.03, 0.3, 4.0])
def test_stays_in_the_ball_and_the_box(name: str, norm: Norm, eps: float, net: nn.Module, test):
    """The digits lie on the box: most of their pixels are 0 or 1."""
    x, y = test[0][:96], test[1][:96]
    eps = min(eps, 1.0) if norm == "Linf" else eps  # wider than the box it is refused
    x_adv = ADVERSARIAL[name](net, x, y, norm=norm, eps=eps)
    assert x_adv.shape == x.shape and x_adv.dtype == x.dtype and not x_adv.requires_grad
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    delta = (x_adv.double() - x.double()).flatten(1)
    sizes = delta.abs().amax(1) if norm == "Linf" else delta.norm(dim=1)
    assert sizes.max() <= eps * (1 + 1e-5) + 1e-7


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_leaves_model_images_and_generators_as_they_were(name: str, norm: Norm, net: nn.Module, test):
    x, y = test[0][:64].clone(), test[1][:64].clone()
    layers, parameters = list(net.modules()), list(net.parameters())
    net.zero_grad()  # tests before this one may have left some
    parameters[0].requires_grad_(False)
    try:
        before = {key: value.clone() for key, value in net.state_dict().items()}
        flags = [(layer.training, [p.requires_grad for p in parameters]) for layer in layers]
        random = torch.get_rng_state()
        ADVERSARIAL[name](net, x, y, norm=norm, eps=0.1)
        assert flags == [(layer.training, [p.requires_grad for p in parameters]) for layer in layers]
        assert all(p.grad is None for p in parameters)
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
        assert torch.equal(x, test[0][:64]) and torch.equal(y, test[1][:64]) and not x.requires_grad
        assert torch.equal(torch.get_rng_state(), random) and torch.is_grad_enabled()
    finally:
        parameters[0].requires_grad_(True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_an_example_does_not_depend_on_its_batch(name: str, norm: Norm, dtype: torch.dtype):
    model, x, y, distance = two_classes(dtype)
    eps = to_norm(distance, model, norm).median().item()
    draws = Draws(1, torch.arange(128))
    attack = partial(ADVERSARIAL[name], norm=norm, eps=eps)
    whole = attack(model, x, y, draws=draws)
    order = torch.randperm(128, generator=torch.Generator().manual_seed(2))
    for chosen in (torch.arange(64), order[:50], order):
        assert torch.equal(attack(model, x[chosen], y[chosen], draws=draws[chosen]), whole[chosen])


@pytest.mark.parametrize("norm", NORMS)
def test_random_start_follows_the_draws(norm: Norm, net: nn.Module, test):
    x, y = test[0][:64], test[1][:64]
    runs = [pgd(net, x, y, norm=norm, eps=0.1, draws=Draws(seed, torch.arange(64))) for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert torch.equal(pgd(net, x, y, norm=norm, eps=0.1), runs[0])  # seed 0 and the batch's order without draws


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_matches_a_loop_over_single_images(norm: Norm, net: nn.Module, test):
    """The textbook loop, one image at a time in float64; the default step is 2.5 eps / steps."""
    model, eps, steps = nn.Sequential(net, nn.Identity()), 0.1, 7
    state = {key: value.clone() for key, value in net.state_dict().items()}
    try:
        model.double()
        x, y = test[0][:20].double(), test[1][:20]
        found = pgd(model, x, y, norm=norm, eps=eps, steps=steps, random_start=False)
        for image, label, x_adv in zip(x, y, found, strict=True):
            delta = torch.zeros_like(image)
            for _ in range(steps):
                point = (image + delta)[None].requires_grad_()
                model(point).log_softmax(1)[0, label].neg().backward(inputs=[point])
                assert point.grad is not None
                grad = point.grad[0]
                delta += 2.5 * eps / steps * (grad.sign() if norm == "Linf" else grad / grad.norm())
                delta = delta.clamp(-eps, eps) if norm == "Linf" else delta * min(1.0, eps / delta.norm().item())
                delta = (image + delta).clamp(0, 1) - image
            torch.testing.assert_close(x_adv, image + delta, rtol=0, atol=1e-9)
    finally:
        net.float().load_state_dict(state)
        net.zero_grad()


@pytest.mark.parametrize("norm", NORMS)
def test_fgsm_is_one_step_of_size_eps(norm: Norm, net: nn.Module, test):
    x, y = test[0][:64], test[1][:64]
    step = ascent(as_oracle(net).value_and_grad(x, cross_entropy, y)[2], norm)
    expected = (x + 0.1 * step).clamp(0, 1)
    torch.testing.assert_close(fgsm(net, x, y, norm=norm, eps=0.1), expected, rtol=0, atol=1e-6)
    started = fgsm(net, x, y, norm=norm, eps=0.1, random_start=True)
    assert torch.equal(started, pgd(net, x, y, norm=norm, eps=0.1, steps=1, step_size=0.125))


@pytest.mark.parametrize("norm", NORMS)
def test_restarts_are_never_weaker_than_one_run(norm: Norm, net: nn.Module, test):
    x, y = test
    attack = partial(pgd, norm=norm, eps=0.08 if norm == "Linf" else 0.5, steps=3)
    (once, _, by_one, *_), (often, _, by_many, *_) = (attack_in_sequence(net, x, y, [attack] * n) for n in (1, 4))
    one = by_one < 1
    assert torch.equal(often[one], once[one]) and torch.equal(by_many[one], by_one[one])
    gained = (by_many > 0) & (by_many < 4)
    assert gained.any()  # fresh draws find what the first run missed
    assert torch.equal(by_many == 4, ~(one | gained))


@pytest.mark.parametrize("name", ["fgsm", "pgd", "deepfool"])
def test_names_what_does_not_exist(name: str, net: nn.Module, test):
    x, y = test[0][:4], test[1][:4]
    with pytest.raises(ValueError, match="unknown norm 'L3', expected one of: Linf, L2, L1"):
        ATTACKS[name](net, x, y, norm="L3", eps=0.1)
    if name != "deepfool":
        with pytest.raises(ValueError, match="unknown loss 'hinge', expected one of: ce, margin, dlr"):
            ATTACKS[name](net, x, y, eps=0.1, loss="hinge")
