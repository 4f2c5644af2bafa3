"""The modes a model runs in: arithmetic, memory layout, training or evaluation."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from robustlib.datasets.lazy_images import ImageSet
from robustlib.inference.float32_switches import SWITCHES
from robustlib.memory import out_of_memory
from robustlib.number_text import distinct

Step = TypeVar("Step")
NOTHING = nullcontext()


class strict_float32:
    """Float32 that is float32: no TF32 in convolutions, matrix products or recurrent layers, by which peers judge
    without saying so, and no autocast around it.
    """

    def __enter__(self) -> None:
        SWITCHES.hold()
        self.autocast = no_autocast()
        self.autocast.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.autocast.__exit__(*error)
        SWITCHES.release()


def no_autocast() -> AbstractContextManager[Any]:
    """Arithmetic as the tensors have it, also where the caller stands in an autocast of this thread."""
    found = [torch.autocast(device, enabled=False) for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
    if not found:
        return NOTHING  # attacks come here thousands of times
    stack = ExitStack()
    for autocast in found:
        stack.enter_context(autocast)
    return stack


def each_within(steps: Iterator[Step], *contexts: Callable[[], AbstractContextManager[Any]]) -> Iterator[Step]:
    """The steps, each made within the contexts. Between steps, which may be long, the caller is outside of them."""
    while True:
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context())
            try:
                step = next(steps)
            except StopIteration:
                return
        yield step


def device_of(model: nn.Module, x: ImageSet) -> torch.device:
    """Where the model lies; where the images do, for one that has no tensors. Raises as `check_there` does."""
    check_there(model)
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), x.device)


def check_there(model: nn.Module) -> None:
    """Raises ValueError for a model without numbers, on the meta device."""
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError(
            "the model lies on the meta device, where weights have shapes and no numbers: "
            "build it on the CPU, or load its weights with assign=True"
        )


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision for training: bfloat16 where asked for, or where "auto" finds a CUDA device that has it.

    By emulation, as on T4 and V100, it is slower than float32.
    """
    has_it = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    wanted = precision == "bfloat16" or (precision == "auto" and has_it)
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


def into_mode(model: nn.Module, *, training: bool) -> None:
    """Put the model and its layers into eval or training mode. What `torch.export` made keeps the mode it was made in.

    Raises ValueError for a model whose `eval()` or `train()` fails, and for a whole one of `torch.export` in training.
    """
    name = "train" if training else "eval"
    switch = model.train if training else model.eval
    try:
        try:
            switch()
        except NotImplementedError:
            fixed = [layer for layer in model.modules() if is_exported(layer)]
            if not fixed or (training and model in fixed):
                raise
            with standing_still(fixed):
                if model not in fixed:
                    switch()
    except Exception as error:
        if out_of_memory(error):
            raise
        mend = ": train the module that it was exported from" if training and is_exported(model) else ""
        raise ValueError(f"the model's {name}() fails: {type(error).__name__}: {in_a_line(error)}{mend}") from error


def is_exported(layer: nn.Module) -> bool:
    """Whether `torch.export` made the module, which knows no mode since."""
    return isinstance(layer, fx.GraphModule) and {"train", "eval"} <= vars(layer).keys()


@contextmanager
def standing_still(layers: Sequence[nn.Module]) -> Iterator[None]:
    """The layers take calls of train() and eval() meanwhile, and do nothing."""
    before = [(layer, {name: vars(layer)[name] for name in ("train", "eval")}) for layer in layers]
    for layer in layers:
        vars(layer).update(train=lambda mode=True, layer=layer: layer, eval=lambda layer=layer: layer)
    try:
        yield
    finally:
        for layer, own in before:
            vars(layer).update(own)


def in_a_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def check_device(device: torch.device) -> None:
    """Raises ValueError for a device that numbers were never checked on: what runs there may be wrong unseen."""
    if device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"expected the device cpu or cuda, got {device}: no number was ever checked on {device.type.upper()}; "
            "move the model to the CPU"
        )
    if device.type == "cuda" and torch.version.hip is not None:
        raise ValueError(
            f"this PyTorch is built for ROCm {torch.version.hip}, on which no number was ever checked: "
            "expected a build for CUDA, or the device cpu"
        )


