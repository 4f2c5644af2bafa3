"""The attack on explanations: it keeps the ball and the class, and does more than noise."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.evaluation.explanation import attacked, attribution, explain, explained, predictions
from robustlib.explanations.attack import SmoothReLU, explanation_attack
from robustlib.explanations.gradient_maps import saliency
from robustlib.explanations.measures import top_intersection
from robustlib.norms import size
from robustlib.rng import Draws


def test_every_relu_is_a_softplus_within_and_none_after():
    x = torch.linspace(-1, 1, 9)
    soft = F.softplus(x, 20)
    ways = [F.relu, torch.relu, nn.ReLU(), nn.ReLU(inplace=True), lambda z: z.relu(), lambda z: z.relu_(), F.relu_]
    with SmoothReLU(20):
        assert all(torch.allclose(way(x.clone()), soft) for way in ways)
        written = x.clone()
        torch.relu_(written)
        assert torch.allclose(written, soft)
    assert torch.equal(F.relu(x), x.clamp(min=0))


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.8)])
def test_attacked_images_keep_ball_box_and_class(net: nn.Module, test: tuple[Tensor, Tensor], norm: Norm, eps: float):
    x = test[0][:32]
    target = net(x).argmax(1)
    x_adv = explanation_attack(net, x, target, explain=saliency, norm=norm, eps=eps, steps=10)
    assert (size(x_adv - x, norm).flatten() <= eps * (1 + 1e-5)).all() and x_adv.min() >= 0 and x_adv.max() <= 1
    assert torch.equal(net(x_adv).argmax(1), target)


def test_the_attack_leaves_less_in_common_than_noise(net: nn.Module, test: tuple[Tensor, Tensor]):
    x = test[0][:64]
    target = net(x).argmax(1)
    clean = saliency(net, x, target)
    x_adv = explanation_attack(net, x, target, explain=saliency, eps=0.1, steps=12)
    noisy = (x + 0.1 * Draws(0, torch.arange(64)).signs(tuple(x.shape[1:]), "noise")).clamp(0, 1)
    after, noise = (top_intersection(clean, saliency(net, z, target)) for z in (x_adv, noisy))
    paired: Any = stats.wilcoxon(after.numpy(), noise.numpy(), alternative="less")
    assert paired.pvalue < 0.01


def test_images_whose_map_nothing_moves_stay_as_they_are():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    x = torch.rand(2, 3, 2, 2)
    assert torch.equal(explanation_attack(linear, x, linear(x).argmax(1), explain=saliency), x)


@pytest.mark.parametrize("method", ["integrated-gradients", "smoothgrad", "grad-cam", "kernel-shap"])
def test_maps_are_the_same_for_any_batch_size_and_order(method: str, net: nn.Module, test: tuple[Tensor, Tensor]):
    x = test[0][:20]
    given: dict[str, Any] = {"samples": 64, "grid": 4} if method == "kernel-shap" else {}
    whole = explain(net, x, method=method, **given)
    for few_at_once in (1, 7):
        few = explain(net, x[:8], method=method, batch_size=few_at_once, **given)
        assert torch.equal(few.attribution, whole.attribution[:8]) and torch.equal(few.target, whole.target[:8])
    order = torch.arange(19, -1, -1)
    back = explain(net, x[order], method=method, index=order, **given)
    assert torch.equal(back.attribution[order], whole.attribution)


def test_attacks_are_the_same_for_any_batch_size_and_order(net: nn.Module, test: tuple[Tensor, Tensor]):
    x = test[0][:40]
    search: dict[str, Any] = {"norm": "Linf", "eps": 0.1, "steps": 2, "looks": 1}
    with explained(net, x) as ready:
        target = predictions(ready, x)

        def found(places: Tensor) -> Tensor:
            return attacked(ready, "saliency", x[places], target[places], Draws(0, places), {}, **search)

        whole = found(torch.arange(40))
        assert not torch.equal(whole, x)
        assert torch.equal(found(torch.arange(5)), whole[:5])
        assert torch.equal(found(torch.arange(39, 33, -1)), whole[34:].flip(0))
        few = attribution(ready, "saliency", x[:3], target[:3], Draws(0, torch.arange(3)), {})
        assert torch.equal(few, attribution(ready, "saliency", x, target, Draws(0, torch.arange(40)), {})[:3])


def test_unknown_methods_and_settings_are_refused(net: nn.Module, test: tuple[Tensor, Tensor]):
    with pytest.raises(ValueError, match="explain: unknown method 'shap', expected one of: saliency, "):
        explain(net, test[0][:2], method="shap")
    with pytest.raises(
        ValueError, match="unknown setting 'step' of integrated-gradients, expected one of: steps, baseline"
    ):
        explain(net, test[0][:2], step=3)
