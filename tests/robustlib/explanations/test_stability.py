"""The stability of explanations over a data set: what is refused, and which explanations their checks do not trust."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.checks.explanation_sanity import explanation_checks
from robustlib.checks.thresholds import FAIL, PASS, WARN
from robustlib.evaluation.explanation_stability import stability_batches
from robustlib.explanations import EXPLANATIONS
from robustlib.explanations.types import Explanation
from robustlib.inference.throughput import Work
from robustlib.norms import draw_on_sphere, size
from robustlib.rng import Draws

EDGES = torch.tensor([[-1.0, -1, -1], [-1, 8, -1], [-1, -1, -1]])[None, None]
GIVEN: dict[str, Any] = {"against": (("noise", {}),), "eps": 0.1, "curve_steps": 8}


def edges(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """An edge detector, which never asks the model."""
    return F.conv2d(x.mean(1, keepdim=True), EDGES, padding=1).abs()


def constant(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    return torch.ones_like(x[:, :1])


def judged(net: nn.Module, test: tuple[Tensor, Tensor], method: str, n: int = 60) -> dict[str, str]:
    x, y = test[0][:n], test[1][:n]
    batches = list(stability_batches(net, x, y, method=method, **GIVEN))
    columns = {name: np.concatenate([batch.columns[name] for batch in batches]) for name in batches[0].columns}
    return {check.name: check.verdict for check in explanation_checks(columns)}


@pytest.mark.parametrize("method", ["integrated-gradients", "input-x-gradient"])
def test_explanations_that_follow_the_model_are_trusted(method: str, net: nn.Module, test: tuple[Tensor, Tensor]):
    assert set(judged(net, test, method).values()) == {PASS}


def test_planted_explanations_that_do_not_are_found(
    net: nn.Module, test: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
):
    for name, run in (("edges", edges), ("constant", constant)):
        monkeypatch.setitem(EXPLANATIONS, name, Explanation(run, lambda p: Work(0), surrogate="gradient"))
    assert judged(net, test, "edges")["random-weights"] == FAIL
    assert judged(net, test, "constant")["constant-map"] == FAIL


def test_a_test_of_few_images_warns_that_it_tells_nothing(net: nn.Module, test: tuple[Tensor, Tensor]):
    assert judged(net, test, "input-x-gradient", 4)["random-order"] == WARN


@pytest.mark.parametrize(
    ("method", "against"), [("saliency", "noise"), ("occlusion", "pgd"), ("occlusion", "explanation-attack")]
)
def test_a_model_without_a_gradient_is_told_what_explains_it(
    method: str, against: str, net: nn.Module, test: tuple[Tensor, Tensor]
):
    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return net(x).detach()

    given: dict[str, Any] = GIVEN | {"against": ((against, {}),)}
    with pytest.raises(
        ValueError, match="expected what needs none, as the method occlusion, lime, kernel-shap, against"
    ):
        list(stability_batches(Detached(), test[0][:4], test[1][:4], method=method, **given))
    fits: dict[str, Any] = GIVEN | {"against": (("noise", {}), ("square", {"queries": 5}))}
    (batch,) = stability_batches(Detached(), test[0][:4], test[1][:4], method="occlusion", **fits)
    assert len(batch.index) == 4


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_noise_has_the_size_of_the_radius(norm: Any):
    like = torch.zeros(5, 3, 8, 8)
    delta = draw_on_sphere(like, 0.3, norm, Draws(0, torch.arange(5)), "n")
    assert torch.allclose(size(delta, norm), torch.full((5,), 0.3)) and len(delta.flatten(1).unique(dim=0)) == 5


def test_what_does_not_fit_is_refused(net: nn.Module, test: tuple[Tensor, Tensor]):
    x, y = test[0][:4], test[1][:4]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"method": "shap"}, "unknown explanation 'shap', expected one of: saliency, .*"),
        ({"against": [("fgms", {})]}, "against: unknown name 'fgms', .*did you mean 'fgsm'"),
        ({"against": [("transfer", {})]}, "against: transfer makes no image within a radius on the model itself"),
        ({"against": [("pgd", {}), ("pgd", {})]}, "against: pgd is named twice"),
        ({"target": "predict"}, "unknown target 'predict'"),
        ({"share": 2.0}, "expected share above 0 and at most 1"),
    ]
    for options, words in wrong:
        with pytest.raises(ValueError, match=words):
            next(stability_batches(net, x, y, **options))
