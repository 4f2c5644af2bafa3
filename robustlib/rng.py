"""Random numbers that are a function of (seed, example index, stream) and of nothing else.

A torch.Generator hands out numbers in the order they are asked for, so a result would depend on batch size, shard and
order. Here every example owns its numbers: a counter is hashed, in the manner of Salmon et al. 2011 (parallel random
numbers: as easy as 1, 2, 3), with the splitmix64 finaliser of Steele, Lea and Flood 2014.
"""

import hashlib
import math
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit number


def logical_shift(bits: Tensor, places: int) -> Tensor:
    """Shift right and fill with zeros; torch's own shift of signed numbers fills with the sign."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def mix(bits: Tensor) -> Tensor:
    """splitmix64's finaliser: a bijection of 64-bit numbers with good avalanche."""
    bits = (bits ^ logical_shift(bits, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    bits = (bits ^ logical_shift(bits, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return bits ^ logical_shift(bits, 31)


def stream_key(seed: int, stream: str) -> int:
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch of examples.

    index: the examples' places in the data set, shape (B,), int64, on the device where the numbers are wanted.
    """

    seed: int
    index: Tensor

    def __getitem__(self, chosen: Tensor | slice) -> "Draws":
        return replace(self, index=self.index[chosen])

    def restart(self, number: int) -> "Draws":
        """Other numbers for the same examples."""
        return self if number == 0 else replace(self, seed=stream_key(self.seed, f"restart/{number}"))

    def bits(self, shape: tuple[int, ...], stream: str) -> Tensor:
        places = torch.arange(math.prod(shape), device=self.index.device)
        return self.bits_at(places[None], stream).reshape(-1, *shape)

    def bits_at(self, places: Tensor, stream: str) -> Tensor:
        """Each example's bits at these places of the stream, (B, M); places: (B, M), or (1, M) for the same of all."""
        example = mix(self.index * GOLDEN + stream_key(self.seed, stream))
        return mix(example[:, None] + (places + 1) * GOLDEN)

    def uniform(self, shape: tuple[int, ...], stream: str) -> Tensor:
        """Numbers in [0, 1), float32, shape (B, *shape)."""
        return logical_shift(self.bits(tuple(shape), stream), 40).float() * 2**-24

    def uniform_at(self, places: Tensor, stream: str) -> Tensor:
        """Numbers in [0, 1) at these places of each example's stream, float32, shape (B, M)."""
        return logical_shift(self.bits_at(places, stream), 40).float() * 2**-24

    def signs(self, shape: tuple[int, ...], stream: str) -> Tensor:
        """-1 or 1 with equal chance, float32, shape (B, *shape): each a bit of its own, sixty-four from one hash."""
        count = math.prod(shape)
        octets = self.bits((-(-count // 64),), stream).view(torch.uint8)
        places = torch.arange(8, dtype=torch.uint8, device=self.index.device)
        bits = (octets[:, :, None] >> places) & 1
        return (2 * bits.flatten(1)[:, :count].float() - 1).reshape(-1, *shape)

    def normal(self, shape: tuple[int, ...], stream: str) -> Tensor:
        """Standard normal numbers by Box and Muller, float32, shape (B, *shape)."""
        radius = (-2 * (1 - self.uniform(shape, f"{stream}/radius")).log()).sqrt()
        return radius * (2 * math.pi * self.uniform(shape, f"{stream}/angle")).cos()


def default_draws(x: Tensor, draws: Draws | None) -> Draws:
    """The draws given, or seed 0 and the examples numbered as they lie in the batch."""
    return Draws(0, torch.arange(len(x), device=x.device)) if draws is None else draws


def generator(seed: int, stream: str) -> torch.Generator:
    """A generator on the CPU for what belongs to a run, not to an example: the order of the examples, a split."""
    return torch.Generator().manual_seed(stream_key(seed, stream) % 2**63)


class Seeding:
    """The generators of torch, NumPy and Python seeded for blocks that belong together: the second goes on where the
    first stopped, and what lies between them has its own numbers.
    """

    def __init__(self, seed: int, stream: str, device: torch.device):
        self.key, self.device = stream_key(seed, stream), device
        self.devices = [device] if device.type == "cuda" else []
        self.states: Any = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        numpy_state, python_state = np.random.get_state(), random.getstate()
        with torch.random.fork_rng(devices=self.devices):
            self.go_on()
            try:
                yield
            finally:
                self.states = self.now()
                np.random.set_state(numpy_state)
                random.setstate(python_state)

    def go_on(self) -> None:
        if self.states is None:
            torch.manual_seed(self.key % 2**63)
            np.random.seed(self.key % 2**32)
            random.seed(self.key)
            return
        cpu, cuda, numpy_state, python_state = self.states
        torch.set_rng_state(cpu)
        for device, state in zip(self.devices, cuda, strict=True):
            torch.cuda.set_rng_state(state, device)
        np.random.set_state(numpy_state)
        random.setstate(python_state)

    def now(self) -> tuple[Any, ...]:
        cuda = [torch.cuda.get_rng_state(device) for device in self.devices]
        return torch.get_rng_state(), cuda, np.random.get_state(), random.getstate()


def seeded(seed: int, stream: str, device: torch.device) -> AbstractContextManager[None]:
    """The generators of torch, NumPy and Python seeded for a block and put back: initial weights and dropout draw from
    torch's, a user's own noise from any of them.
    """
    return Seeding(seed, stream, device)()
