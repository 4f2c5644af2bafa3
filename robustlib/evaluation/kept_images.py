"""The attacked images of an evaluation that are wanted once it is over; the others go with their batch."""

import numpy as np
import torch
from torch import Tensor

from robustlib.checks.evaluation_checks import ROUNDED, to_round
from robustlib.outcome import Batch


class KeptImages:
    """Attacked images at one radius, on the CPU: the first ones, which are stored, and those that checks round.

    All of them, at all radii, may take more memory than there is.
    """

    def __init__(self, first: int):
        self.first = first
        self.places: list[Tensor] = []
        self.images: list[Tensor] = []
        self.seen = self.rounded = 0

    def add(self, batch: Batch) -> None:
        """The next batch, in the outcome's order."""
        count = len(batch.outcome.index)
        wanted = np.arange(self.seen, self.seen + count) < self.first
        rounded = to_round(batch.outcome)[: ROUNDED - self.rounded]
        wanted[rounded] = True
        rows = torch.from_numpy(np.flatnonzero(wanted))
        self.places.append(rows + self.seen)
        self.images.append(batch.x_adv[rows.to(batch.x_adv.device)].cpu())
        self.rounded += len(rounded)
        self.seen += count

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Images by their places in the outcome, of those that are kept."""
        return torch.cat(self.images)[torch.searchsorted(torch.cat(self.places), rows)]

    def first_images(self) -> Tensor:
        """The first ones, as many as were asked for and there are."""
        return self[torch.arange(min(self.first, self.seen))]
