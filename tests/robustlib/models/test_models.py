"""Networks by name, the layers put around them, and the recorded accuracy of a published network."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustlib.datasets import load
from robustlib.inference.expectation import Expectation, is_randomised
from robustlib.models import MODELS, build, network
from robustlib.models.layers import Normalize
from robustlib.models.loading import check_options
from robustlib.models.randomised import InferenceDropout, dropout_at_inference

SIZES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 32, 48)]


def facts(channels: int, height: int, width: int, classes: int = 7) -> dict:
    return {"in_channels": channels, "num_classes": classes, "image_size": (height, width)}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("arch", MODELS)
def test_every_network_takes_every_size(arch: str, shape: tuple[int, int, int]):
    model = build(arch=arch, **facts(*shape))
    assert not model.training
    with torch.no_grad():
        logits = model(torch.rand(2, *shape))
    assert logits.shape == (2, 7) and logits.isfinite().all()


@pytest.mark.parametrize(
    "arch, shape, name, expected",
    [
        # LeCun et al. 1998: 16 maps of 5x5 go into 120 units.
        ("lenet5", (3, 32, 32), "conv1.weight", (6, 3, 5, 5)),
        ("lenet5", (3, 32, 32), "conv2.weight", (16, 6, 5, 5)),
        ("lenet5", (3, 32, 32), "fc1.weight", (120, 400)),
        ("lenet5", (1, 28, 28), "fc1.weight", (120, 400)),
        ("lenet5", (3, 32, 32), "fc2.weight", (84, 120)),
        ("convnet3", (3, 32, 32), "features.2.0.weight", (128, 64, 3, 3)),
        ("convnet3", (3, 32, 32), "fc1.weight", (512, 2048)),
        ("convnet3", (1, 28, 28), "fc1.weight", (512, 1152)),
        ("resnet18", (3, 32, 32), "conv1.weight", (64, 3, 3, 3)),
        ("resnet18", (3, 32, 32), "layer4.0.shortcut.0.weight", (512, 256, 1, 1)),
        ("resnet18", (3, 32, 32), "linear.weight", (7, 512)),
    ],
)
def test_parameter_shapes(arch: str, shape: tuple[int, int, int], name: str, expected: tuple[int, ...]):
    assert network(arch, **facts(*shape)).state_dict()[name].shape == expected


@pytest.mark.parametrize(
    "arch, count",
    [
        # Counted by hand for 10 classes: 5x5x3x6+6, 5x5x6x16+16, 400x120+120, 120x84+84, 84x10+10.
        ("lenet5", 456 + 2416 + 48120 + 10164 + 850),
        # Three 3x3 convolutions without bias, their BatchNorms, 2048x512+512, 512x10+10.
        ("convnet3", 864 + 18432 + 73728 + 2 * (32 + 64 + 128) + 1049088 + 5130),
        ("resnet18", 11173962),  # of kuangliu/pytorch-cifar's ResNet-18, whose stem this is
    ],
)
def test_parameter_counts(arch: str, count: int):
    assert sum(p.numel() for p in network(arch, **facts(3, 32, 32, 10)).parameters()) == count


@pytest.mark.parametrize("arch, least", [("convnet3", "8x8"), ("lenet5", "4x4")])
def test_images_too_small(arch: str, least: str):
    with pytest.raises(ValueError, match=rf"^{arch} expects images of at least {least} pixels, got 9x3$"):
        network(arch, **facts(1, 9, 3))


def test_normalize_is_the_first_layer():
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.25, 2.0)
    x = torch.rand(4, 3, 5, 6)
    expected = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    torch.testing.assert_close(Normalize(mean, std)(x), expected)
    model = build(arch="lenet5", normalize=(mean, std), **facts(3, 32, 32))
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(x), model.get_submodule("net")(Normalize(mean, std)(x)))
    plain = build(arch="lenet5", **facts(3, 32, 32))
    assert torch.equal(plain(x), plain.get_submodule("net")(x))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["lenet5", "convnet3"])
def test_dropout_at_inference_makes_a_randomised_model(arch: str):
    x = torch.rand(8, 3, 32, 32)
    assert not is_randomised(build(arch=arch, **facts(3, 32, 32), options={"dropout": 0.5}), x)
    model = build(arch=arch, **facts(3, 32, 32), dropout=0.5)
    assert not model.training and is_randomised(model, x)


def test_inference_dropout_drops_and_rescales():
    out = InferenceDropout(0.3).eval()(torch.ones(100, 1000))
    assert (out == 0).double().mean().item() == pytest.approx(0.3, abs=0.01)
    assert out[out != 0].allclose(torch.tensor(1 / 0.7))


def test_dropout_at_inference_refuses():
    with pytest.raises(
        ValueError, match=r"^dropout_at_inference needs a model with dropout layers, this one has none$"
    ):
        build(arch="resnet18", dropout=0.5, **facts(3, 32, 32))
    for p in (0.0, 1.0):
        with pytest.raises(ValueError, match=rf"^expected dropout_at_inference between 0 and 1, got {p}$"):
            dropout_at_inference(nn.Sequential(nn.Dropout(0.1)), p=p)


def test_dropout_at_inference_reaches_a_layer_under_each_of_its_names():
    """One nn.Dropout is often used twice, and modules() lists it once."""
    shared = nn.Dropout(0.5)
    model = dropout_at_inference(nn.Sequential(shared, nn.Linear(3, 3), shared), p=0.2)
    assert [type(layer) for layer in model.children()] == [InferenceDropout, nn.Linear, InferenceDropout]


def test_expectation_averages_over_draws():
    class Counter(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * self.calls

    model = Counter()
    assert Expectation(model, 4)(torch.ones(2, 3)).tolist() == [[2.5] * 3] * 2  # (1 + 2 + 3 + 4) / 4
    assert is_randomised(model, torch.ones(2, 3))
    assert not is_randomised(nn.Identity(), torch.ones(2, 3))


def test_unknown_networks():
    known = "lenet5, convnet3, resnet18, torchvision:NAME"
    with pytest.raises(
        ValueError, match=rf"^unknown arch 'lenet6', expected one of: {known}: did you mean 'lenet5'\?$"
    ):
        build(arch="lenet6", **facts(1, 8, 8))
    with pytest.raises(ValueError, match=r"^expected a model by arch or by file, got neither$"):
        build(**facts(1, 8, 8))


def test_torchvision_networks():
    model = build(arch="torchvision:resnet18", **facts(3, 32, 32))
    with torch.no_grad():
        assert model(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    assert model.state_dict()["net.conv1.weight"].shape == (64, 3, 7, 7)
    with pytest.raises(ValueError, match=r"^torchvision has no model 'resnet19'; `robustq list models --torchvision`"):
        build(arch="torchvision:resnet19", **facts(3, 32, 32))
    with pytest.raises(ValueError, match=r"^torchvision's models expect 3 channels, got images with 1$"):
        build(arch="torchvision:resnet18", **facts(1, 32, 32))


# 40 s on two cores, of the twenty minutes that all tests may take.
ALL_IMAGES = pytest.mark.skipif("ROBUSTQ_LONG" not in os.environ, reason="long: set ROBUSTQ_LONG")


@pytest.mark.data
@pytest.mark.parametrize(
    "examples, accuracy",
    [
        # Recorded with the weights: 73.4 % of all test images, 73.1 % of the first thousand.
        pytest.param(1000, 0.731, id="1000"),
        pytest.param(10000, 0.734, id="10000", marks=[pytest.mark.slow, pytest.mark.timeout(900), ALL_IMAGES]),
    ],
)
def test_the_published_resnet18_has_its_recorded_accuracy(examples: int, accuracy: float, real_data: Path, request):
    weights, images = real_data / "models" / "resnet18-pgd2at-linf8.safetensors", real_data / "data" / "cifar10"
    test = load.load(f"parquet:{images}", "test")
    assert test.x.shape == (10000, 3, 32, 32) and len(test.names) == 10
    model = build(arch="resnet18", weights=weights, **facts(3, 32, 32, 10))
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    x, y = torch.from_numpy(test.x[:examples]), torch.from_numpy(test.y[:examples])
    right, before = 0, torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)  # unlike the small networks, this one gains by it
    request.addfinalizer(lambda: torch.set_num_threads(before))
    with torch.no_grad():
        for batch, labels in zip(x.split(250), y.split(250), strict=True):
            images = (batch.float() / 255).contiguous(memory_format=torch.channels_last)
            right += int((model(images).argmax(1) == labels).sum())
    assert right / examples == pytest.approx(accuracy, abs=0.0005 if examples == 10000 else 1e-9)


def numbered(steps: int, width=3, rate: "float | None" = None, flag: bool = False, either: int | bool = 1, free=None):
    return nn.Identity()


@pytest.mark.parametrize("name", ["steps", "width", "rate"])
def test_a_boolean_is_no_number_among_options(name: str):
    with pytest.raises(ValueError, match=f"^m: expected a number for the option '{name}', got true$"):
        check_options("m", numbered, {name: True})


def test_a_whole_number_written_otherwise_is_one_where_one_is_meant():
    """YAML reads 1e1 as 10.0, which nn.Linear refuses. What may be something else stays as it was written."""
    given = {"steps": 1e1, "width": 2.0, "rate": 1e1, "flag": 1.0, "either": 1e1, "free": 1e1}
    found = check_options("m", numbered, given)
    assert found == given and [name for name, value in found.items() if type(value) is int] == ["steps", "width"]
    assert check_options("m", numbered, {"steps": 1.5, "width": 3}) == {"steps": 1.5, "width": 3}


def test_a_users_factory_gets_whole_numbers(tmp_path: Path):
    (tmp_path / "m.py").write_text(
        "from torch import nn\ndef build(width: int, deep=1):\n"
        "    return nn.Sequential(nn.Flatten(), *[nn.Linear(64, width)] * deep)\n"
    )
    model = build(file=f"{tmp_path}/m.py:build", options={"width": 1e1, "deep": 1.0}, **facts(1, 8, 8, 10))
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_a_boolean_may_be_what_takes_one():
    check_options("m", numbered, {"flag": True, "either": False, "free": True, "width": 4, "rate": 0.5})
