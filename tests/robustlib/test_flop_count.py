"""Floating-point operations as torch's own counter has them, without its compiler."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from robustlib.flop_count import flops_of
from robustlib.models import network


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(1, 2)
        return self.part(rows, rows, rows, need_weights=False)[0] + nn.functional.softmax(rows @ rows.mT, 2) @ rows


# torch's own counter fails on inputs with gradients in inference mode.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "grad"),
    [("lenet5", True), ("lenet5", False), ("resnet18", False), ("attention", True), ("inference", False)],
)
def test_they_are_those_of_torchs_own_counter(name: str, grad: bool):
    shape = (2, 1, 8, 8) if name in ("lenet5", "attention") else (2, 3, 32, 32)
    arch = "lenet5" if name == "lenet5" else "resnet18"
    model = Attention() if name == "attention" else network(arch, shape[1], 10, shape[2:])
    x = torch.zeros(shape, requires_grad=grad)

    def call() -> torch.Tensor:
        with torch.inference_mode(name == "inference"):
            return model.eval()(x)

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    assert flops_of(call) == counter.get_total_flops() > 0


def test_of_a_layer_by_hand():
    x = torch.zeros(3, 2, 5, 5)
    assert flops_of(lambda: nn.Conv2d(2, 4, 3)(x)) == 2 * 3 * (3 * 3) * 4 * (2 * 3 * 3)
    assert flops_of(lambda: nn.Linear(50, 7)(x.flatten(1))) == 2 * 3 * 50 * 7
    assert flops_of(lambda: x.relu() + 1) == 0


@pytest.mark.slow
def test_the_compiler_is_not_loaded():
    code = (
        "import sys, torch\nfrom robustlib.flop_count import flops_of\n"
        "flops_of(lambda: torch.nn.Linear(2, 3)(torch.zeros(1, 2)))\nassert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
