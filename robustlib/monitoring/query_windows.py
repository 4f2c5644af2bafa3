"""Near-repeated queries: what each client asked lately, as tiny pictures, and how near its next query is to them.

An attack without gradients asks about hundreds of images that hardly differ, which nobody else does: Chen et al. 2019,
https://arxiv.org/abs/1907.05587, who look at the distance of the k nearest in a learnt space, and Li et al. 2022
(Blacklight), https://arxiv.org/abs/2006.14042, who hash pixels instead, which needs no network. Here it is the distance
to the k-th nearest between grey pictures of at most 8x8 areas: no learning either, and a bounded memory. Whoever asks
from many clients, slowly, or about many images in turn is not seen, and a video is.
Free of torch.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

SIDE = 8  # areas along each side of a tiny picture


def tiny_pictures(x: np.ndarray) -> np.ndarray:
    """Grey pictures of at most 8x8 areas, uint8, shape (B, areas). x: floats in [0, 1], shape (B, C, H, W)."""
    grey = x.mean(axis=1, dtype=np.float64)
    for axis in (1, 2):
        size = grey.shape[axis]
        edges = np.linspace(0, size, min(SIDE, size) + 1).astype(int)
        sums = np.add.reduceat(grey, edges[:-1], axis=axis)
        grey = sums / np.diff(edges).reshape([-1, 1] if axis == 1 else [1, -1])
    return np.rint(255 * grey.clip(0, 1)).astype(np.uint8).reshape(len(x), grey.shape[1] * grey.shape[2])


@dataclass
class Window:
    """The latest queries of a client. kept: tiny pictures, (most, areas).  asked: how many there ever were."""

    kept: np.ndarray
    asked: int = 0

    def distance(self, picture: np.ndarray, nearest: int) -> float:
        """Of this picture from the so-many nearest: root of the mean square, in [0, 1]; infinite if there are fewer."""
        known = min(self.asked, len(self.kept))
        if known < nearest:
            return float("inf")
        squares = ((self.kept[:known].astype(np.float32) - picture) ** 2).mean(axis=1)
        return float(np.sqrt(np.partition(squares, nearest - 1)[nearest - 1])) / 255

    def add(self, picture: np.ndarray) -> None:
        self.kept[self.asked % len(self.kept)] = picture
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
