"""Networks as programs: the same logits at any batch, nothing of the machine in them, and 8 bits that are near."""

import copy
import io
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustlib.attacks import ATTACKS
from robustlib.evaluation import evaluate
from robustlib.export import comparison
from robustlib.export.latency import latencies
from robustlib.export.programs import Programs, export_programs
from robustlib.export.quantisation import quantised
from robustlib.export.square_attack import attack_program
from robustlib.models import build
from robustlib.models.onnx_model import onnx_model
from robustlib.packages.onnx_session import OnnxSession
from tests.helpers.wrapped import WRAPPERS, Wrap, network

pytestmark = pytest.mark.slow  # programs are exported

FACTS: dict = {"num_classes": 3, "in_channels": 1, "image_size": (8, 8)}


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8)).astype(np.uint8))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    made = build(arch="lenet5", normalize=([0.3], [0.4]), **FACTS)
    with torch.no_grad():
        for weight in made.parameters():
            weight *= 2 if weight.ndim > 1 else 0  # so that it has more than one answer
    return made.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


@pytest.fixture(scope="module")
def programs(model: nn.Module, x: torch.Tensor) -> Programs:
    return export_programs(model, x[:2].float() / 255, ["a", "b", "c"])


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_the_program_gives_the_networks_logits(programs: Programs, model: nn.Module, x: torch.Tensor, n: int):
    found = comparison.compare(model, OnnxSession(programs.onnx, "model.onnx"), x[:n])
    assert found.difference <= 0.1 * comparison.tolerance(found.network) and len(found.differing) == 0
    assert found.network.shape == (n, 3) and np.abs(found.network).max() > 1e-3


def test_the_other_program_is_the_network_to_the_bit(programs: Programs, model: nn.Module, x: torch.Tensor):
    loaded = torch.export.load(io.BytesIO(programs.pt2)).module()
    usual = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    for n in (1, 2, 7):
        images = x[:n].float() / 255
        assert torch.equal(loaded(images), usual(images))


def test_a_model_is_exported_after_another_was_compiled_too_often(
    programs: Programs, model: nn.Module, x: torch.Tensor
):
    """PyTorch 2.6 fails there with an AssertionError, unless it is told not to be strict."""
    images = x[:2].float() / 255
    compiled = torch.compile(nn.Flatten(), backend="eager")
    try:
        with torch._dynamo.config.patch(cache_size_limit=1):
            compiled(images)
            with torch.no_grad():
                compiled(images)  # a second time, for another mode: over the limit
        assert export_programs(model, images, ["a", "b", "c"]).onnx == programs.onnx
    finally:
        torch._dynamo.reset()


