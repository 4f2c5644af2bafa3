"""The earlier reading of Parquet files: sets still read so keep their fingerprint, others get a new one."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from robustlib.datasets.labels import Labels
from robustlib.datasets.parquet_files import Shard
from robustlib.datasets.source import TEST


def read_as_before(
    shards: Mapping[str, Sequence[Shard]],
    image: tuple[str, ...],
    label: tuple[str, ...],
    names: Sequence[str],
    labels_of: Callable[[Iterable[Shard]], Iterable[Labels]],
) -> bool:
    """Whether the first struct with bytes, the first integer column with "label" in its name (or else the first one),
    and the names in each split's first file come to the columns and classes that are taken now.

    labels_of: the labels of these files, asked for only where the classes have no names.
    """
    for listed in shards.values():
        first = listed[0]
        if first.schema is None:
            continue
        if columns_before(first.schema) != (image, label):
            return False
        if (named := names_before(first.schema.metadata, label[0])) is not None:
            if named != list(names):
                return False
        elif not are_numbers_before(names, labels_of(counted(shards))):
            return False
    return True


def columns_before(schema: Any) -> tuple[Any, Any]:
    import pyarrow as pa

    structs = [f.name for f in schema if pa.types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0]
    whole = [f.name for f in schema if pa.types.is_integer(f.type)]
    label = next((name for name in whole if "label" in name), whole[0] if whole else None)
    return (structs[0], "bytes") if structs else None, (label,)


def names_before(metadata: dict[bytes, bytes] | None, label: str) -> list[str] | None:
    try:
        about = json.loads((metadata or {}).get(b"huggingface", b"{}"))
        names = about.get("info", {}).get("features", {}).get(label, {}).get("names")
        return [str(name) for name in names] if names else None
    except (ValueError, AttributeError, TypeError, RecursionError):
        return []


def counted(shards: Mapping[str, Sequence[Shard]]) -> list[Shard]:
    """The files whose labels told how many classes there are."""
    usual = [shard for split in ("train", TEST) for shard in shards.get(split, ())]
    return usual or [shard for listed in shards.values() for shard in listed]


def are_numbers_before(names: Sequence[str], found: Iterable[Labels]) -> bool:
    """Whether the names are the numbers up to the largest label, which may be huge."""
    most = max((value for labels in found for value in labels.values if isinstance(value, int)), default=0)
    return len(names) == max(most, 0) + 1 and all(name == str(number) for number, name in enumerate(names))
