"""Models: images in [0, 1] in, logits out, normalisation as the first layer."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robustlib.models.convnet3 import ConvNet3
from robustlib.models.files import call_factory, check_options, load_weights, read_weights
from robustlib.models.layers import Normalize, dropout_at_inference
from robustlib.models.lenet5 import LeNet5
from robustlib.models.resnet import ResNet18
from robustlib.modes import into_mode

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
        known = ", ".join([*MODELS, "torchvision:NAME"])
        raise ValueError(f"unknown arch {arch!r}, expected one of: {known}")
    check_options(arch, MODELS[arch], options)
    return MODELS[arch](in_channels=in_channels, num_classes=num_classes, image_size=image_size, **options)


def torchvision_network(name: str, in_channels: int, num_classes: int, **options: Any) -> nn.Module:
    # Imported here: the import takes seconds, and few runs need it.
    from torchvision.models import get_model, list_models

    if name not in list_models():
        raise ValueError(f"torchvision has no model {name!r}; `robustq list models --torchvision` prints those it has")
    if in_channels != 3:
        raise ValueError(f"torchvision's models expect 3 channels, got images with {in_channels}")
    return get_model(name, weights=None, num_classes=num_classes, **options)


def build(
    *,
    arch: str | None = None,
    file: str | None = None,
    weights: Path | None = None,
    in_channels: int,
    num_classes: int,
    image_size: tuple[int, int],
    normalize: Statistics | None = None,
    dropout: float | None = None,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """A model in eval mode: by name (`arch`) or the user's own (`file`, a factory), with weights from a file.

    normalize: mean and standard deviation of the first layer; none for a user's own model, which brings its own.
    Weights that carry the first layer (`normalize.mean`) decide it themselves. dropout: rate at inference.
    Raises ValueError or FileNotFoundError where something does not exist or does not fit.
    """
    facts = {"in_channels": in_channels, "num_classes": num_classes, "image_size": image_size}
    if file is not None:
        model = call_factory(file, facts, options or {})
    elif arch is not None:
        model = nn.Sequential(
            OrderedDict(
                normalize=Normalize(*(normalize or ([0.0] * in_channels, [1.0] * in_channels))),
                net=network(arch, **facts, **(options or {})),
            )
        )
    else:
        raise ValueError("expected a model by arch or by file, got neither")
    if weights is not None:
        load(model, read_weights(weights), str(weights))
    if dropout is not None:
        model = dropout_at_inference(model, p=dropout)
    into_mode(model, training=False)
    return model


def load(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Load weights into a built model, with or without the first layer among them."""
    bare = not any(key.startswith(("net.", "normalize.")) for key in weights)
    inner = getattr(model, "net", None)
    target = inner if bare and isinstance(inner, nn.Module) and hasattr(model, "normalize") else model
    load_weights(target, weights, source)
