"""What the page on the kernels as a library shows runs, and what it names exists."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from torch import nn

PAGE = (Path(__file__).parents[2] / "docs" / "library.md").read_text()


@pytest.mark.slow
def test_its_lines_run_and_give_what_they_say():
    """Images of one colour, up to 0.1 from the boundary of a linear model, at 1/2."""
    linear = nn.Linear(16, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 16))
        linear.bias.copy_(torch.tensor([8.0, -8.0]))
    net = nn.Sequential(nn.Flatten(), linear).eval()
    x = (0.4 + 0.2 * torch.rand(60, 1, 1, 1, generator=torch.Generator().manual_seed(0))).expand(60, 1, 4, 4).clone()
    y = net(x).argmax(1)
    names: dict = {"model": net, "x": x, "y": y}
    evaluation, attack, bounds, explanation = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(evaluation, names)
    assert names["found"].outcome.success.tolist() == ((x[:, 0, 0, 0] - 0.5).abs() < 8 / 255).tolist()
    assert (
        0 < len(names["adversarial"]) < len(x) and names["found"].robust_accuracy == 1 - len(names["adversarial"]) / 60
    )
    assert (net(names["adversarial"]).argmax(1) != y[names["found"].outcome.success]).all()
    exec(attack, names)
    sizes = (names["x_adv"] - x).flatten(1).norm(dim=1)
    assert (sizes <= 0.5 + 1e-5).all() and sizes.max() > 0.4 and names["x_adv"].shape == x.shape
    assert torch.is_tensor(names["x_adv"])
    exec(bounds, names)
    prover, eps = names["prover"], 2 / 255
    holds = [prover.proof(x[i : i + 1], int(y[i]), eps).holds for i in range(len(x))]
    assert holds == ((x[:, 0, 0, 0] - 0.5).abs() > eps).tolist() and 0 < sum(holds) < len(x)
    exec(explanation, names)
    assert torch.allclose(names["maps"].attribution, x * (2 * y[:, None, None, None] - 1), atol=1e-5)


def test_the_modules_of_its_table_exist():
    rows = re.findall(r"(?m)^\| (`robustlib.*?) \| (.*) \|$", PAGE)
    assert len(rows) == 11
    for modules, contents in rows:
        first, *others = re.findall(r"`([\w.]+)`", modules)
        found = [
            importlib.import_module(name if name.startswith("robustlib") else f"robustlib.{name}")
            for name in (first, *others)
        ]
        for name in re.findall(r"`(\w+)`", contents):
            assert hasattr(found[0], name) or importlib.import_module(f"{first}.{name}"), (first, name)
