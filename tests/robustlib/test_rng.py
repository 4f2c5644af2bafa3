"""rng.py against integer arithmetic in plain Python and published outputs of splitmix64."""

import hashlib
import math

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from robustlib.normal_streams import BLOCK, normal_at, normal_keys, normals
from robustlib.rng import (
    GOLDEN,
    Draws,
    default_draws,
    generator,
    logical_shift,
    mix,
    seeded,
)

MASK = 2**64 - 1
CPU = torch.device("cpu")


def slow_mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def signed(z: int) -> int:
    z &= MASK
    return z - 2**64 if z >= 2**63 else z


def slow_uniform(seed: int, index: int, stream: str, count: int) -> list[float]:
    key = int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:8], "big")
    example = slow_mix((index * 0x9E3779B97F4A7C15 + key) & MASK)
    return [(slow_mix((example + n * 0x9E3779B97F4A7C15) & MASK) >> 40) / 2**24 for n in range(1, count + 1)]


@pytest.mark.parametrize(
    "seed, outputs",
    [
        # As listed at https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64
        (1234567, [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]),
        # Of Vigna's C code, https://prng.di.unimi.it/splitmix64.c, from seed 0
        (0, [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]),
    ],
)
def test_mix_gives_the_published_outputs_of_splitmix64(seed: int, outputs: list[int]):
    state = seed + GOLDEN * torch.arange(1, len(outputs) + 1)
    assert [number & MASK for number in mix(state).tolist()] == outputs


def test_mix_and_shift_match_plain_integers():
    bits = torch.randint(-(2**63), 2**63 - 1, (1000,), generator=torch.Generator().manual_seed(0))
    bits[:4] = torch.tensor([0, -1, 2**63 - 1, -(2**63)])
    assert mix(bits).tolist() == [signed(slow_mix(b & MASK)) for b in bits.tolist()]
    for places in (1, 30, 40, 63):
        assert logical_shift(bits, places).tolist() == [(b & MASK) >> places for b in bits.tolist()]


@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_uniform_matches_plain_integers(seed: int):
    index = torch.tensor([0, 1, 9999, 2**40])
    numbers = Draws(seed, index).uniform((2, 3), "pgd/start")
    assert numbers.shape == (4, 2, 3) and numbers.dtype == torch.float32
    assert numbers.flatten(1).tolist() == [slow_uniform(seed, i, "pgd/start", 6) for i in index.tolist()]


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_numbers_do_not_depend_on_batch_split_order_or_subset(kind: str):
    def numbers(index: Tensor) -> Tensor:
        return getattr(Draws(3, index), kind)((3, 4, 4), "a")

    whole = numbers(torch.arange(300))
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    assert torch.equal(numbers(order), whole[order])
    for batch in (1, 7, 64):
        assert torch.equal(torch.cat([numbers(part) for part in torch.arange(300).split(batch)]), whole)
    chosen = torch.tensor([5, 299, 17])
    assert torch.equal(getattr(Draws(3, torch.arange(300))[chosen], kind)((3, 4, 4), "a"), whole[chosen])
    assert torch.equal(Draws(3, order)[order > 150].index, order[order > 150])


def test_restarts():
    draws = Draws(5, torch.arange(4))
    assert draws.restart(0) is draws
    assert torch.equal(draws.restart(2).index, draws.index)
    assert draws.restart(2).seed == draws.restart(2).seed
    assert len({draws.restart(n).seed for n in range(50)}) == 50


def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1].item()


@pytest.mark.parametrize(
    "other",
    [
        lambda d: d(1, 0, "a", 0),
        lambda d: d(0, 1, "a", 0),
        lambda d: d(0, 0, "b", 0),
        lambda d: d(0, 0, "a", 1),
    ],
    ids=["seed", "index", "stream", "restart"],
)
def test_other_seeds_examples_streams_and_restarts_are_unrelated(other):
    def numbers(seed: int, shift: int, stream: str, restart: int) -> Tensor:
        return Draws(seed, torch.arange(shift, 1000 + shift)).restart(restart).uniform((40,), stream)

    first, second = numbers(0, 0, "a", 0), other(numbers)
    # Two of 2^24 values coincide once in 400 times over 40,000 pairs.
    assert (first == second).sum() <= 2
    assert abs(correlation(first, second)) < 4 / math.sqrt(40000)


def test_neighbouring_places_are_unrelated():
    numbers = Draws(0, torch.arange(1000)).uniform((41,), "a")
    assert abs(correlation(numbers[:, 1:], numbers[:, :-1])) < 4 / math.sqrt(40000)


def test_distributions():
    draws = Draws(11, torch.arange(1000))
    uniform, normal = draws.uniform((100,), "u").double(), draws.normal((100,), "n").double()
    assert uniform.min() >= 0 and uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 4 * math.sqrt(1 / 12 / 1e5)
    assert abs(uniform.var() - 1 / 12) < 4 * math.sqrt(1 / 180 / 1e5)
    assert kstest(uniform.flatten().numpy(), "uniform").pvalue > 1e-3
    assert normal.isfinite().all()
    assert kstest(normal.flatten().numpy(), "norm").pvalue > 1e-3
    # Each example and each place by itself, not only all together.
    assert (uniform.mean(1) - 0.5).abs().max() < 5 * math.sqrt(1 / 12 / 100)
    assert (uniform.mean(0) - 0.5).abs().max() < 5 * math.sqrt(1 / 12 / 1000)


def test_default_draws_number_the_batch():
    assert default_draws(torch.zeros(3, 1), None).index.tolist() == [0, 1, 2]
    given = Draws(4, torch.tensor([9]))
    assert default_draws(torch.zeros(1, 1), given) is given


def test_generator_and_seeded_depend_on_seed_and_stream_not_on_torch():
    before = torch.get_rng_state()

    def inside(seed: int, stream: str) -> list[float]:
        with seeded(seed, stream, CPU):
            return torch.rand(3).tolist()

    assert inside(0, "a") == inside(0, "a")
    assert len({tuple(inside(seed, stream)) for seed in (0, 1) for stream in ("a", "b")}) == 4
    permutations = {
        tuple(torch.randperm(20, generator=generator(s, t)).tolist()) for s in (0, 1) for t in "ab" for _ in range(2)
    }
    assert len(permutations) == 4
    assert torch.equal(torch.get_rng_state(), before)


def normal_by_definition(draws: Draws, shape: tuple[int, ...], stream: str) -> Tensor:
    """Box and Muller's, one stream at a time, each operation a tensor of its own."""
    radius = (-2 * (1 - draws.uniform(shape, f"{stream}/radius")).log()).sqrt()
    return radius * (2 * math.pi * draws.uniform(shape, f"{stream}/angle")).cos()


@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (3, 32, 32), (BLOCK + 13,)])
def test_normal_numbers_of_many_streams_at_once_are_those_of_each(shape: tuple[int, ...]):
    """To the bit: stored certificates rest on them."""
    draws, streams = Draws(11, torch.tensor([3, 0, 9999, 2**40])), [f"certify/{draw}" for draw in range(6)]
    keys = normal_keys(11, streams)
    expected = torch.stack([normal_by_definition(draws, shape, stream) for stream in streams])
    assert torch.equal(normals(draws, shape, keys), expected)
    assert all(torch.equal(draws.normal(shape, stream), one) for stream, one in zip(streams, expected, strict=True))
    of, row = torch.tensor([5, 0, 2]), torch.tensor([1, 3, 1])
    assert torch.equal(normal_at(draws.index[row], keys[:, of], shape), expected[of, row])
    assert len(normal_at(draws.index[:0], keys[:, :0], shape)) == 0
