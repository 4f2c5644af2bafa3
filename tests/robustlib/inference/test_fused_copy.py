"""The fused copy on a GPU, played on a CPU: when attacks search on it, and what is said where they do not."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks import ATTACKS
from robustlib.evaluation.batches import Ready, evaluate_batches
from robustlib.inference import cudnn_layers, fast_copy
from robustlib.inference.cudnn_layers import ConvRelu
from robustlib.inference.fast_copy import make_replicas, search_replica
from tests.helpers.fake_cuda import install


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(8 * 64, 5)).eval()


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forms of a GPU, in bfloat16, which a CPU computes too, at two batch sizes."""
    install(monkeypatch)

    class Sample(Tensor):
        is_cuda = True

    forms = fast_copy.forms
    monkeypatch.setattr(fast_copy, "suits_half", lambda model, device: True)
    monkeypatch.setattr(fast_copy, "batch_sizes", lambda x, dtype=torch.float32: (8, 32))
    monkeypatch.setattr(fast_copy, "forms", lambda net, x, dtypes: forms(net, x.as_subclass(Sample), dtypes))


def test_a_gpu_searches_on_the_fused_form(on_cuda: None, net: nn.Module):
    x = torch.rand(64, 3, 8, 8)
    replicas = make_replicas(net, x)
    assert replicas.search.mode == "bfloat16, fused, channels-last, graphs"
    assert replicas.fine.mode == "float32, folded, channels-last, graphs"
    assert (replicas.search(x).argmax(1) == net(x).argmax(1)).float().mean() > 0.95


def test_where_cudnn_refuses_the_folded_form_is_used_and_that_is_said(
    on_cuda: None, net: nn.Module, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: Any) -> Tensor:
        raise RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED\nat a line of its own")

    monkeypatch.setattr(cudnn_layers, "ordinary_calls", refuse)
    assert make_replicas(net, torch.rand(64, 3, 8, 8)).search.mode == (
        "bfloat16, folded, channels-last, graphs (given up: bfloat16, fused, channels-last, graphs: "
        "RuntimeError (cuDNN error: CUDNN_STATUS_NOT_SUPPORTED))"
    )


def test_a_fused_form_that_computes_something_else_is_not_used(
    on_cuda: None, net: nn.Module, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cudnn_layers, "input_gradient", lambda g, x, w, how: torch.zeros_like(x) - 1)
    mode = make_replicas(net, torch.rand(64, 3, 8, 8)).search.mode
    assert mode.startswith("bfloat16, folded") and mode.endswith("fused, channels-last, graphs: other gradients)")


def test_a_network_without_such_convolutions_has_no_fused_form(on_cuda: None):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    assert make_replicas(net, torch.rand(64, 3, 2, 2)).search.mode == "bfloat16, folded, graphs"


def test_a_cpu_does_not_use_it(net: nn.Module):
    x = torch.rand(64, 3, 8, 8)
    for half in (True, False):
        replicas = make_replicas(net, x, half=half)
        assert "fused" not in replicas.search.mode
        assert not any(isinstance(layer, ConvRelu) for layer in replicas.search.modules())


class Cancels(nn.Module):
    """Like `benchmarks.hard_nets.Steep`, in convolutions: beyond float16's range it subtracts infinity from itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 2, 4, bias=False), nn.Conv2d(2, 2, 1)
        twice = torch.tensor([[-1.5, 0.5], [1.5, -0.5]]).reshape(2, 2, 1, 1) / 6e4
        values = (torch.tensor(2500.0), twice, torch.tensor([1.12, -1.12]))
        for parameter, value in zip(self.parameters(), values, strict=True):
            parameter.data.copy_(value)

    def forward(self, x: Tensor) -> Tensor:
        u, v = self.b(self.a(x).relu()).relu().flatten(1).split(1, 1)
        return torch.cat([u - v + 0.01, v - u], 1)


@pytest.mark.slow
@pytest.mark.parametrize("keeps_nan", [True, False])
@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "square"])
def test_a_relu_that_makes_zeros_of_nan_hides_no_image(name: str, keeps_nan: bool, monkeypatch: pytest.MonkeyPatch):
    """Of cuDNN's it is not known."""

    def one_call(*given: Any) -> Tensor:
        found = plain(*given)
        return found if keeps_nan else found.nan_to_num(0.0, posinf=torch.inf)

    plain = cudnn_layers.ordinary_calls
    monkeypatch.setattr(cudnn_layers, "ordinary_calls", one_call)

    def forms(net: nn.Module, x: Tensor, dtypes: list[torch.dtype]) -> list[Any]:
        makers = {torch.float16: fast_copy.fused, torch.float32: fast_copy.folded}
        return [partial(search_replica, makers[dtype], net, dtype, (64,), False) for dtype in dtypes]

    monkeypatch.setattr(fast_copy, "forms", forms)
    monkeypatch.setattr(fast_copy, "halves", lambda device: [torch.float16])
    torch.manual_seed(0)
    net, x = Cancels().eval(), (0.5 + 0.01 * torch.randn(64, 3, 4, 4)).clamp(0, 1)
    y = torch.zeros(64, dtype=torch.long)
    assert torch.equal(net(x).argmax(1), y) and (net(x + 0.1).argmax(1) == 1).all()
    replicas = make_replicas(net, x, half=True)
    assert replicas.search.mode == "float16, fused, channels-last"
    wrong = replicas.search.but(spare=None)(x + 0.1)
    assert wrong.isnan().all() if keeps_nan else (wrong.isfinite().all() and (wrong.argmax(1) == 0).all())
    options = {"square": {"queries": 200}, "pgd": {"random_start": False}}.get(name, {})
    attack = partial(ATTACKS[name], eps=0.1, **options)
    ready = Ready(net, replicas, 2, 0.0)
    (batch,) = evaluate_batches(net, x, y, [(name, attack)], eps=0.1, ready=ready)
    assert batch.outcome.success.all()
