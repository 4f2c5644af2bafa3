"""Attributions against closed forms, slow twins, and captum's on two networks."""

import warnings
from math import comb
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from robustlib.evaluation.explanation import explain
from robustlib.explanations import EXPLANATIONS
from robustlib.explanations.grad_cam import find_layer, grad_cam
from robustlib.explanations.gradient_maps import integrated_gradients, smoothgrad
from robustlib.explanations.kernel_shap import coalitions, kernel_shap, shapley
from robustlib.explanations.lime import closeness, lime, weighted_ridge
from robustlib.explanations.occlusion import occlusion
from robustlib.explanations.variants import squares, with_parts
from robustlib.models import build
from robustlib.rng import Draws

SIDE = 12


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3 * SIDE * SIDE, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + torch.arange(4.0)


def images(n: int, side: int = SIDE) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(n) % 4


def network(arch: str, side: int) -> nn.Module:
    torch.manual_seed(0)
    model = build(arch=arch, in_channels=3, num_classes=4, image_size=(side, side))
    for layer in model.modules():  # statistics that are not those of a network that has seen nothing
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)  # pyright: ignore[reportArgumentType]
            nn.init.uniform_(layer.running_var, 0.5, 1.5)  # pyright: ignore[reportArgumentType]
    return model.eval()


def per_part(values: Tensor, parts: Tensor) -> Tensor:
    """The sum over channels and a part's pixels, (B, parts)."""
    flat = values.sum(1).flatten(1)
    return torch.zeros(len(values), int(parts.max()) + 1, dtype=values.dtype).index_add(1, parts.flatten(), flat)


def test_a_linear_model_is_explained_by_its_weights():
    model, (x, target) = Linear(), images(4)
    weights = model.weight.detach()[target].reshape(x.shape)
    expected = {
        "saliency": weights.abs(),
        "smoothgrad": weights.abs(),
        "input-x-gradient": weights * x,
        "integrated-gradients": weights * (x - 0.25),
    }
    for name, value in expected.items():
        given = {"baseline": 0.25} if name == "integrated-gradients" else {}
        assert torch.allclose(EXPLANATIONS[name](model, x, target, **given), value, atol=1e-5), name


@pytest.mark.parametrize(("grid", "samples"), [(2, 8), (3, 18)])
def test_too_few_coalitions_for_the_values_are_refused(grid: int, samples: int):
    """With as few as these some images have a coalition twice: least squares would give any of many answers."""
    x, target = images(64)
    with pytest.raises(ValueError, match=f"do not determine the values of an image's {grid**2} parts"):
        kernel_shap(Linear(), x, target, grid=grid, samples=samples)


def test_parts_of_a_linear_model_have_their_sums():
    model, (x, target) = Linear(), images(4)
    parts = squares(x, 3)
    own = per_part(model.weight.detach()[target].reshape(x.shape) * (x - 0.5), parts)
    shap = kernel_shap(model, x, target, grid=3, samples=40, baseline=0.5)
    assert shap.shape == (4, 1, SIDE, SIDE)
    assert torch.allclose(shap[:, 0, ::4, ::4].flatten(1), own, atol=1e-4)
    hidden = occlusion(model, x, target, window=4, baseline=0.5)
    assert torch.allclose(hidden[:, 0, ::4, ::4].flatten(1), own, atol=1e-4)
    found = lime(model, x, target, grid=3, samples=400, ridge=1e-9, baseline=0.5)
    assert torch.allclose(found[:, 0, ::4, ::4].flatten(1), own, atol=1e-4)


def test_integrated_gradients_sum_to_the_rise_of_the_logit():
    model, (x, target) = network("lenet5", 16), images(3, 16)
    rise = (model(x) - model(torch.full_like(x, 0.2))).gather(1, target[:, None])[:, 0]
    found = integrated_gradients(model, x, target, steps=200, baseline=0.2)
    assert torch.allclose(found.flatten(1).sum(1), rise, atol=2e-3)


