"""Bytes from a column of Parquet files, row by row: never a whole row group in memory, nothing read twice in turn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustlib.datasets.parquet_files import Shard, field, readable

BATCH_BYTES = 8 * 2**20  # of images read together
BUFFER_BYTES = 2**20  # read from a file at once: without, pyarrow reads a row group's whole column


@dataclass(frozen=True)
class Group:
    """A row group: its file, place there, and rows. batch: how many are read together."""

    shard: Shard
    place: int
    start: int
    end: int
    batch: int


class Cells:
    """The bytes in one column, over the rows of all files. path: its name, then those of fields within structs."""

    def __init__(self, shards: Sequence[Shard], path: tuple[str, ...]):
        self.path = path
        self.groups = list(groups_of(shards, ".".join(path)))
        self.starts = np.array([group.start for group in self.groups], dtype=np.int64)
        self.cursor: Cursor | None = None

    def fetch(self, rows: np.ndarray) -> Iterator[bytes | None]:
        """The bytes of these rows, which rise, in turn. Goes on from where the last fetch ended, if that lies ahead."""
        cursor, self.cursor = self.cursor, None  # who fetches at the same time opens a cursor of its own
        try:
            for row in rows.tolist():
                if cursor is None or not cursor.place <= row < cursor.group.end:
                    group = self.groups[int(np.searchsorted(self.starts, row, side="right")) - 1]
                    cursor = Cursor(group, self.path, cursor)
                yield cursor.at(row)
        finally:
            self.cursor = cursor

    def where(self, row: int) -> str:
        """A row in words: its file, and its place there."""
        group = self.groups[int(np.searchsorted(self.starts, row, side="right")) - 1]
        first = next(other for other in self.groups if other.shard is group.shard)
        return f"{group.shard.path}, row {row - first.start}"


def groups_of(shards: Sequence[Shard], name: str) -> Iterator[Group]:
    start = 0
    for shard in shards:
        for place in range(shard.metadata.num_row_groups):
            about = shard.metadata.row_group(place)
            columns = (about.column(i) for i in range(about.num_columns))
            size = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == name)
            end = start + about.num_rows
            batch = int(np.clip(BATCH_BYTES * about.num_rows // max(size, 1), 1, 1024))
            yield Group(shard, place, start, end, batch)
            start = end


class Cursor:
    """A place in a row group, from which rows are read on. place: the first row of the batch that is in memory."""

    def __init__(self, group: Group, path: tuple[str, ...], before: "Cursor | None"):
        self.group, self.path, self.place, self.values = group, path, group.start, ()
        same = before is not None and before.group.shard is group.shard
        with readable(group.shard.path):
            self.file: Any = before.file if before is not None and same else opened(group.shard)
            columns = [".".join(path)]
            self.batches = self.file.iter_batches(
                group.batch, row_groups=[group.place], columns=columns, use_threads=False
            )

    def at(self, row: int) -> bytes | None:
        """The bytes of a row, at or after those asked for before."""
        while row >= self.place + len(self.values):
            self.place += len(self.values)
            with readable(self.group.shard.path):
                self.values = field(next(self.batches).column(0), self.path[1:])
        return self.values[row - self.place].as_py()


def opened(shard: Shard) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(shard.path, metadata=shard.metadata, pre_buffer=False, buffer_size=BUFFER_BYTES)
