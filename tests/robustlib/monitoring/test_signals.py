"""Signals beside counting by hand: votes under noise, statistics and their ranges, near-repeated queries."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch

from robustlib.datasets import load
from robustlib.monitoring.image_statistics import image_statistics, out_of_range, ranges_of
from robustlib.monitoring.noise_votes import disagreement, noise_votes, vote_margin
from robustlib.monitoring.query_windows import QueryWindows, tiny_pictures


def digits(n: int) -> np.ndarray:
    return load.load("digits", "test").x[:n].astype(np.float32) / 255


def test_votes_are_those_of_each_noisy_copy():
    """A model of the first pixel: class 1 where it lies above a half, told beside the same noise by hand."""

    def ask(x: np.ndarray) -> np.ndarray:
        bright = x[:, 0, 0, 0] > 0.5
        return np.stack([~bright, bright, np.zeros_like(bright)], 1).astype(np.float32)

    x = np.linspace(0.2, 0.8, 7, dtype=np.float32).reshape(7, 1, 1, 1).repeat(4, 2)
    votes = noise_votes(ask, x, sigma=0.2, copies=9, random=np.random.default_rng(3))
    random, expected = np.random.default_rng(3), np.zeros((7, 3), int)
    for _ in range(9):
        noise = random.standard_normal(x.shape, dtype=np.float32)
        for i in range(7):
            expected[i, int(x[i, 0, 0, 0] + np.float32(0.2) * noise[i, 0, 0, 0] > 0.5)] += 1
    assert np.array_equal(votes, expected) and 0 < votes[3, 1] < 9
    with pytest.raises(ValueError, match="at least one copy, got 0"):
        noise_votes(ask, x, sigma=0.2, copies=0, random=random)


def test_disagreement_and_margin_of_votes_by_hand():
    votes = np.array([[8, 0, 0], [3, 4, 1], [4, 4, 0]])
    assert disagreement(votes, np.array([0, 0, 2])).tolist() == [0.0, 5 / 8, 1.0]
    assert vote_margin(votes).tolist() == [1.0, 1 / 8, 0.0]
    assert vote_margin(np.array([[8]])).tolist() == [1.0]


def test_statistics_are_the_same_of_arrays_and_tensors():
    """And those of one image by loops."""
    x = digits(5)
    found = image_statistics(x.astype(np.float64))
    for name, value in image_statistics(torch.from_numpy(x).double()).items():
        assert np.allclose(value.numpy(), found[name], rtol=1e-12)
    image = x[2, 0].astype(float)
    down = [(image[i + 1, j] - 2 * image[i, j] + image[i - 1, j]) ** 2 for i in range(1, 7) for j in range(8)]
    right = [(image[i, j + 1] - 2 * image[i, j] + image[i, j - 1]) ** 2 for i in range(8) for j in range(1, 7)]
    assert found["detail"][2] == pytest.approx(np.mean(down) + np.mean(right))
    assert found["mean"][2] == pytest.approx(image.mean()) and found["variance"][2] == pytest.approx(image.var())
    assert image_statistics(np.zeros((2, 1, 2, 2)))["detail"].tolist() == [0, 0]


def test_noise_adds_to_the_detail_what_the_page_says():
    """6 eps^2 each way, of independent noise with variance eps^2 on a flat image."""
    noise = 0.01 * np.random.default_rng(0).standard_normal((4, 3, 64, 64))
    assert np.allclose(image_statistics(0.5 + noise)["detail"], 12 * 0.01**2, rtol=0.05)


def test_ranges_hold_all_but_a_share():
    x = np.random.default_rng(1).random((1000, 1, 4, 4)).astype(np.float32)
    ranges = ranges_of(x, 0.02)
    for name, value in image_statistics(x).items():
        low, high = ranges[name]
        assert ((value < low) | (value > high)).sum() == 20
    assert 20 <= out_of_range(x, ranges).sum() <= 60 and out_of_range(np.ones((1, 1, 4, 4), np.float32), ranges).all()
    assert out_of_range(np.full((1, 1, 4, 4), np.nan, np.float32), ranges).all()


def test_tiny_pictures_are_the_means_of_areas():
    x = np.random.default_rng(0).random((3, 3, 20, 16)).astype(np.float32)
    found = tiny_pictures(x).reshape(3, 8, 8)
    rows = np.linspace(0, 20, 9).astype(int)
    for i in range(8):
        mean = x[1, :, rows[i] : rows[i + 1], 2:4].mean()
        assert abs(int(found[1, i, 1]) - 255 * mean) <= 0.51
    assert tiny_pictures(x[:, :, :3, :5]).shape == (3, 15) and tiny_pictures(x[:0]).shape == (0, 64)


def test_distances_are_to_the_kth_nearest_of_the_window():
    """A twin that keeps everything; a window of 6 of 15 queries."""
    pictures = np.random.default_rng(0).integers(0, 256, (15, 20), np.uint8)
    found = QueryWindows(window=6, nearest=3).distances("a", pictures)
    for i in range(15):
        earlier = pictures[max(0, i - 6) : i].astype(float)
        near = sorted(np.sqrt(((one - pictures[i]) ** 2).mean()) / 255 for one in earlier)
        assert found[i] == (pytest.approx(near[2], rel=1e-5) if len(near) > 2 else np.inf)


def test_clients_do_not_meet_and_the_oldest_are_forgotten():
    windows, picture = QueryWindows(window=4, nearest=1, clients=2), np.ones((1, 4), np.uint8)
    assert windows.distances("a", picture) == np.inf and windows.distances("b", picture) == np.inf
    assert windows.distances("a", picture) == 0
    windows.distances("c", picture)  # the third: b asked longest ago
    assert list(windows.known) == ["a", "c"] and windows.distances("b", picture) == np.inf


@pytest.mark.slow
def test_memory_is_flat_over_ten_thousand_clients():
    windows, pictures = QueryWindows(window=50, clients=100), tiny_pictures(digits(4))
    for i in range(200):
        windows.distances(f"client {i}", pictures)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for i in range(10_000):
            windows.distances(f"another {i}", pictures)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(windows.known) == 100
    assert grown < 1.2 * 100 * 50 * pictures.shape[1] + 100_000  # those that are remembered now, seen from before


@pytest.mark.slow
def test_signals_of_a_server_need_no_torch():
    names = ("image_statistics", "noise_votes", "query_windows", "signals")
    code = "".join(f"import robustlib.monitoring.{name}\n" for name in names)
    code += "import robustq.jobs.serving.watching, sys\nassert not {'torch', 'scipy'} & set(sys.modules), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