def test_kernel_shap_sums_to_the_rise_of_the_logit():
    model, (x, target) = network("lenet5", 16), images(3, 16)
    rise = (model(x) - model(torch.zeros_like(x))).gather(1, target[:, None])[:, 0]
    found = kernel_shap(model, x, target, grid=4, samples=64)[:, 0, ::4, ::4]
    assert torch.allclose(found.flatten(1).sum(1), rise, atol=1e-4)


@pytest.mark.slow
def test_kernel_shap_comes_to_shapley_values_of_all_orders():
    """Nine parts, so that the mean over all 512 coalitions is exact."""
    model, (x, target) = network("lenet5", 16), images(1, 16)
    parts, count = squares(x, 3), 9
    subsets = torch.arange(2**count)[:, None] >> torch.arange(count) & 1
    with torch.no_grad():
        value = model(with_parts(x, subsets.bool()[:, None], parts, 0.0))[:, target[0]].double().numpy()
    expected = np.zeros(count)
    for i in range(count):
        for k in range(2**count):
            if not k >> i & 1:
                size = bin(k).count("1")
                expected[i] += (value[k | 1 << i] - value[k]) / (count * comb(count - 1, size))
    found = kernel_shap(model, x, target, grid=3, samples=20_000)
    own = torch.stack([found[0, 0][parts == i].mean() for i in range(count)]).double().numpy()
    assert np.abs(own - expected).max() < 0.04 * np.abs(expected).max()


def test_coalitions_have_the_sizes_that_shapley_weights_ask_for():
    drawn = coalitions(Draws(0, torch.arange(40)), 6, 400).sum(2).flatten()
    sizes = np.arange(1, 6)
    chance = 1 / (sizes * (6 - sizes))
    share = np.bincount(drawn.numpy(), minlength=7)[1:6] / len(drawn)
    assert np.abs(share - chance / chance.sum()).max() < 0.01
    pairs = coalitions(Draws(0, torch.arange(3)), 6, 11)
    assert torch.equal(pairs[0:10:2], ~pairs[1:10:2]) and len(pairs) == 11


def test_the_constrained_least_squares_are_those_of_a_large_weight():
    z = (torch.rand(30, 5, generator=torch.Generator().manual_seed(3)) < 0.5).double()
    values, total = torch.rand(30, generator=torch.Generator().manual_seed(4), dtype=torch.float64), torch.tensor(2.0)
    heavy = torch.cat([z, 1e6 * torch.ones(1, 5, dtype=torch.float64)]), torch.cat([values, 1e6 * total[None].double()])
    slow = np.linalg.lstsq(*(each.numpy() for each in heavy), rcond=None)[0]
    assert np.allclose(shapley(z, values, total.double()).numpy(), slow, atol=1e-6)


