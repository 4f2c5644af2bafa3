"""Standard normal numbers of many streams at once, to the bit those of `Draws.normal`, in few kernels."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from robustlib.rng import GOLDEN, Draws, mix, stream_key

# Numbers hashed at once on a CPU, whose caches then hold what lies between: in less than half of the time.
BLOCK = 2**15


def normals(draws: Draws, shape: tuple[int, ...], keys: Tensor) -> Tensor:
    """Those of S streams for each example, shape (S, B, *shape).  keys: see `normal_keys`, on the draws' device."""
    n, streams = len(draws.index), keys.shape[1]
    every = keys[:, :, None].expand(2, streams, n).reshape(2, -1)
    return normal_at(draws.index.repeat(streams), every, tuple(shape)).reshape(streams, n, *shape)


def normal_keys(seed: int, streams: Sequence[str]) -> Tensor:
    """Keys of the standard normal numbers of S streams, for their radii and angles, int64, shape (2, S), on the CPU."""
    return torch.tensor([[stream_key(seed, f"{name}/{part}") for name in streams] for part in ("radius", "angle")])


def normal_at(index: Tensor, keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers of pairs of an example and a stream, float32, shape (P, *shape): to the bit those of
    `Draws.normal`.

    index: the examples' places in the data set, (P,), int64.  keys: of the streams, see `normal_keys`, (2, P), on the
    same device. They may be written into afterwards and the call played again, as in a CUDA graph.
    """
    count = math.prod(shape)
    steps = torch.arange(1, count + 1, device=index.device) * GOLDEN
    examples = mix(index * GOLDEN + keys)
    found = torch.empty(len(index), count, device=index.device)
    rows = max(1, BLOCK // max(count, 1)) if index.device.type == "cpu" else max(1, len(index))
    for block in (slice(first, first + rows) for first in range(0, len(index), rows)):
        radius, angle = (uniform_from(part[block], steps) for part in examples)
        radius.neg_().add_(1).log_().mul_(-2).sqrt_()
        torch.mul(radius, angle.mul_(2 * math.pi).cos_(), out=found[block])
    return found.reshape(-1, *shape)


def uniform_from(example: Tensor, steps: Tensor) -> Tensor:
    """Numbers in [0, 1) of each example's key, (B,), at these steps of its counter, (M,), float32, shape (B, M)."""
    bits = example[:, None] + steps
    # `mix` on two tensors in turn. Its last shift changes none of the 24 bits that are taken.
    other = bits >> 30
    other.bitwise_and_((1 << 34) - 1).bitwise_xor_(bits).mul_(-4658895280553007687)
    torch.bitwise_right_shift(other, 27, out=bits)
    bits.bitwise_and_((1 << 37) - 1).bitwise_xor_(other).mul_(-7723592293110705685)
    return bits.bitwise_right_shift_(40).bitwise_and_((1 << 24) - 1).float().mul_(2**-24)
