"""Images kept on disk: decoded row by row as they are asked for, each checked by its hash before it is used."""

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from robustlib.datasets.file_stamps import stamp

SUM_BYTES = 16
NOT_THERE = bytes(SUM_BYTES)
ROWS_AT_ONCE = 256  # decoded between two writes to the disk
ATTEMPTS = 3

Decode = Callable[[np.ndarray], Iterator[np.ndarray]]
Check = Callable[[np.ndarray], None]


class Pixels:
    """Images, uint8, shape (N, C, H, W), indexed by a slice or by an array of rows, which gives an array of its own.

    folder: with x.bin, which is sparse where nothing was decoded, and x.sums, a hash of each row that was. A row is
    checked by it once a process, and again where the file has changed since. decode: gives these rows, which rise, in
    turn; for what is missing or damaged. check: raises where that is not what they should be, before it is kept.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], decode: Decode, check: Check):
        self.folder = folder
        self.decode = decode
        self.check = check
        self.n, self.channels, self.height, self.width = shape
        self.stored = self.map()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.n, self.channels, self.height, self.width

    def __len__(self) -> int:
        return self.n

    def map(self) -> np.ndarray:
        """The file as it lies there now, of which nothing is known yet."""
        ensure_files(self.folder, self.shape)
        self.state, self.sure = state_of(self.folder)
        self.sound = np.zeros(self.n, dtype=bool)  # rows that this process has checked
        return np.memmap(self.folder / "x.bin", np.uint8, mode="r", shape=self.shape)

    def __getitem__(self, rows: Any) -> np.ndarray:
        chosen = np.arange(len(self))[rows]
        self.ensure(chosen)
        return np.array(self.stored[rows if isinstance(rows, slice) else chosen])

    def ensure(self, rows: np.ndarray) -> None:
        """See that these rows are there and sound. Raises ValueError for what cannot be decoded."""
        rows = np.unique(rows)
        for _ in range(ATTEMPTS):
            self.recheck()
            fresh = rows[~self.sound[rows]]
            if not len(fresh):
                return
            sums = (self.folder / "x.sums").read_bytes()
            self.sound[[row for row in fresh.tolist() if self.is_sound(row, sums)]] = True
            missing = fresh[~self.sound[fresh]]
            if not len(missing):
                return
            self.fill(missing)
        raise ValueError(f"{self.folder} does not keep what is written there: look to the disk, or set ROBUSTQ_HOME")

    def recheck(self) -> None:
        """Forget what was checked where others have written to the file since, or may have without a trace."""
        state, sure = state_of(self.folder)
        if is_another(state, self.state):  # the cache was made again
            self.stored = self.map()
        elif state != self.state or not self.sure:
            self.sound[:] = False
            self.state, self.sure = state, sure

    def is_sound(self, row: int, sums: bytes) -> bool:
        stored = sums[row * SUM_BYTES : (row + 1) * SUM_BYTES]
        return stored != NOT_THERE and stored == checksum(self.stored[row])

    def fill(self, rows: np.ndarray) -> None:
        """Decode rows into the file. Processes that do so at the same time write the same."""
        images = self.decode(rows)
        for chosen in np.split(rows, range(ROWS_AT_ONCE, len(rows), ROWS_AT_ONCE)):
            try:
                decoded = {row: next(images) for row in chosen.tolist()}
            except (OSError, ValueError):
                self.check(chosen)  # a file that has changed meanwhile is said to have, and not to be damaged
                raise
            self.check(chosen)
            write(self.folder, decoded, self.shape)

    def whole(self) -> np.ndarray:
        """All of them, decoded, as a map of the file that copies what is written to."""
        while True:
            self.ensure(np.arange(len(self)))
            # Mode "c" maps the file and never writes it, but lets torch share the memory without a warning.
            found = np.memmap(self.folder / "x.bin", np.uint8, mode="c", shape=self.shape)
            if not is_another(state_of(self.folder)[0], self.state):  # and not another that was made meanwhile
                return found


def state_of(folder: Path) -> tuple[str, bool]:
    """The stamp of the file of the images, empty where there is none; whether each later change is seen in it."""
    try:
        return stamp(folder / "x.bin")
    except OSError:
        return "", False


def is_another(state: str, before: str) -> bool:
    """Whether the file is another one, or of another size, and not only written to."""
    return state.split("|")[:2] != before.split("|")[:2]


def checksum(image: np.ndarray) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=SUM_BYTES).digest()


def write(folder: Path, images: dict[int, np.ndarray], shape: tuple[int, ...]) -> None:
    """Write rows, then their hashes: whoever finds a hash finds the row, or sees that it is damaged."""
    with (folder / "x.bin").open("r+b") as file:
        for row, image in images.items():
            if image.shape != shape[1:]:
                raise ValueError(f"expected an image of shape {shape[1:]}, got {image.shape}")
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


def ensure_files(folder: Path, shape: tuple[int, ...]) -> None:
    """See that the two files are there in full length, with nothing where they were cut off."""
    for name, size in (("x.bin", math.prod(shape)), ("x.sums", shape[0] * SUM_BYTES)):
        path = folder / name
        if not path.is_file() or path.stat().st_size < size:
            folder.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.truncate(size)


def create_files(folder: Path, shape: tuple[int, ...]) -> None:
    """The two files for this many images, of which none is there yet."""
    with (folder / "x.bin").open("wb") as file:
        file.truncate(math.prod(shape))
    (folder / "x.sums").write_bytes(bytes(shape[0] * SUM_BYTES))


def store_images(folder: Path, x: np.ndarray) -> None:
    """The two files of images that are there at once."""
    np.ascontiguousarray(x).tofile(folder / "x.bin")
    (folder / "x.sums").write_bytes(b"".join(checksum(image) for image in x))
