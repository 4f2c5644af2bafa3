"""Metadata that Hugging Face's `datasets` writes into Parquet files: the kinds of columns, the names of classes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

CLASS, CLASSES, IMAGE = "ClassLabel", "a list of ClassLabel", "Image"
MOST_CLASSES = 1_000_000  # a count above that is no count of classes


@dataclass(frozen=True)
class Feature:
    """A column's kind, and its classes' names where it has some."""

    kind: str
    names: tuple[str, ...] | None = None


def features(metadata: dict[bytes, bytes] | None) -> dict[str, Feature]:
    """Columns by name, a struct's fields as `column.field`; none where the metadata are damaged.

    As https://huggingface.co/docs/datasets/about_dataset_features has them, in a file or in a data set's card.
    """
    try:
        about: Any = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    except (ValueError, RecursionError):
        return {}
    for step in ("info", "features"):
        about = about.get(step) if isinstance(about, dict) else None
    return dict(flat(about, ""))


def flat(about: Any, prefix: str) -> Iterator[tuple[str, Feature]]:
    """Of an object of columns, or a list of columns that say their names."""
    named = about.items() if isinstance(about, dict) else []
    if isinstance(about, list):
        named = [(entry.get("name"), entry) for entry in about if isinstance(entry, dict)]
    for name, entry in named:
        if not isinstance(name, str):
            continue
        yield f"{prefix}{name}", feature(entry)
        if isinstance(entry, dict):
            inner = entry.get("struct", entry if not {"_type", "dtype"} & set(entry) else None)
            yield from flat(inner, f"{prefix}{name}.")


def feature(entry: Any) -> Feature:
    """One column as a file says it (`_type`), or a card (`dtype`)."""
    if isinstance(entry, list):  # how lists were written once: with the kind of what is in them
        return Feature(CLASSES if entry and feature(entry[0]).kind == CLASS else "")
    if not isinstance(entry, dict):
        return Feature(IMAGE if entry == "image" else "")
    dtype = entry.get("dtype")
    if isinstance(dtype, dict) and "class_label" in dtype:
        return Feature(CLASS, class_names(dtype["class_label"]))
    if entry.get("_type") == CLASS:
        return Feature(CLASS, class_names(entry))
    if entry.get("_type") == IMAGE or dtype == "image":
        return Feature(IMAGE)
    inside = next((entry[key] for key in ("feature", "sequence", "list") if key in entry), None)
    if isinstance(inside, dict) and ("class_label" in inside or feature(inside).kind == CLASS):
        return Feature(CLASSES)
    return Feature("")


def class_names(about: Any) -> tuple[str, ...] | None:
    """Names in order, from a list or from an object by number; numbers where only their count is given."""
    if not isinstance(about, dict):
        return None
    names, count = about.get("names"), about.get("num_classes")
    if isinstance(names, dict):
        by_number = {int(key): name for key, name in names.items() if key.isdecimal()}
        complete = sorted(by_number) == list(range(len(names)))
        names = [by_number[number] for number in range(len(names))] if complete else None
    if isinstance(names, list) and names and all(isinstance(name, str | int | float) for name in names):
        return tuple(str(name) for name in names)
    if isinstance(count, int) and 0 < count <= MOST_CLASSES:
        return tuple(str(number) for number in range(count))
    return None
