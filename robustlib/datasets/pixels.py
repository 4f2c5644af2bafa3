"""Images kept on disk: decoded row by row as they are asked for, each checked by its hash before it is used."""

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SUM_BYTES = 16
NOT_THERE = bytes(SUM_BYTES)
ROWS_AT_ONCE = 256  # decoded between two writes to the disk

Decode = Callable[[np.ndarray], Iterator[np.ndarray]]
Check = Callable[[np.ndarray], None]


class Pixels:
    """Images, uint8, shape (N, C, H, W), indexed by a slice or by an array of rows, which gives an array of its own.

    folder: with x.bin, which is sparse where nothing was decoded, and x.sums, a hash of each row that was. A row is
    checked by it once a process. decode: gives these rows, which rise, in turn; for what is missing or damaged.
    check: raises where that is not what they should be, before it is kept.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], decode: Decode, check: Check):
        self.folder = folder
        self.decode = decode
        self.check = check
        self.stored = np.memmap(folder / "x.bin", np.uint8, mode="r", shape=shape)
        self.sound = np.zeros(len(self.stored), dtype=bool)  # rows that this process has checked

    @property
    def shape(self) -> tuple[int, int, int, int]:
        n, channels, height, width = self.stored.shape
        return n, channels, height, width

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, rows: Any) -> np.ndarray:
        chosen = np.arange(len(self))[rows]
        self.need(chosen)
        return np.array(self.stored[rows if isinstance(rows, slice) else chosen])

    def need(self, rows: np.ndarray) -> None:
        """See that these rows are there and sound. Raises ValueError for what cannot be decoded."""
        fresh = np.unique(rows)
        fresh = fresh[~self.sound[fresh]]
        if not len(fresh):
            return
        sums = (self.folder / "x.sums").read_bytes()
        there = [row for row in fresh.tolist() if self.is_sound(row, sums)]
        self.sound[there] = True
        missing = fresh[~self.sound[fresh]]
        if len(missing):
            self.fill(missing)

    def is_sound(self, row: int, sums: bytes) -> bool:
        stored = sums[row * SUM_BYTES : (row + 1) * SUM_BYTES]
        return stored != NOT_THERE and stored == checksum(self.stored[row])

    def fill(self, rows: np.ndarray) -> None:
        """Decode rows into the file. Processes that do so at the same time write the same."""
        images = self.decode(rows)
        for chosen in np.split(rows, range(ROWS_AT_ONCE, len(rows), ROWS_AT_ONCE)):
            decoded = {row: next(images) for row in chosen.tolist()}
            self.check(chosen)
            write(self.folder, decoded, self.stored)
            self.sound[chosen] = True

    def whole(self) -> np.ndarray:
        """All of them, decoded, as a map of the file that copies what is written to."""
        self.need(np.arange(len(self)))
        # Mode "c" maps the file and never writes it, but lets torch share the memory without a warning.
        return np.memmap(self.folder / "x.bin", np.uint8, mode="c", shape=self.shape)


def checksum(image: np.ndarray) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=SUM_BYTES).digest()


def write(folder: Path, images: dict[int, np.ndarray], like: Any) -> None:
    """Write rows, then their hashes: whoever finds a hash finds the row, or sees that it is damaged."""
    with (folder / "x.bin").open("r+b") as file:
        for row, image in images.items():
            if image.shape != like.shape[1:]:
                raise ValueError(f"expected an image of shape {like.shape[1:]}, got {image.shape}")
            file.seek(row * image.nbytes)
            file.write(image.tobytes())
        file.flush()
        os.fsync(file.fileno())
    with (folder / "x.sums").open("r+b") as file:
        for row, image in images.items():
            file.seek(row * SUM_BYTES)
            file.write(checksum(image))
        file.flush()
        os.fsync(file.fileno())


def make_room(folder: Path, shape: tuple[int, ...]) -> None:
    """The two files for this many images, of which none is there yet."""
    with (folder / "x.bin").open("wb") as file:
        file.truncate(math.prod(shape))
    (folder / "x.sums").write_bytes(bytes(shape[0] * SUM_BYTES))


def keep(folder: Path, x: np.ndarray) -> None:
    """The two files of images that are there at once."""
    np.ascontiguousarray(x).tofile(folder / "x.bin")
    (folder / "x.sums").write_bytes(b"".join(checksum(image) for image in x))
