"""Hugging Face image columns in Parquet files."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from robustlib.datasets.earlier_parquet import read_as_before
from robustlib.datasets.huggingface import Feature, features
from robustlib.datasets.labels import Classes, Labels, check_guess, classes_of, y_of
from robustlib.datasets.parquet_files import Shard, read_footer, read_labels
from robustlib.datasets.parquet_rows import Cells
from robustlib.datasets.source import AS_IT_IS, TEST, Pictures, Reading, Source
from robustlib.datasets.splits import find_splits
from robustlib.datasets.table_columns import Columns, bytes_within, check_labels, image_column, label_column


def parquet(path: Path, reading: Reading = AS_IT_IS) -> Source:
    """Hugging Face image columns: a folder with train*.parquet and test*.parquet (also in data/), or one file."""
    dataset, notes = f"parquet:{path}", ()
    if path.is_file():
        splits, files = {TEST: [path]}, {TEST: [(path.name, path)]}
    else:
        found = find_splits(path, dataset, (".parquet",))
        splits, notes = found.files, found.notes
        files = {split: [(f"{split}/{file.name}", file) for file in listed] for split, listed in splits.items()}
    table = Table(dataset, {split: [read_footer(file) for file in listed] for split, listed in splits.items()}, reading)
    return Source(table.reader, files, tuple(splits), table.read, (*notes, *table.notes()))


class Table:
    """The Parquet files of a data set, by split, and which of their columns hold what."""

    def __init__(self, dataset: str, shards: Mapping[str, Sequence[Shard]], reading: Reading):
        self.shards, self.reading = shards, reading
        columns = columns_of(dataset, self.everything())
        image = image_column(columns, reading.image)
        self.image = bytes_within(columns, image)
        self.label = label_column(columns, reading.label, image)
        check_labels(columns, self.label)
        self.where = f"dataset {dataset}, column {self.label.name!r}"
        self.kept: dict[Path, Labels] = {}

    def labels(self, shard: Shard) -> Labels:
        """Of a file, read once."""
        if shard.path not in self.kept:
            self.kept[shard.path] = read_labels(shard, self.label.path)
        return self.kept[shard.path]

    def labels_among(self, shards: Iterable[Shard]) -> Iterator[Labels]:
        """Of these files, as far as they have the column: a split without labels may be among them."""
        for shard in shards:
            if shard.broken or self.label.path[0] in shard.schema.names:
                yield self.labels(shard)

    def everything(self) -> list[Shard]:
        return list(chain(*self.shards.values()))

    @cached_property
    def classes(self) -> Classes:
        if self.label.how:
            check_guess(self.where, list(self.labels_among(self.everything())))
        names, found = names_of(self.everything(), self.label.name), self.labels_among(self.everything())
        return classes_of(self.where, found, names, remap=self.reading.classes == "remap")

    @property
    def reader(self) -> str:
        """With what sets it apart, where columns or classes are others than they were taken for once."""
        names = self.classes.names
        if read_as_before(self.shards, self.image.path, self.label.path, names, self.labels_among):
            return "parquet"
        taken = json.dumps([self.image.path, self.label.path, names])
        return f"parquet/{hashlib.sha256(taken.encode()).hexdigest()}"

    def notes(self) -> Iterator[str]:
        for what, column in (("images", self.image), ("labels", self.label)):
            if column.how:
                yield f"{what} are in column {column.name!r}, {column.how}"

    def read(self, split: str) -> Pictures:
        for shard in self.shards[split]:
            shard.check()
        shards = [shard for shard in self.shards[split] if len(shard)]
        if not shards:
            raise ValueError(f"the dataset holds no image: {self.shards[split][0].path} has no row")
        for shard in shards:
            if self.image.path[0] not in shard.schema.names:
                raise ValueError(f"{shard.path} has no column {self.image.path[0]!r}, as others of the data set have")
        y = y_of(self.where, split, [self.labels(shard) for shard in shards], self.classes)
        cells = Cells(shards, self.image.path)
        return Pictures(y, self.classes.names, cells.fetch, cells.where, self.reading)


def columns_of(dataset: str, shards: Sequence[Shard]) -> Columns:
    """Those of all files that hold rows and can be read. Raises ValueError where there is none."""
    import pyarrow as pa

    kinds: dict[str, list[Any]] = {}
    twice: set[str] = set()
    described: dict[str, Feature] = {}
    full = [shard for shard in shards if len(shard)]
    for shard in full:
        for column in shard.schema:
            known = kinds.setdefault(column.name, [])
            known += [column.type] if column.type not in known else []
        twice |= {name for name in shard.schema.names if shard.schema.names.count(name) > 1}
        described = features_of(shard) | described
    if not full:
        for shard in shards:
            shard.check()
        raise ValueError(f"the dataset holds no image: {shards[0].path} has no row")
    # A column of nulls alone is of a type of its own, whatever it is elsewhere.
    kinds = {name: [k for k in known if not pa.types.is_null(k)] or known for name, known in kinds.items()}
    return Columns(dataset, kinds, described, frozenset(twice))


def features_of(shard: Shard) -> dict[str, Feature]:
    return {} if shard.schema is None else features(shard.schema.metadata)


def names_of(shards: Sequence[Shard], label: str) -> tuple[str, ...] | None:
    """The classes' names. Raises ValueError where files name them otherwise."""
    first: tuple[Shard, tuple[str, ...]] | None = None
    for shard in shards:
        feature = features_of(shard).get(label)
        if feature is None or feature.names is None:
            continue
        first = first or (shard, feature.names)
        if feature.names != first[1]:
            raise ValueError(
                f"{first[0].path} and {shard.path} name the classes of column {label!r} otherwise: expected the same "
                "names in all files of a data set"
            )
    return first and first[1]
