"""ONNX programs as models: they answer through ONNX Runtime, and have a gradient only where a network lends its own."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustlib.model_calls import Careful, ask
from robustlib.models.black_box import BlackBoxModel
from robustlib.packages.onnx_session import OnnxSession

SUFFIX = ".onnx"


def onnx_model(
    data: bytes,
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    layout: Literal["CHW", "HWC"] = "CHW",
) -> BlackBoxModel:
    """An ONNX program that takes images, float32 in [0, 1], and gives logits, probabilities or labels.

    data: the file's bytes.  name: what it is called in errors.  layout: of its images, "CHW" or "HWC".
    One thread computes a call; several may ask at once. Raises ValueError for what is no such program.
    """
    if layout not in ("CHW", "HWC"):
        raise ValueError(f"{name}: expected layout CHW or HWC, got {layout!r}")
    session = OnnxSession(data, name, layout=layout)
    session.check_images((in_channels, *image_size))
    model = BlackBoxModel(AsArrays(session), num_classes)
    model.call_lock = nullcontext()  # whom several may ask at once
    return model


def onnx_file(
    place: str, *, num_classes: int, in_channels: int, image_size: tuple[int, int], layout: Any = "CHW"
) -> BlackBoxModel:
    """`onnx_model` of a file. Raises FileNotFoundError where there is none."""
    path = Path(place)
    if not path.is_file():
        raise FileNotFoundError(f"no model file {place}")
    facts: Any = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    return onnx_model(path.read_bytes(), path.name, **facts, layout=layout)


class AsArrays:
    """A session that is asked with tensors."""

    def __init__(self, session: OnnxSession):
        self.session = session

    def __call__(self, x: Tensor) -> Any:
        return self.session(x.numpy())


class Exchanged(torch.autograd.Function):
    """The answer of one network with the gradient of another's."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, answer: Tensor) -> Tensor:
        return answer.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class WithGradients(Careful, nn.Module):
    """A program that only answers, with the gradient of the network that it was made from.

    Every answer is the program's, to the bit; autograd goes through the network instead, as through the identity. To
    images in float64, in which checks look at slopes and the program does not compute, the network answers.
    """

    def __init__(self, program: BlackBoxModel, network: nn.Module):
        super().__init__()
        # No layer of this one: what looks for black boxes, which have no gradient, must not find one.
        self.answers = (program,)
        self.network = network.requires_grad_(False)  # it is not to be trained
        self.call_lock = program.call_lock  # no fork asks the runtime: see robustlib/inference/threads.py

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            return ask(self.network, x)
        (program,) = self.answers
        logits = program(x)
        if not torch.is_grad_enabled() or not x.requires_grad:
            return logits
        own = ask(self.network, x)
        if own.shape != logits.shape:
            raise ValueError(f"the program gives logits of shape {tuple(logits.shape)}, its network {tuple(own.shape)}")
        return Exchanged.apply(own, logits.to(own.dtype))  # pyright: ignore[reportReturnType]