def moved(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on the device. Raises ValueError for one that is not known, and where the model's `to()` fails, unless
    it lies there already.
    """
    check_device(device)
    try:
        found = model.to(device)
    except Exception as error:
        if out_of_memory(error):
            raise
        if all(t.device == device for t in (*model.parameters(), *model.buffers())):
            return model
        raise ValueError(
            f"the model's to({str(device)!r}) fails: {type(error).__name__}: {in_a_line(error)}"
        ) from error
    return found if isinstance(found, nn.Module) else model  # it moves in place


def as_module(owner: str, model: Any) -> nn.Module:
    """The model. Raises TypeError for what is no module."""
    if isinstance(model, nn.Module):
        if not hasattr(model, "_parameters"):  # TorchScript's modules keep them elsewhere than in their dict
            raise TypeError(f"{owner}: expected a torch.nn.Module whose __init__ calls super().__init__() first")
        return model
    came = f"the class {model.__name__}: make one of it" if isinstance(model, type) else type(model).__name__
    mend = ": robustlib.models.black_box.BlackBoxModel(function, num_classes) makes one of a function that answers"
    raise TypeError(f"{owner}: expected a torch.nn.Module, got {came}{'' if isinstance(model, type) else mend}")


def copied(model: nn.Module) -> nn.Module:
    """A copy of the model."""
    with torch.no_grad():  # where a graph is kept, TorchScript's copies hang on to what they are copies of
        return copy.deepcopy(model, without_graphs(model))


def without_graphs(*models: nn.Module) -> dict[int, Any]:
    """For deepcopy, which copies no tensor that a graph made: those that models have kept of their last call."""
    kept = [value for model in models for layer in model.modules() for value in vars(layer).values()]
    kept += [part for value in kept if isinstance(value, list | tuple) for part in value]
    return {id(t): t.detach().clone() for t in kept if isinstance(t, Tensor) and not t.is_leaf}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, each of its layers put back afterwards.

    cuDNN takes the gradient of an LSTM, a GRU or an RNN in training mode alone, which differs from eval mode by dropout
    between layers: on a GPU they are in that mode without dropout, and compute the same.
    """
    modes = {layer: layer.training for layer in model.modules() if hasattr(layer, "training")}  # a frozen one has none
    dropouts = {layer: layer.dropout for layer in recurrent_on_gpu(model)}
    into_mode(model, training=False)
    for layer in dropouts:
        layer.training, layer.dropout = True, 0.0
    try:
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode
        for layer, dropout in dropouts.items():
            layer.dropout = dropout


def recurrent_on_gpu(model: nn.Module) -> list[nn.RNNBase]:
    return [
        layer
        for layer in model.modules()
        if isinstance(layer, nn.RNNBase) and any(p.is_cuda for p in layer.parameters())
    ]


def layout(model: nn.Module) -> torch.memory_format:
    """Channels-last where the model's convolutions are kept so, else contiguous, which any model can take."""
    kernels = [p for p in model.parameters() if p.ndim == 4 and not p.is_contiguous()]
    last = any(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    return torch.channels_last if last else torch.contiguous_format


def as_images(x: Tensor, device: torch.device, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """Images as floats in [0, 1] on the device, from uint8 or from floats that are so already.

    Raises ValueError for floats outside [0, 1].
    """
    x = x.detach()
    if x.dtype == torch.uint8:
        return x.to(device, memory_format=memory_format).float().div_(255)
    low, high = x.min().item(), x.max().item()
    if not (low >= 0 and high <= 1):
        ends = distinct((low, high, 0, 1), 4)
        raise ValueError(
            f"expected images in [0, 1], got values from {ends[0]} to {ends[1]}: "
            "leave normalisation to the model's first layer"
        )
    return x.to(device, torch.float32, memory_format=memory_format)
