"""Near-repeated queries: what each client asked lately, as tiny pictures, and how near its next query is to them.

An attack without gradients asks about hundreds of images that hardly differ, which nobody else does: Chen et al. 2019,
https://arxiv.org/abs/1907.05587, who look at the distance of the k nearest in a learnt space, and Li et al. 2022
(Blacklight), https://arxiv.org/abs/2006.14042, who hash pixels instead, which needs no network. Here it is the distance
to the k-th nearest between grey pictures of at most 8x8 areas: no learning either, and a bounded memory. Whoever asks
from many clients, slowly, or about many images in turn is not seen, and a video is.
Free of torch.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

SIDE = 8  # areas along each side of a tiny picture


@lru_cache(maxsize=64)
def areas(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where areas along a side of so many pixels begin, and how many pixels each has."""
    edges = np.linspace(0, size, min(SIDE, size) + 1).astype(int)
    return edges[:-1], np.diff(edges).astype(np.float32)


def tiny_pictures(x: np.ndarray) -> np.ndarray:
    """Grey pictures of at most 8x8 areas, uint8, shape (B, areas). x: floats in [0, 1], shape (B, C, H, W)."""
    grey = x.mean(axis=1, dtype=np.float32)
    for axis in (1, 2):
        first, widths = areas(grey.shape[axis])
        grey = np.add.reduceat(grey, first, axis=axis) / (widths[:, None] if axis == 1 else widths)
    return np.rint(255 * grey.clip(0, 1)).astype(np.uint8).reshape(len(x), grey.shape[1] * grey.shape[2])


@dataclass
class Window:
    """The latest queries of a client. kept: tiny pictures, (most, areas).  asked: how many there ever were."""

    kept: np.ndarray
    asked: int = 0
    lengths: np.ndarray = field(init=False)  # the sum of squares of each

    def __post_init__(self) -> None:
        self.lengths = np.zeros(len(self.kept), np.float32)

    def distance(self, picture: np.ndarray, nearest: int) -> float:
        """Of this picture from the so-many nearest: root of the mean square, in [0, 1]; infinite if there are fewer."""
        known = min(self.asked, len(self.kept))
        if known < nearest:
            return float("inf")
        own = picture.astype(np.float32)
        # Whole numbers below 2^24, which float32 holds: products take a fifth of the time of differences.
        squares = self.lengths[:known] - 2 * (self.kept[:known].astype(np.float32) @ own)
        least = float(np.partition(squares, nearest - 1)[nearest - 1]) + float(own @ own)
        return math.sqrt(least / len(own)) / 255

    def add(self, picture: np.ndarray) -> None:
        place, own = self.asked % len(self.kept), picture.astype(np.float32)
        self.kept[place], self.lengths[place] = picture, own @ own
        self.asked += 1


@dataclass
class QueryWindows:
    """The latest queries of the clients that asked last; of others nothing is remembered.

    window: queries of a client.  nearest: which of the nearest is looked at.  clients: how many are remembered.
    """

    window: int = 200
    nearest: int = 10
    clients: int = 2000
    known: OrderedDict[str, Window] = field(default_factory=OrderedDict)

    def distances(self, client: str, pictures: np.ndarray) -> np.ndarray:
        """How far each query lies from the client's earlier ones, those of this call among them, shape (B,).

        pictures: of `tiny_pictures`, in the order of the queries.
        """
        window = self.known.pop(client, None) or Window(np.zeros((self.window, pictures.shape[1]), np.uint8))
        self.known[client] = window  # the last that asked
        while len(self.known) > self.clients:
            self.known.popitem(last=False)
        found = np.empty(len(pictures))
        for i, picture in enumerate(pictures):
            found[i] = window.distance(picture, self.nearest)
            window.add(picture)
        return found
