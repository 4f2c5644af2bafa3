"""Tensors of a checkpoint that are not the network's own: which change no number, and which would."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# One number each, of which only training makes use.
COUNTERS = frozenset({"n_averaged", "num_batches_tracked", "num_updates", "decay", "global_step", "step", "epoch"})
LOSSES = frozenset({"criterion", "criteria", "loss", "losses", "loss_fn", "loss_func", "metric", "metrics"})
MEASURED = ("acc", "accuracy", "metric", "metrics", "loss", "auroc", "f1")
MEANS = {"mean": "std", "new_mean": "new_std", "mu": "sigma", "_mean": "_std", "image_mean": "image_std"}
MOST_CHANNELS = 16


@dataclass(frozen=True)
class Normalisation:
    """A mean and a standard deviation by channel, and what they are called."""

    names: tuple[str, str]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def agrees(self, other: "Normalisation") -> bool:
        pairs = zip(self.mean + self.std, other.mean + other.std, strict=False)
        return len(self.mean) == len(other.mean) and all(abs(a - b) <= 1e-6 * max(1, abs(b)) for a, b in pairs)


@dataclass(frozen=True)
class ExtraTensors:
    """Tensors that a model has no place for.

    dropped: counters, losses, copies of what was taken.  normalisations: that the network was trained behind.  unknown:
    all others, which may change what the network computes.
    """

    dropped: tuple[str, ...]
    normalisations: tuple[Normalisation, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Fit:
    """One way in which a set's tensors are the model's.

    tensors: by the model's names, each with its name in the file.  place: of the set.  prefix: that its names have and
    the model's have not, wrappers' parts left out.  filled, kept: of the model but not in the file; counters, and what
    its own code sets.  extra: what the set holds besides.
    """

    place: str
    prefix: str
    tensors: dict[str, tuple[str, Tensor]]
    filled: tuple[str, ...]
    kept: tuple[str, ...]
    extra: ExtraTensors

    @property
    def entry(self) -> str:
        """What chooses it alone."""
        return ".".join(filter(None, [self.place, self.prefix.removesuffix(".")])) or "."


def sort_extra_tensors(extras: Mapping[str, tuple[str, Tensor]], taken: Mapping[str, Tensor]) -> ExtraTensors:
    """extras: by their names without wrappers' parts, with those in the file.  taken: by the network's own names."""
    normalisations = statistics_of({name: value for name, (_, value) in extras.items()})
    used = {name for found in normalisations for name in found.names}
    dropped, unknown = [], []
    for name, (there, value) in extras.items():
        if name not in used:
            (dropped if is_counter(name, value) or is_loss(name) or is_copy(name, value, taken) else unknown).append(
                there
            )
    return ExtraTensors(tuple(sorted(dropped)), tuple(normalisations), tuple(sorted(unknown)))


def is_counter(name: str, value: Tensor) -> bool:
    return name.rpartition(".")[2] in COUNTERS and value.numel() == 1


def is_loss(name: str) -> bool:
    """Whether a part of the name says that it belongs to a loss or a metric of the training."""
    parts = [part.lower() for part in name.split(".")]
    return any(
        part in LOSSES or (part.startswith(("train_", "val_", "valid_", "test_")) and part.endswith(MEASURED))
        for part in parts
    )


def is_copy(name: str, value: Tensor, taken: Mapping[str, Tensor]) -> bool:
    """Whether the same numbers were taken under the end of this name: a module that is registered twice."""
    rest = name
    while rest:
        same = taken.get(rest)
        if same is not None:
            return same.shape == value.shape and same.dtype == value.dtype and bool(torch.equal(same, value))
        rest = rest.partition(".")[2]
    return False


def statistics_of(tensors: Mapping[str, Tensor]) -> list[Normalisation]:
    """Pairs of a mean and a standard deviation by channel among named tensors."""
    found = []
    for name, value in tensors.items():
        parent, dot, last = name.rpartition(".")
        other = f"{parent}{dot}{MEANS[last]}" if last in MEANS else ""
        if other in tensors and is_by_channel(value) and tensors[other].numel() == value.numel():
            found.append(Normalisation((name, other), numbers(value), numbers(tensors[other])))
    return found


def is_by_channel(value: Tensor) -> bool:
    return value.is_floating_point() and value.numel() == max(value.shape, default=1) <= MOST_CHANNELS


def numbers(value: Tensor) -> tuple[float, ...]:
    return tuple(value.double().flatten().tolist())


def first_names(names: Iterable[str], most: int = 2) -> str:
    """The first names of several, in quotes."""
    names = list(names)
    return ", ".join(repr(name) for name in names[:most])