def test_the_weighted_ridge_is_that_of_scikit_learn():
    z = (torch.rand(50, 6, generator=torch.Generator().manual_seed(3)) < 0.5).double()
    values = torch.rand(50, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    weights = closeness(z, 0.25)
    peer = Ridge(alpha=0.7).fit(z.numpy(), values.numpy(), sample_weight=weights.numpy())
    assert np.allclose(weighted_ridge(z, values, weights, 0.7).numpy(), peer.coef_, atol=1e-9)


def test_closeness_is_limes_kernel_of_the_cosine_distance():
    from sklearn.metrics.pairwise import cosine_distances

    z = (torch.rand(20, 7, generator=torch.Generator().manual_seed(3)) < 0.5).double()
    distance = cosine_distances(z.numpy(), np.ones((1, 7)))[:, 0]
    assert np.allclose(closeness(z, 0.25).numpy(), np.sqrt(np.exp(-(distance**2) / 0.25**2)), atol=1e-7)


def test_occlusion_is_the_mean_over_windows_one_by_one():
    model, (x, target) = network("lenet5", 16), images(2, 16)
    total, hidden = torch.zeros(2, 1, 16, 16), torch.zeros(16, 16)
    with torch.no_grad():
        whole = model(x)[range(2), target]
        for top in (0, 3, 6, 9, 12):
            for left in (0, 3, 6, 9, 12):
                part = x.clone()
                part[:, :, top : top + 5, left : left + 5] = 0.5
                total[:, :, top : top + 5, left : left + 5] += (whole - model(part)[range(2), target])[
                    :, None, None, None
                ]
                hidden[top : top + 5, left : left + 5] += 1
    found = occlusion(model, x, target, window=5, stride=3, baseline=0.5)
    assert torch.allclose(found, total / hidden, atol=1e-6)


def test_parts_that_do_not_divide_the_image_differ_by_a_pixel():
    sizes = torch.bincount(squares(torch.zeros(1, 1, 10, 11), 3).flatten())
    assert len(sizes) == 9 and sizes.sum() == 110 and {int(n) for n in sizes} <= {9, 12, 16, 3 * 3, 3 * 4, 4 * 4}


def test_grad_cam_takes_the_last_maps_after_a_convolution():
    name, _ = find_layer(network("convnet3", 16), torch.zeros(1, 3, 16, 16), None)
    assert name == "features"
    named, _ = find_layer(network("convnet3", 16), torch.zeros(1, 3, 16, 16), "features.1")
    assert named == "features.1"


def test_grad_cam_of_a_model_without_convolutions_is_refused():
    x, target = images(2)
    with pytest.raises(ValueError, match="expected a model with a convolution that gives maps of at least 2x2"):
        grad_cam(Linear(), x, target)
    with pytest.raises(ValueError, match=r"unknown layer 'head', expected the name of one such as: .*features"):
        grad_cam(network("convnet3", 16), *images(2, 16), layer="head")


@pytest.mark.parametrize(
    ("name", "given", "line"),
    [
        ("kernel-shap", {"samples": 10}, "expected samples of at least 128, twice the parts of a grid of 8, got 10"),
        ("kernel-shap", {"grid": 40}, "expected a grid of at most 12 for 12x12 images, got 40"),
        ("lime", {"grid": 1}, "lime: expected grid of at least 2, got 1"),
        ("occlusion", {"window": 2, "stride": 3}, "expected a stride of at most the window, 2, got 3"),
        ("integrated-gradients", {"baseline": 2.0}, "expected baseline from 0 to 1, got 2.0"),
        ("smoothgrad", {"sigma": 0.0}, "expected sigma above 0, got 0.0"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(name: str, given: dict, line: str):
    if given.get("grid") == 40:
        given = given | {"samples": 4000}
    with pytest.raises(ValueError, match=line):
        EXPLANATIONS[name](Linear(), *images(2), **given)


def test_the_explained_class_is_checked_like_labels():
    x, _ = images(2)
    with pytest.raises(TypeError, match=r"saliency: expected target as a tensor of classes, torch\.int64, got list"):
        EXPLANATIONS["saliency"](Linear(), x, [0, 1])
    with pytest.raises(ValueError, match="the model gives 4 classes, but"):
        EXPLANATIONS["saliency"](Linear(), x, torch.tensor([0, 7]))


@pytest.mark.peers
@pytest.mark.parametrize(("arch", "side"), [("convnet3", 16), ("resnet18", 8)])
def test_maps_are_those_of_captum(arch: str, side: int):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from captum import attr

    model, (x, target) = network(arch, side), images(1, side)
    layer = find_layer(model, x[:1], None)[1]
    cam: Any = attr.LayerGradCam(model, layer).attribute(x, target=target, relu_attributions=True)
    given = x.clone().requires_grad_()
    peers = {
        "saliency": attr.Saliency(model).attribute(given, target=target),
        "input-x-gradient": attr.InputXGradient(model).attribute(given, target=target),
        "integrated-gradients": attr.IntegratedGradients(model).attribute(given, target=target, n_steps=50),
        "occlusion": attr.Occlusion(model).attribute(x, (3, 4, 4), strides=(3, 4, 4), target=target),
        "grad-cam": attr.LayerAttribution.interpolate(cam, (side, side), "bilinear"),
    }
    for name, peer in peers.items():
        found = EXPLANATIONS[name](model, x, target)
        assert furthest(found, peer.detach()) <= 1e-4, name  # of the map's largest entry


def smooth_network(side: int) -> nn.Module:
    """A network without ReLU and max-pooling: rounding moves its gradient by little."""
    torch.manual_seed(0)
    blocks = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Softplus(), nn.AvgPool2d(2)]
    head = [nn.Flatten(), nn.Linear(16 * (side // 2) ** 2, 32), nn.Tanh(), nn.Linear(32, 4)]
    return nn.Sequential(*blocks, *head).eval()


@pytest.mark.peers
def test_without_kinks_float32_maps_are_captums_to_a_millionth():
    """Of the map's largest entry; by `explain`, at whose batch sizes and layout captum does not compute."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from captum import attr

    model, (x, target) = smooth_network(16), images(20, 16)
    peer = attr.IntegratedGradients(model).attribute(x, target=target, n_steps=50).detach()
    found = explain(model, x, target, method="integrated-gradients").attribution
    assert furthest(found, peer) <= 5e-6


@pytest.mark.peers
@pytest.mark.parametrize("arch", ["convnet3", "resnet18"])
def test_in_float64_integrated_gradients_are_captums(arch: str):
    """With ReLU and max-pooling too: what differs in float32 is on which side of a kink rounding puts an input, and no
    rule, node or weight. captum has its weights in float32, which a millionth of the largest entry allows for.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from captum import attr

    model, (x, target) = network(arch, 8).double(), images(2, 8)
    x = x.double()
    peer = attr.IntegratedGradients(model).attribute(x, target=target, n_steps=50).detach()
    assert furthest(integrated_gradients(model, x, target), peer) <= 1e-6


def furthest(found: Tensor, peer: Tensor) -> float:
    """The largest difference of an image's maps over the largest entry of the peer's."""
    return ((found - peer).flatten(1).abs().amax(1) / peer.flatten(1).abs().amax(1)).max().item()


@pytest.mark.peers
def test_smoothgrad_and_lime_of_the_same_draws_are_those_of_captum():
    from captum import attr
    from captum._utils.models.linear_model import SkLearnRidge

    model, (x, target) = network("lenet5", 16), images(1, 16)
    draws = Draws(5, torch.tensor([3]))
    noise = [0.1 * draws.normal((3, 16, 16), f"smoothgrad/{k}") for k in range(8)]
    saliency = attr.Saliency(model)
    mean = torch.stack([saliency.attribute((x + n).requires_grad_(), target, abs=False) for n in noise]).mean(0)
    found = smoothgrad(model, x, target, samples=8, draws=draws)
    assert torch.allclose(found, mean.abs(), atol=1e-5)

    kept = draws.uniform((60, 16), "lime") < 0.5
    kept[:, 0] = True
    rows = iter(kept[0].double())
    peer = attr.LimeBase(
        model,
        SkLearnRidge(alpha=1.0),
        similarity_func=lambda _, __, z, **k: closeness(z, 0.25)[0],
        perturb_func=lambda *_, **k: next(rows)[None],
        perturb_interpretable_space=True,
        from_interp_rep_transform=lambda z, given, **k: with_parts(given, z.bool()[None], squares(given, 4), 0.0),
        to_interp_rep_transform=None,
    )
    coefficients = peer.attribute(x, target=target, n_samples=60)
    own = lime(model, x, target, grid=4, samples=60, draws=draws)[0, 0, ::4, ::4].flatten()
    assert torch.allclose(own, coefficients.flatten().float(), atol=1e-4)


@pytest.mark.peers
def test_kernel_shap_is_near_the_one_of_shap():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import shap

    model, (x, target) = network("lenet5", 16), images(1, 16)
    parts = squares(x, 3)

    def value(z: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(with_parts(x, torch.tensor(z).bool()[:, None], parts, 0.0))[:, target[0]].double().numpy()

    explainer = shap.KernelExplainer(value, np.zeros((1, 9)))
    exact = explainer.shap_values(np.ones((1, 9)), nsamples=2**9, silent=True, l1_reg=False)[0]
    found = kernel_shap(model, x, target, grid=3, samples=20_000)
    own = torch.stack([found[0, 0][parts == i].mean() for i in range(9)]).double().numpy()
    assert np.abs(own - exact).max() < 0.04 * np.abs(exact).max()
