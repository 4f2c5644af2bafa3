"""Wrappers that PyTorch has for modules, each around a small network."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

Wrap = Callable[[nn.Module], nn.Module]


def network() -> nn.Sequential:
    """A network for images of shape (1, 4, 4), in eval mode."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(48, 10)
    return nn.Sequential(*layers).eval()


def compiled(net: nn.Module) -> nn.Module:
    """By the backend that runs each graph as it is: no compiler is needed."""
    made = torch.compile(net, backend="eager")
    assert isinstance(made, nn.Module)
    return made


def compiled_in_place(net: nn.Module) -> nn.Module:
    net.compile(backend="eager")
    return net


def distributed(net: nn.Module) -> nn.Module:
    """As one process of one, whose group is the caller's to end."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]
    return nn.parallel.DistributedDataParallel(net).eval()


WRAPPERS: dict[str, Wrap] = {
    "compiled": compiled,
    "compiled in place": compiled_in_place,
    "parallel": nn.DataParallel,
    "distributed": distributed,
    "checkpointed": checkpoint_wrapper,
    "compiled, parallel": lambda net: compiled(nn.DataParallel(net)),
}
