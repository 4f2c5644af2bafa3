"""Measures of attributions against values by hand, scipy, scikit-image and slow twins."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from robustlib.explanations.curves import deletion, insertion
from robustlib.explanations.measures import near_top_intersection, scaled, spearman, ssim, top, top_intersection
from robustlib.explanations.sanity import faults, random_order, relevance, with_random_weights
from robustlib.models import build
from robustlib.rng import Draws


def maps(*seeds: int, side: int = 8, n: int = 3) -> list[Tensor]:
    return [torch.randn(n, 1, side, side, generator=torch.Generator().manual_seed(seed)) for seed in seeds]


def at(*places: tuple[int, int]) -> Tensor:
    found = torch.zeros(1, 1, 10, 10)
    for row, column in places:
        found[0, 0, row, column] = 1
    return found


def test_top_pixels_are_the_largest_whatever_their_sign():
    values = torch.tensor([[[[0.0, -3.0], [1.0, 2.0]]]])
    assert top(values, 0.5)[0].tolist() == [[False, True], [False, True]]
    two_channels = torch.tensor([[[[2.0, 0.0]], [[-2.0, 3.0]]]])
    assert top(two_channels, 0.5)[0].tolist() == [[True, False]]


def test_top_intersection_counts_pixels_in_common():
    a, b = at((0, 0), (0, 1), (5, 5), (9, 9)), at((0, 0), (0, 2), (5, 6), (9, 9))
    assert top_intersection(a, b, share=0.04).tolist() == [0.5]
    assert near_top_intersection(a, b, share=0.04, radius=0).tolist() == [0.5]
    assert near_top_intersection(a, b, share=0.04, radius=1).tolist() == [1.0]
    # (0, 1) lies two columns from the only pixel of the other: covered one way alone.
    assert near_top_intersection(at((0, 0), (3, 3)), at((0, 1), (9, 9)), share=0.02).tolist() == [0.5]


def test_spearman_is_that_of_scipy_with_ties():
    a, b = ((each * 2).round() for each in maps(0, 1))
    peer: Any = [stats.spearmanr(x.abs().flatten(), y.abs().flatten())[0] for x, y in zip(a, b, strict=True)]
    assert np.allclose(spearman(a, b).numpy(), peer)
    assert spearman(a, torch.ones_like(a)).isnan().all()


def test_ssim_is_that_of_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    a, b = maps(0, 1, side=20)
    b = a + 0.3 * b
    first, second = (scaled(each.abs()[:, 0].double()).numpy() for each in (a, b))
    peer = [
        metrics.structural_similarity(
            x, y, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
        )[1][5:-5, 5:-5].mean()
        for x, y in zip(first, second, strict=True)
    ]
    assert np.allclose(ssim(a, b).numpy(), peer, atol=1e-6)
    assert ssim(a, a).tolist() == pytest.approx([1] * 3)
    assert ssim(torch.ones(1, 1, 6, 6), maps(0, side=6, n=1)[0]).isfinite().all()


class Brightness(nn.Module):
    """Two classes; the probability of the first is a known function of the mean of the left half."""

    def forward(self, x: Tensor) -> Tensor:
        share = x[:, 0, :, : x.shape[3] // 2].double().mean((1, 2)) * 0.8 + 0.1
        return torch.stack([share.log(), (1 - share).log()], 1)


def test_deletion_and_insertion_have_the_areas_by_hand():
    x, target = torch.ones(1, 1, 4, 4), torch.zeros(1, dtype=torch.int64)
    left = torch.zeros(1, 1, 4, 4)
    left[..., :2] = 1
    # 0.9 falls to 0.1 over the first half of the pixels, and stays: 0.5 * 0.5 + 0.5 * 0.1.
    assert deletion(Brightness(), x, target, left, steps=16).item() == pytest.approx(0.3)
    assert insertion(Brightness(), x, target, left, steps=16).item() == pytest.approx(0.7)
    assert deletion(Brightness(), x, target, 1 - left, steps=16).item() == pytest.approx(0.7)
    assert relevance(Brightness(), x, target, left).item() == pytest.approx(0.4)


def test_random_orders_have_no_relevance_gain(net: nn.Module, test: tuple[Tensor, Tensor]):
    x, y = test[0][:100], test[1][:100]
    gains = relevance(net, x, y, random_order(x, Draws(0, torch.arange(100))))
    assert abs(gains.mean()) < 4 * gains.std() / 10


def test_randomised_weights_are_others_and_the_same_each_time():
    model = build(arch="convnet3", in_channels=3, num_classes=4, image_size=(8, 8)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (with_random_weights(model, seed=1).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    weights = [name for name in first if name.endswith("weight") and first[name].ndim > 1]
    assert weights and not any(torch.equal(first[name], before[name]) for name in weights)


def test_parameters_of_no_known_layer_are_shuffled():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.arange(50.0))

    shuffled = next(with_random_weights(Own()).parameters())
    assert not torch.equal(shuffled, torch.arange(50.0)) and sorted(shuffled.tolist()) == list(range(50))


def test_a_model_that_keeps_what_it_answered_has_random_weights_too():
    """A tensor that a graph made, which deepcopy takes by itself for an error."""
    net = nn.Linear(3, 2)
    net.last = net(torch.zeros(1, 3))
    assert not torch.equal(next(with_random_weights(net).parameters()), net.weight)


def test_faults_name_what_speaks_against_an_explanation():
    gains = np.linspace(0.1, 0.3, 40)
    nothing = np.linspace(-0.1, 0.1, 40)
    assert faults(np.full(40, 0.3), gains, nothing) == []
    assert faults(np.full(40, 1.0), gains, nothing) == [
        "the map hardly changes with randomised weights: rank correlation 1.00, below 0.8 expected"
    ]
    assert faults(np.full(40, np.nan), gains, nothing) == ["the map is constant on most images"]
    assert faults(np.full(40, 0.3), nothing + 0.05, nothing + 0.05) == [
        "its order of pixels is no better than a random one: relevance gain 0.050, random 0.050"
    ]
