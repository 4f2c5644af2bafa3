"""Networks read as layers: the same answer, and what is refused by name."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import Normalize as TorchvisionNormalize

from robustlib.bounds.known_layers import UnknownLayer
from robustlib.bounds.traced_network import network_of
from robustlib.models.black_box import BlackBoxModel
from robustlib.models.convnet3 import ConvNet3
from robustlib.models.layers import Normalize
from robustlib.models.lenet5 import LeNet5
from robustlib.models.resnet import ResNet18


class Functions(nn.Module):
    """Layers called as functions, a sum of two, and a constant."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(2 * x - 0.5)
        x = torch.relu(x) + F.dropout(x, 0.5, training=self.training) / 3
        x = F.avg_pool2d(F.max_pool2d(x.relu(), kernel_size=3, stride=1, padding=1), 2)
        x += 1
        return self.fc(x.view(x.size(0), -1))


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        x *= 2
        return x


MODELS = {
    "lenet5": lambda: nn.Sequential(Normalize([0.5], [0.2]), LeNet5(3, image_size=(16, 16))),
    "convnet3": lambda: nn.Sequential(TorchvisionNormalize([0.5] * 3, [0.2] * 3), ConvNet3(3, image_size=(16, 16))),
    "resnet18": lambda: ResNet18(),
    "functions": Functions,
    "ends in nothing": lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 4), nn.Dropout(), nn.Identity()),
    "writes into its images": lambda: nn.Sequential(Centred(), nn.Flatten(), nn.Linear(768, 4)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "resnet18" else []) for name in MODELS]
)
def test_a_network_answers_as_its_model(name: str):
    torch.manual_seed(0)
    side = 8 if name == "functions" else 16
    model, x = MODELS[name]().eval(), torch.rand(4, 3, side, side)
    given = x.clone()
    network = network_of(model, x)
    assert torch.equal(x, given)
    assert torch.allclose(network(x), model(x.clone()), atol=1e-5)
    assert network.nodes[0].shape == (3, side, side) and network.nodes[-1].layer is not None


class Odd(nn.Conv2d):
    """A convolution that does something else besides."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).abs()


class Answer(nn.Module):
    """A function of images, as a model."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function
        self.register_buffer("column", torch.ones(48, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Outer(Answer):
    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)[:, None] + self.column  # pyright: ignore[reportOperatorIssue]


def relu(x: Tensor) -> Tensor:
    return x.clamp(0, 100)


torch.fx.wrap("relu")


def written_into(change: Callable[[Tensor], object]) -> Answer:
    """A model that writes into what it reads later. What is read has no images' answer that would tell."""

    def function(x: Tensor) -> Tensor:
        values = x.flatten(1) * 3
        change(values)
        return values

    return Answer(function)


REFUSED = {
    "Sigmoid 1": nn.Sequential(nn.Flatten(), nn.Sigmoid(), nn.Linear(48, 2)),
    "^abs$": nn.Sequential(Odd(3, 2, 3), nn.Flatten(), nn.Linear(8, 2)),
    "getitem": Outer(lambda x: x.flatten(1)),
    "sigmoid": Answer(lambda x: x.flatten(1).sigmoid()),
    "mul of two layers": Answer(lambda x: x.flatten(1) * x.flatten(1)),
    "a reshape that mixes examples": Answer(lambda x: x.reshape(-1, 3)),
    "sub from a constant": Answer(lambda x: 1 - x.flatten(1)),
    "add with other arguments": Answer(lambda x: torch.add(x.flatten(1), x.flatten(1), alpha=2)),
    "Conv2d with padding": nn.Sequential(nn.Conv2d(3, 2, 3, padding=1, padding_mode="reflect"), nn.Flatten()),
    "Linear on more than one dimension": nn.Sequential(nn.Linear(4, 2), nn.Flatten()),
    "MaxPool2d with indices": nn.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True), nn.Flatten()),
    "clamp_ writes into what is read later": written_into(lambda x: x.clamp_(max=100)),
    "relu_ writes into what is read later": written_into(lambda x: x.view(-1, 48).relu_()),
    "^clamp_$": written_into(lambda x: x.data.clamp_(max=100)),
    "a function relu that is not PyTorch's": Answer(lambda x: relu(x.flatten(1))),
    "adaptive pooling": nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten()),
    "statistics of its batch": nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten()),
}


@pytest.mark.parametrize("words", REFUSED)
def test_other_layers_are_refused_by_name(words: str):
    with pytest.raises(UnknownLayer, match=words):
        network_of(REFUSED[words].eval(), torch.rand(4, 3, 4, 4))


def test_a_layer_with_a_forward_of_its_own_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(48, 2))
    model[1].forward = lambda x: x.clamp(0, 100)
    with pytest.raises(UnknownLayer, match="1 with a forward of its own"):
        network_of(model, torch.rand(4, 3, 4, 4))


def test_a_model_with_a_forward_of_its_own_is_refused():
    """A trace follows its class's; what no sample tells of it an attacked image may."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    before = model.forward
    model.forward = lambda input: before(input.clamp(0.1, 0.9))
    with pytest.raises(UnknownLayer, match="the model has a forward of its own"):
        network_of(model, torch.full((2, 3, 2, 2), 0.5))


def test_a_model_that_asks_another_is_not_asked():
    asked = list[object]()
    model = BlackBoxModel(asked.append)
    with pytest.raises(UnknownLayer, match="asks a model"):
        network_of(nn.Sequential(Normalize([0.5], [0.2]), model), torch.rand(4, 1, 4, 4))
    assert not asked


def test_a_model_keeps_nothing_of_being_traced():
    class Keeps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.seen = x.flatten(1)
            return self.seen.sigmoid()

    model = Keeps()
    with pytest.raises(UnknownLayer, match="sigmoid"):
        network_of(model, torch.rand(4, 3, 4, 4))
    assert not hasattr(model, "seen")


def test_nothing_is_printed_where_a_trace_does_not_run(capfd: pytest.CaptureFixture[str]):
    with pytest.raises(RuntimeError, match="shape") as found:
        network_of(Answer(lambda x: x.view(99, -1)), torch.rand(4, 3, 4, 4))
    assert "tlparse" not in str(found.value) and capfd.readouterr() == ("", "")


def test_hooks_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    model[1].register_forward_hook(lambda module, args, output: output.abs())
    with pytest.raises(UnknownLayer, match="hooks"):
        network_of(model, torch.rand(4, 3, 4, 4))


def test_another_answer_than_its_layers_is_refused():
    # What tracing records of a call that looks at the mode is one of its two ways.
    class Mode(nn.Module):
        def __init__(self, *, other: float, far: float = 0.0):
            super().__init__()
            self.other, self.shift = other, nn.Parameter(torch.eye(48)[0] * far)

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) * (1 if isinstance(x, torch.fx.Proxy) else self.other) + self.shift

    x = torch.rand(4, 3, 4, 4)
    for other, far in ((1.5, 0.0), (1.01, -1e6)):  # the far one a class that is masked
        with pytest.raises(UnknownLayer, match="otherwise than its layers"):
            network_of(Mode(other=other, far=far), x)
    network_of(Mode(other=1, far=-1e6), x)
