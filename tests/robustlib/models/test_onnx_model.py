"""ONNX programs as models: their answers to the bit, whatever they take, and gradients that a network lends."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper
from torch import nn

from robustlib.checks.gradient_checks import backward_pass
from robustlib.evaluation import evaluate
from robustlib.inference.gradients import pull
from robustlib.models import build, is_black_box
from robustlib.models.onnx_model import WithGradients, onnx_model
from tests.helpers.onnx_programs import linear_program, program

IMAGE = (1, 4, 4)
FACTS: dict = {"num_classes": 3, "in_channels": 1, "image_size": (4, 4)}


@pytest.fixture
def weight() -> np.ndarray:
    return np.random.default_rng(0).integers(-8, 8, (16, 3)).astype(np.float32)


BIAS = np.array([1.0, -2.0, 0.5], np.float32)


def images(n: int) -> torch.Tensor:
    """Multiples of 1/8, so that every sum is exact."""
    return torch.from_numpy(np.random.default_rng(n).integers(0, 9, (n, *IMAGE)) / 8).float()


def expected(x: torch.Tensor, weight: np.ndarray) -> np.ndarray:
    return x.numpy().reshape(len(x), -1) @ weight + BIAS


@pytest.mark.parametrize("batch", ["batch", 1, 4])
@pytest.mark.parametrize("n", [1, 4, 7])
def test_its_answers_are_the_programs(weight: np.ndarray, batch: int | str, n: int):
    model = onnx_model(linear_program(weight, BIAS, IMAGE, batch=batch), "m.onnx", **FACTS)
    assert np.array_equal(model(images(n)).numpy(), expected(images(n), weight))


def test_images_the_other_way_round(weight: np.ndarray):
    """One channel has the same pixels in both layouts, but not in the same shape."""
    data = linear_program(weight, BIAS, (4, 4, 1))
    model = onnx_model(data, "m.onnx", **FACTS, layout="HWC")
    assert np.array_equal(model(images(3)).numpy(), expected(images(3), weight))
    with pytest.raises(ValueError, match=r"m.onnx takes images of shape \(4, 4, 1\), the data set has \(1, 4, 4\)"):
        onnx_model(data, "m.onnx", **FACTS)


def test_probabilities_become_logarithms(weight: np.ndarray):
    data = linear_program(weight, BIAS, IMAGE, last="Softmax")
    found = onnx_model(data, "m.onnx", **FACTS)(images(5))
    assert torch.allclose(
        found, torch.from_numpy(expected(images(5), weight)).log_softmax(1).clamp_min(-27.64), atol=1e-4
    )


def test_several_may_ask_copies_of_it(weight: np.ndarray):
    model = onnx_model(linear_program(weight, BIAS, IMAGE), "m.onnx", **FACTS)
    assert np.array_equal(copy.deepcopy(model)(images(2)).numpy(), expected(images(2), weight))


def test_a_file_is_a_model_by_its_place(tmp_path: Path, weight: np.ndarray):
    (tmp_path / "m.onnx").write_bytes(linear_program(weight, BIAS, IMAGE))
    model = build(file=str(tmp_path / "m.onnx"), **FACTS)
    assert is_black_box(model) and np.array_equal(model(images(2)).numpy(), expected(images(2), weight))
    shifted = build(file=str(tmp_path / "m.onnx"), normalize=([0.5], [0.25]), **FACTS)
    assert np.array_equal(shifted(images(2)).numpy(), expected((images(2) - 0.5) / 0.25, weight))
    for options, line in (
        ({"layout": "NCHW"}, "expected layout CHW or HWC, got 'NCHW'"),
        ({"place": "x"}, "is the file: expected no option 'place'"),
        ({"threads": 2}, "has no option 'threads'"),
    ):
        with pytest.raises(ValueError, match=line):
            build(file=str(tmp_path / "m.onnx"), options=options, **FACTS)


def test_what_is_no_such_program_is_refused(weight: np.ndarray):
    two = [helper.make_node("Add", ["images", "images"], ["logits"])]
    for data, line in (
        (b"\x00pickle", "m.onnx is no ONNX program"),
        (linear_program(weight, BIAS, IMAGE, external="secret.bin"), "m.onnx keeps numbers in other files"),
        (
            linear_program(weight, BIAS, (3, 4, 4)),
            "m.onnx is no ONNX program that onnxruntime runs|takes images of shape",
        ),
        (program(two, [], ["b", 3], ["b", 3]), r"from one batch of images to one batch of rows, got \[\['b', 3\]\]"),
        (program([], [], ["b", 1, 4, 4], ["b", 3]), "m.onnx is no ONNX program that onnxruntime runs"),
    ):
        with pytest.raises(ValueError, match=line) as error:
            onnx_model(data, "m.onnx", **FACTS)
        assert "\n" not in str(error.value)


def test_numbers_in_a_branch_may_lie_nowhere_else(weight: np.ndarray):
    """At any depth of a program: also in a graph within a node."""
    inner = helper.make_graph([], "inner", [], [helper.make_tensor_value_info("w", 1, [16, 3])])
    outer = linear_program(weight, BIAS, IMAGE, external="/etc/hostname")
    import onnx

    inner.initializer.append(onnx.load_model_from_string(outer).graph.initializer[0])
    node = helper.make_node("If", ["c"], ["logits"], then_branch=inner, else_branch=inner)
    with pytest.raises(ValueError, match="keeps numbers in other files"):
        onnx_model(program([node], [], ["b", *IMAGE], ["b", 3]), "m.onnx", **FACTS)


def network(weight: np.ndarray) -> nn.Module:
    last = nn.Linear(16, 3)
    with torch.no_grad():
        last.weight.copy_(torch.from_numpy(weight.T))
        last.bias.copy_(torch.from_numpy(BIAS))
    return nn.Sequential(nn.Flatten(), last).eval()


def test_the_gradient_is_the_networks(weight: np.ndarray):
    """Of a program that rounds, as one in 8 bits does, whose own gradient would be zero everywhere."""
    rounds = onnx_model(linear_program(weight, BIAS, IMAGE, last="Round"), "m.onnx", **FACTS)
    model, net, x = WithGradients(rounds, network(weight)), network(weight), images(6) + 0.01
    logits, _, found = pull(model, x, lambda z: z[:, :1].square())
    assert torch.equal(logits, rounds(x)) and not torch.equal(logits, net(x))
    own = torch.from_numpy(weight[:, 0]).reshape(1, 1, *IMAGE) * 2 * logits[:, 0].reshape(-1, 1, 1, 1, 1)
    assert torch.allclose(found, own)
    assert torch.equal(model(x), rounds(x)) and not list(filter(lambda p: p.requires_grad, model.parameters()))
    assert not is_black_box(model)


def test_in_float64_the_network_answers(weight: np.ndarray):
    """Whose gradient is the slope of what it says: in float32 the program's rounding would be taken for a lie."""
    model = WithGradients(onnx_model(linear_program(weight, BIAS, IMAGE), "m.onnx", **FACTS), network(weight))
    x, y = images(6) * 0.5 + 0.1, torch.zeros(6, dtype=torch.long)
    found = backward_pass(model, x, y, torch.arange(6), norm="Linf")
    assert found.verdict == "pass" and found.value == 0
    assert torch.equal(copy.deepcopy(model).double()(x.double()), network(weight).double()(x.double()))


def test_an_attack_comes_to_the_exact_boundary(weight: np.ndarray):
    """Of a linear program each image's distance is known: PGD with lent gradients finds all within, and none beyond."""
    weight = weight / 16
    program_ = onnx_model(linear_program(weight, BIAS, IMAGE), "m.onnx", **FACTS)
    x = images(40) * 0.5 + 0.25
    logits = torch.from_numpy(expected(x, weight))
    y = logits.argmax(1)
    gaps = logits.gather(1, y[:, None]) - logits
    slopes = torch.from_numpy(np.abs(weight.T[y][:, None] - weight.T[None])).sum(2)
    distance = (gaps / slopes).nan_to_num(torch.inf).min(1).values
    eps = float(distance.median())
    clear = (distance / eps - 1).abs() > 0.02  # not at the radius itself, where rounding decides
    found = evaluate(WithGradients(program_, network(weight)), x, y, ["pgd"], eps=eps)
    assert eps < 0.25 and torch.equal(torch.from_numpy(found.outcome.success)[clear], (distance < eps)[clear])
