"""The modes a model runs in are set for a block and put back, also when the block fails."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from robustlib.evaluation.evaluation import evaluate
from robustlib.inference import float32_switches, model_modes
from robustlib.inference.float32_switches import is_strict
from robustlib.inference.model_modes import as_images, autocast, evaluating, layout, strict_float32

CPU = torch.device("cpu")


def precisions() -> list[str]:
    if not float32_switches.FINE:
        return ["ieee" if is_strict() else "tf32"] * 2
    return [backend.fp32_precision for backend in (torch.backends.cuda.matmul, torch.backends.cudnn.conv)]  # pyright: ignore


def test_strict_float32_is_put_back():
    before = precisions()
    with pytest.raises(KeyError), strict_float32():
        assert precisions() == ["ieee", "ieee"]
        raise KeyError
    assert precisions() == before


def test_evaluating_puts_every_layer_back():
    dropout = nn.Dropout()
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(dropout, nn.BatchNorm1d(2))).train()
    dropout.eval()
    flags = [layer.training for layer in model.modules()]
    assert sorted(set(flags)) == [False, True]
    with pytest.raises(KeyError), evaluating(model):
        assert not any(layer.training for layer in model.modules())
        raise KeyError
    assert [layer.training for layer in model.modules()] == flags


def test_recurrent_layers_have_a_gradient_on_a_gpu_too(monkeypatch):
    """cuDNN takes one in training mode alone; here that they are then so is seen, and that they compute the same."""
    torch.manual_seed(0)
    lstm = nn.LSTM(4, 5, num_layers=2, dropout=0.5, batch_first=True)
    model, x = nn.Sequential(lstm, nn.Dropout()).train(), torch.rand(3, 6, 4)
    with evaluating(model):
        assert not lstm.training  # on a CPU
        expected = lstm(x)[0]
    monkeypatch.setattr(model_modes, "recurrent_on_gpu", lambda model: [lstm])
    for _ in range(2):
        with evaluating(model):
            assert lstm.training and not model[1].training
            assert torch.equal(lstm(x)[0], expected)
        assert (lstm.training, lstm.dropout) == (True, 0.5)


def test_auto_is_bfloat16_only_where_the_gpu_has_it(monkeypatch):
    """T4 and V100 compute it by emulation, which `is_bf16_supported` calls support."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True, raising=False)
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype, enabled: enabled)
    for major, has_it in ((7, False), (8, True), (9, True)):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, m=major: SimpleNamespace(major=m))
        assert autocast(torch.device("cuda"), "auto") is has_it
        assert autocast(torch.device("cuda"), "bfloat16") and not autocast(torch.device("cuda"), "float32")


def test_layout():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1))
    assert layout(model) == layout(nn.Linear(2, 2)) == torch.contiguous_format
    assert layout(model.to(memory_format=torch.channels_last)) == torch.channels_last  # pyright: ignore
    # A 1x1 kernel lies the same way in both, and says nothing.
    assert layout(nn.Conv2d(8, 8, 1).to(memory_format=torch.channels_last)) == torch.contiguous_format  # pyright: ignore


def test_as_images():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    images = as_images(levels, CPU)
    assert images.dtype == torch.float32
    assert images.flatten().tolist() == (torch.arange(256, dtype=torch.float32) / 255).tolist()
    assert torch.equal(levels.flatten(), torch.arange(256, dtype=torch.uint8))
    floats = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    assert torch.equal(as_images(floats, CPU), floats.float())
    last = as_images(floats, CPU, torch.channels_last)
    assert last.is_contiguous(memory_format=torch.channels_last) and torch.equal(last, floats.float())


@pytest.mark.parametrize("value", [1.0001, -0.0001, float("nan"), float("inf")])
def test_as_images_refuses_what_lies_outside(value: float):
    images = torch.full((1, 1, 2, 2), 0.5)
    images[0, 0, 0, 0] = value
    with pytest.raises(
        ValueError, match=r"^expected images in \[0, 1\], got values from .* to .*: leave normalisation"
    ):
        as_images(images, CPU)


@pytest.mark.parametrize(
    "precision, expected", [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_autocast_on_the_cpu(precision: str, expected: torch.dtype):
    with autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected


@pytest.mark.parametrize("device", ["mps", "xpu:0", "meta"])
def test_a_device_that_nothing_was_checked_on_is_refused(device):
    """Before anything is moved there: this PyTorch may not even have it."""
    told = f"expected the device cpu or cuda, got {device}: no number was ever checked on"
    with pytest.raises(ValueError, match=told):
        evaluate(nn.Flatten(), torch.rand(4, 1, 2, 2), torch.zeros(4, dtype=torch.long), ["clean"], device=device)
    with pytest.raises(ValueError, match=told):
        model_modes.moved(nn.Linear(1, 1), torch.device(device))


def test_so_is_a_build_for_rocm(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.2")
    with pytest.raises(
        ValueError, match=r"built for ROCm 6\.2, on which no number was ever checked: expected a build for CUDA"
    ):
        model_modes.check_device(torch.device("cuda"))
    model_modes.check_device(CPU)  # where it runs as any other
