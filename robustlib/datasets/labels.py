"""Labels as files hold them, numbers or text, and the classes that they stand for."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robustlib.number_text import counted

UNLABELLED = -1  # what sets without labels hold in their place
REMAP = "`classes: remap` numbers those that there are, rising"


@dataclass(frozen=True)
class Labels:
    """The labels of a file: its different values, and for each row the place among them, -1 for none."""

    file: Path
    values: list[int] | list[str]
    codes: np.ndarray

    def __len__(self) -> int:
        return len(self.codes)

    def known(self) -> list[int] | list[str]:
        """Its values, without any where it is wholly unlabelled."""
        return [] if self.values == [UNLABELLED] else self.values


@dataclass(frozen=True)
class Classes:
    """names: of the classes, in order.  numbers: of each label that stands for one."""

    names: list[str]
    numbers: dict[Any, int]


def classes_of(where: str, found: Iterable[Labels], names: Sequence[str] | None, *, remap: bool) -> Classes:
    """The classes of a data set, from the labels of all its files. where: data set and column, for messages.

    Texts become classes in their order, in that of the numbers where all are numbers. Raises ValueError for numbers
    that are not those from 0 to one less than there are, unless they are numbered anew or have names.
    """
    if names is not None and not remap:
        return Classes(list(names), first_places(names) | {k: k for k in range(len(names))})
    values = {value for labels in found for value in labels.known()}
    texts = {value for value in values if isinstance(value, str)}
    if texts and len(texts) < len(values):
        raise ValueError(f"{where} holds numbers in some files and text in others: expected the same in all")
    if texts:
        ordered = by_number_or_text(texts) if names is None else [name for name in names if name in texts]
        return Classes(ordered, first_places(ordered))
    whole = sorted(value for value in values if isinstance(value, int))
    if names is not None:
        kept = [value for value in whole if 0 <= value < len(names)]
        return Classes([names[value] for value in kept], {value: k for k, value in enumerate(kept)})
    if not remap:
        whole = [value for value in whole if value >= 0]  # what is below is refused in the split that is read
        check_without_holes(where, whole)
    return Classes([str(value) for value in whole], {value: k for k, value in enumerate(whole)})


def first_places(names: Sequence[str]) -> dict[Any, int]:
    """Each name's place: the first, where it occurs twice, as in ImageNet."""
    return {name: k for k, name in reversed(list(enumerate(names)))}


def by_number_or_text(texts: Iterable[str]) -> list[str]:
    """Rising: as numbers where all are whole numbers, else as text."""
    if all(re.fullmatch(r"[+-]?[0-9]{1,18}", text) for text in texts):
        return sorted(texts, key=lambda text: (int(text), text))
    return sorted(texts)


def check_without_holes(where: str, whole: Sequence[int]) -> None:
    if whole and whole != list(range(len(whole))):
        raise ValueError(
            f"{where}: labels from {whole[0]} to {whole[-1]}, {len(whole)} different ones: expected 0 to "
            f"{len(whole) - 1} without holes; {REMAP}"
        )


def y_of(where: str, split: str, found: Sequence[Labels], classes: Classes) -> np.ndarray:
    """The classes of a split's images, int64. Raises ValueError for images without label, and labels without class."""
    total = sum(len(labels) for labels in found)
    check_labelled(where, split, found, total)
    present: set[Any] = set().union(*(labels.values for labels in found))
    strange = sorted(present - set(classes.numbers), key=lambda value: (isinstance(value, int), value))
    if strange and isinstance(strange[0], str):
        some = ", ".join(repr(label) for label in strange[:3])
        raise ValueError(
            f"{where}: {some} in the {split} split is none of the {counted(len(classes.names), 'class', 'classes')}"
        )
    if strange:
        hint = "; -1 often marks an image without a label" if UNLABELLED in strange else ""
        last = len(classes.names) - 1
        raise ValueError(f"{where}: labels from {min(present)} to {max(present)}, expected 0 to {last}{hint}")
    parts = [np.array([classes.numbers[value] for value in labels.values], np.int64)[labels.codes] for labels in found]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def check_labelled(where: str, split: str, found: Sequence[Labels], total: int) -> None:
    missing = sum(int((labels.codes < 0).sum()) for labels in found)
    mend = "`split: NAME` (--split NAME) evaluates on another split"
    if missing == total > 0 or {value for labels in found for value in labels.values} == {UNLABELLED}:
        what = "null or empty" if missing else "-1"
        raise ValueError(f"{where}: every label of the {split} split is {what}, it is unlabelled: {mend}")
    if missing:
        labels = next(labels for labels in found if (labels.codes < 0).any())
        row = int(np.argmax(labels.codes < 0))
        are = counted(missing, f"of {total} labels is", f"of {total} labels are")
        raise ValueError(
            f"{where}: {are} null or empty, the first in {labels.file}, row {row}: expected a label for each image"
        )


def check_guess(where: str, found: Sequence[Labels]) -> None:
    """Raises ValueError where a column that nothing names as the label has another value for every image."""
    total = sum(len(labels) for labels in found)
    values = {value for labels in found for value in labels.values}
    if len(values) == total > 1:
        raise ValueError(
            f"{where}: another value for each of {total} images, and nothing says that it is the label: "
            "`label: NAME` (--label NAME) names the label"
        )