def test_nothing_in_them_tells_of_this_machine(programs: Programs):
    for data in (programs.onnx, programs.pt2):
        assert b"site-packages" not in data and b"robustlib" not in data.replace(b"robustlib.", b"")
    session = OnnxSession(programs.onnx, "model.onnx")
    assert session.class_names() == ["a", "b", "c"] and session.image == (1, 8, 8) and session.batch is None
    assert programs.parameters == sum(p.numel() for p in build(arch="lenet5", **FACTS).parameters())


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_has_the_networks_logits(x: torch.Tensor, affine: bool):
    """PyTorch 2.6 refused it with today's onnxscript."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, affine=affine)
    for values in (norm.running_mean, norm.running_var, *norm.parameters()):
        assert values is not None
        nn.init.uniform_(values, 0.5, 2)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    found = comparison.compare(net, OnnxSession(export_programs(net, x[:2].float() / 255).onnx, "model.onnx"), x)
    assert found.difference <= 0.1 * comparison.tolerance(found.network) and len(found.differing) == 0


def test_eight_bits_are_near_and_not_the_same(programs: Programs, model: nn.Module, x: torch.Tensor):
    data = quantised(programs.onnx, x[:32].numpy().astype(np.float32) / 255, "images")
    found = comparison.compare(model, OnnxSession(data, "model.int8.onnx"), x)
    spread = np.ptp(found.network)
    assert comparison.tolerance(found.network) < found.difference < 0.2 * spread and len(data) < len(programs.onnx) / 2


def test_another_network_is_told_by_its_logits(programs: Programs, x: torch.Tensor):
    torch.manual_seed(0)
    lost = build(arch="lenet5", **FACTS)  # the same weights, its normalisation lost
    found = comparison.compare(lost, OnnxSession(programs.onnx, "model.onnx"), x)
    assert found.difference > 10 * comparison.tolerance(found.network)


def test_square_on_the_program_is_square_on_the_network(programs: Programs, model: nn.Module, x: torch.Tensor):
    """The same draws: each image belongs to its place, whatever runs."""
    y = model(x.float() / 255).argmax(1)
    rows = torch.arange(3, 23)
    how: dict = {"norm": "Linf", "eps": 0.05, "queries": 60, "seed": 4, "index": rows, "num_classes": 3}
    found = attack_program(onnx_model(programs.onnx, "m.onnx", **FACTS), x, y, **how)
    whole = evaluate(model, x, y, [partial(ATTACKS["square"], queries=60)], eps=0.05, seed=4)
    assert 0 < found.success.sum() < 20 and found.index.tolist() == rows.tolist()
    assert found.success.tolist() == whole.outcome.success[3:23].tolist()


@pytest.mark.parametrize(
    ("network", "program", "n", "lost"),
    [(0.5, 0.48, 100, 0.02), (0.5, 0.49, 100, 0), (0.5, 0.6, 100, 0), (1, 0.9, 10, 0), (1, 0.8, 10, 0.2)],
)
def test_one_image_is_chance(network: float, program: float, n: int, lost: float):
    assert comparison.accuracy_lost(network, program, n) == pytest.approx(lost)


def test_differences_and_margins():
    a, b = np.array([[1.0, 3.0, 2.0]], np.float32), np.array([[1.0, np.nan, 2.0]], np.float32)
    assert comparison.margins(a) == 1.0 and comparison.largest_difference(a, a - 0.25) == 0.25
    assert comparison.largest_difference(a, b) == np.inf == comparison.largest_difference(a, a[:, :2])
    assert comparison.tolerance(-a) == pytest.approx(3e-4)


def test_latency_is_that_of_the_calls():
    calls: list[int] = []
    found = latencies(lambda x: calls.append(len(x)), np.zeros((3, 1, 2, 2), np.float32), seconds=0.0)
    assert [one.batch for one in found] == [1, 32] and calls == [1] * 25 + [32] * 25
    assert all(0 <= one.p50 <= one.p99 and one.runs == 20 for one in found)


@pytest.fixture(scope="module")
def bare_onnx() -> bytes:
    return export_programs(network(), torch.zeros(2, 1, 4, 4)).onnx


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=list(WRAPPERS))
def test_what_pytorch_wraps_is_exported_as_it_is_without(wrap: Wrap, bare_onnx: bytes):
    """The same bytes, since only what is inside is in the program; also of a model that was called before."""
    x, model = torch.rand(2, 1, 4, 4), wrap(network())
    model(x)
    try:
        assert export_programs(model, x).onnx == bare_onnx
    finally:
        torch._dynamo.reset()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


class Handing(nn.Module):
    """A wrapper as people write them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return self.net(*args)


def test_a_forward_of_any_arguments_is_exported():
    x = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    net = Handing().eval()
    found = comparison.compare(net, OnnxSession(export_programs(net, x[:2]).onnx, "model.onnx"), x)
    assert found.difference <= 0.1 * comparison.tolerance(found.network)


@pytest.mark.filterwarnings("ignore:`torch.jit")  # that it is deprecated
def test_torchscript_is_refused_in_one_line():
    x = torch.rand(2, 1, 4, 4)
    parts: list[Any] = [torch.jit.script(network()), torch.jit.trace(network(), x)]
    for part in parts:
        for model, which in ((part, "it"), (nn.Sequential(nn.Identity(), part), "its layer '1'")):
            with pytest.raises(ValueError, match=rf"^the model cannot be exported by torch.export: {which} is TorchSc"):
                export_programs(model, x)


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) if float(x.sum()) > 0 else -x.flatten(1)


def test_what_cannot_be_exported_is_refused_in_one_line(x: torch.Tensor):
    with pytest.raises(ValueError, match=r"the model cannot be exported by torch.export: \w+") as error:
        export_programs(Branching(), x[:2].float() / 255)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="expected two images to export by, got 1"):
        export_programs(Branching(), x[:1].float() / 255)
