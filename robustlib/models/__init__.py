"""Models: images in [0, 1] in, logits out, normalisation as the first layer."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robustlib.inference.model_modes import into_mode
from robustlib.models.black_box import BlackBoxModel
from robustlib.models.convnet3 import ConvNet3
from robustlib.models.layers import Normalize
from robustlib.models.lenet5 import LeNet5
from robustlib.models.loading import build_users, check_options, users_code
from robustlib.models.randomised import dropout_at_inference
from robustlib.models.resnet import ResNet18
from robustlib.models.weights import Tell as Tell
from robustlib.models.weights import load_fitting_set, load_weights
from robustlib.names import did_you_mean, unknown
from robustlib.normalisations import by_channel, check_statistics

MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet5": LeNet5,
    "convnet3": ConvNet3,
    "resnet18": ResNet18,
}

Statistics = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation by channel


def network(arch: str, in_channels: int, num_classes: int, image_size: tuple[int, int], **options: Any) -> nn.Module:
    """A bare network by name: one of MODELS, or `torchvision:NAME`, with fresh weights from torch's generator."""
    if arch.startswith("torchvision:"):
        return torchvision_network(arch.removeprefix("torchvision:"), in_channels, num_classes, **options)
    if arch not in MODELS:
        raise ValueError(unknown("arch", arch, [*MODELS, "torchvision:NAME"]))
    options = check_options(arch, MODELS[arch], options)
    return MODELS[arch](in_channels=in_channels, num_classes=num_classes, image_size=image_size, **options)


def torchvision_network(name: str, in_channels: int, num_classes: int, **options: Any) -> nn.Module:
    # Imported here: the import takes seconds, and few runs need it.
    from torchvision.models import get_model, list_models

    if name not in list_models():
        raise ValueError(
            f"torchvision has no model {name!r}; `robustq list models --torchvision` prints those it has"
            f"{did_you_mean(name, list_models())}"
        )
    if in_channels != 3:
        raise ValueError(f"torchvision's models expect 3 channels, got images with {in_channels}")
    with_options = f"torchvision:{name} with the options {', '.join(options)}" if options else f"torchvision:{name}"
    with users_code(with_options):  # its constructors say by a TypeError which options there are not
        return get_model(name, weights=None, num_classes=num_classes, **options)


def check_facts(arch: str, options: dict[str, Any]) -> None:
    """Raise ValueError for an option that the data set decides."""
    for name in ("arch", "name", "weights", "in_channels", "num_classes", "image_size"):
        if name in options:
            raise ValueError(f"expected no option {name!r}: {arch} has it from the study or the data set")


def build(
    *,
    arch: str | None = None,
    file: str | None = None,
    weights: Path | None = None,
    entry: str | None = None,
    in_channels: int,
    num_classes: int,
    image_size: tuple[int, int],
    normalize: Statistics | None = None,
    dropout: float | None = None,
    options: dict[str, Any] | None = None,
    tell: Tell | None = None,
) -> nn.Module:
    """A model in eval mode: by name (`arch`) or the user's own (`file`, a factory), with weights from a file.

    normalize: mean and standard deviation of the first layer, by channel or one for all; a user's own model gets such a
    layer where they are given.  entry: see `load_weights`.  Weights that carry the first layer (`normalize.mean`)
    decide it themselves.  dropout: rate at inference.  tell: is told in one line what was taken from the weights, where
    that is not simply all, and what the file switched for the whole process.  Raises ValueError or FileNotFoundError
    where something does not exist or does not fit.
    """
    facts = {"in_channels": in_channels, "num_classes": num_classes, "image_size": image_size}
    first = None if normalize is None else first_layer(*normalize, in_channels)
    if file is not None:
        model = build_users(file, facts, options or {}, tell)
    elif arch is not None:
        check_facts(arch, options or {})
        model = network(arch, **facts, **(options or {}))
        first = first or Normalize([0.0] * in_channels, [1.0] * in_channels)
    else:
        raise ValueError("expected a model by arch or by file, got neither")
    if first is not None:
        model = nn.Sequential(OrderedDict(normalize=first, net=model))
    if weights is not None and is_black_box(model):
        raise ValueError(f"weights {weights} have no effect: {file} only answers, and its numbers lie elsewhere")
    if weights is not None:
        load_weights(model, weights, entry, may_normalize=arch is not None and normalize is None, tell=tell)
    if dropout is not None:
        model = dropout_at_inference(model, p=dropout)
    into_mode(model, training=False)
    return model


def is_black_box(model: nn.Module) -> bool:
    """Whether somebody else computes its answers, behind a first layer or not."""
    return any(isinstance(layer, BlackBoxModel) for layer in model.modules())


def first_layer(mean: Sequence[float], std: Sequence[float], channels: int) -> Normalize:
    check_statistics(mean, std)
    return Normalize(*by_channel(mean, std, channels))


def load(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Load weights into a built model, with or without the first layer among them."""
    load_fitting_set(model, {"": weights}, source)
