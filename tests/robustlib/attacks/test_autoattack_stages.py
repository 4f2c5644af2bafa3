"""AutoAttack's lists of attacks, what they put in place of what a model has too few classes for, and odd images."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from robustlib.arguments import Norm
from robustlib.attacks import ENSEMBLES
from robustlib.evaluation.batches import evaluate_batches
from robustlib.norms import inside


@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
@pytest.mark.parametrize("classes", [2, 3, 4, 10, 1000])
@pytest.mark.parametrize("norm", ["Linf", "L1"])
def test_recipes(version: str, classes: int, norm: Norm):
    recipe = ENSEMBLES["autoattack"](norm=norm, eps=0.1, version=version, classes=classes)
    names = [name for name, _ in recipe.stages]
    options: dict[str, Any] = {name: getattr(call, "keywords", {}) for name, call in recipe.stages}
    assert recipe.id == f"autoattack-{version}/1"
    if version == "standard":
        assert names == ["apgd-ce"] * (5 if norm == "L1" else 1) + ["apgd-t", "fab-t", "square"]
        assert options["square"]["queries"] == 5000
    losses = {name: options[name]["loss"] for name in ("apgd-dlr", "apgd-t") if name in options}
    for name, needed in (("apgd-dlr", 3), ("apgd-t", 4)):
        if name in losses:
            assert losses[name] == ("dlr" if classes >= needed else "margin")
            assert any(text.startswith(f"{name}:") for text in recipe.substitutions) == (classes < needed)
    few = 5 if norm == "L1" and version == "standard" else 9
    assert any(text.startswith("targeted attacks:") for text in recipe.substitutions) == (
        version != "rand" and classes - 1 < few
    )
    assert any(text.startswith("fab:") for text in recipe.substitutions) == (version == "plus" and classes > 10)


@pytest.mark.slow
@pytest.mark.parametrize("classes, shape", [(2, (1, 8, 8)), (3, (3, 7, 12)), (1000, (1, 9, 5))])
@pytest.mark.parametrize("norm, eps", [("Linf", 0.3), ("L2", 1.5), ("L1", 6.0)])
def test_few_and_many_classes_and_odd_images(classes: int, shape: tuple[int, ...], norm: Norm, eps: float):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(shape[0], 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes)).eval()
    x = torch.rand(12, *shape)
    y = model(x).argmax(1)
    stages = ENSEMBLES["autoattack"](norm=norm, eps=eps, classes=classes).stages
    short = {"apgd-ce": {"steps": 10}, "apgd-t": {"steps": 5}, "fab-t": {"steps": 5}, "square": {"queries": 30}}
    for name, attack in stages:
        (batch,) = evaluate_batches(
            model, x, y, [(name, partial(attack, **short[name]))], norm=norm, eps=eps, num_classes=classes
        )
        assert inside(batch.x_adv, x, eps, norm).all()
        if name == "apgd-ce":
            assert batch.outcome.success.mean() > 0.5
