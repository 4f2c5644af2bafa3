"""The columns of a table with images and with labels: named by the user or the file, never guessed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robustlib.datasets.huggingface import CLASS, CLASSES, IMAGE, Feature
from robustlib.names import did_you_mean

LABELS = ("label", "labels", "class", "target", "y")
IMAGES = ("image", "images", "img", "picture", "photo", "jpg", "jpeg", "png", "webp")
PATHS = ("path", "file", "filename", "filepath", "url", "uri", "src")
MOST_NAMED = 20  # columns in a message


@dataclass(frozen=True)
class Column:
    """A column, or with more names a field within a struct.  how: in words, where it follows from its kind alone."""

    path: tuple[str, ...]
    how: str = ""

    @property
    def name(self) -> str:
        return ".".join(self.path)


@dataclass(frozen=True)
class Columns:
    """The columns of all files of a data set: name to the Arrow types that they have there, most often one.

    features: what Hugging Face's metadata say of them.  twice: names that a file has more than once.
    """

    dataset: str
    kinds: dict[str, list[Any]]
    features: dict[str, Feature]
    twice: frozenset[str] = frozenset()

    def of_kind(self, test: Any) -> list[str]:
        return [name for name, kinds in self.kinds.items() if all(test(kind) for kind in kinds)]

    def described_as(self, kind: str) -> list[str]:
        return [name for name in self.kinds if name in self.features and self.features[name].kind == kind]

    def listed(self) -> str:
        shown = [f"{name} ({short(kinds[0])})" for name, kinds in self.kinds.items()]
        more = f" and {len(shown) - MOST_NAMED} more" if len(shown) > MOST_NAMED else ""
        return f"{', '.join(shown[:MOST_NAMED])}{more}"


def image_column(columns: Columns, asked: str | None) -> Column:
    """The column asked for, the one that the metadata describe so, or else by its kind and name."""
    named = [name for name in columns.kinds if name.casefold() in IMAGES]
    steps = [
        (columns.described_as(IMAGE), ""),
        (columns.of_kind(is_picture), ""),
        (named, ""),
        (columns.of_kind(is_bytes), "the only one of bytes"),
    ]
    return pick(columns, "image", asked, steps, expected="a column of images as bytes (PNG or JPEG)")


def label_column(columns: Columns, asked: str | None, image: Column) -> Column:
    """The column asked for, the one that the metadata describe so, one by its name, or the only one of its kind."""
    others = [name for name in columns.kinds if name != image.path[0] and not name.startswith("__index_level_")]
    whole, texts = columns.of_kind(is_whole), columns.of_kind(is_text)
    steps = [
        (columns.described_as(CLASS), ""),
        ([name for name in others if name.casefold() in LABELS], ""),
        (columns.described_as(CLASSES), ""),
        ([name for name in others if name in whole], "the only one of whole numbers"),
        ([name for name in others if name in texts and not is_path(name)], "the only one of text"),
    ]
    return pick(columns, "label", asked, steps, expected="a column of labels")


def pick(
    columns: Columns, what: str, asked: str | None, steps: Sequence[tuple[list[str], str]], *, expected: str
) -> Column:
    mend = f"`{what}: NAME` (--{what} NAME) says which"
    if asked is not None:
        return Column(path_of(columns, what, asked))
    for found, how in steps:
        if len(found) > 1 or set(found) & columns.twice:
            raise ValueError(
                f"dataset {columns.dataset}: more than one column may be the {what}: "
                f"{', '.join(found)}: {mend}, of {columns.listed()}"
            )
        if found:
            return Column((found[0],), how)
    raise ValueError(
        f"dataset {columns.dataset}: expected {expected}, found none that is plain among {columns.listed()}: {mend}"
    )


def path_of(columns: Columns, what: str, asked: str) -> tuple[str, ...]:
    """A column by its name, or a struct's field as `column.field`."""
    first, *fields = (asked,) if asked in columns.kinds else asked.split(".")
    if first not in columns.kinds:
        raise ValueError(
            f"dataset {columns.dataset}: there is no column {asked!r} to take as the {what}: expected one of "
            f"{columns.listed()}{did_you_mean(first, columns.kinds)}"
        )
    if first in columns.twice:
        raise ValueError(f"dataset {columns.dataset}: a file has several columns {first!r}: expected one of that name")
    return (first, *fields)


def leaf(kind: Any, path: Sequence[str]) -> Any:
    """The type at the end of a path within a column's type; None where there is none."""
    import pyarrow as pa

    for field in path:
        if not pa.types.is_struct(kind) or kind.get_field_index(field) < 0:
            return None
        kind = kind.field(kind.get_field_index(field)).type
    return kind


def check_labels(columns: Columns, label: Column) -> None:
    """Raises ValueError for a column that has not one number or text an image."""
    for kind in columns.kinds[label.path[0]]:
        found = leaf(kind, label.path[1:])
        if is_list(kind) or is_list(found):
            problem = f"lists of labels ({short(kind)})"
            raise ValueError(
                f"dataset {columns.dataset}: column {label.name!r} holds {problem}, expected one label an image: "
                f"`label: NAME` (--label NAME) takes another, of {columns.listed()}"
            )
        if found is None or not any(test(found) for test in (is_whole, is_text, is_other_number)):
            got = "no such field" if found is None else short(found)
            raise ValueError(
                f"dataset {columns.dataset}: column {label.name!r}: expected whole numbers or text, got {got}: "
                f"`label: NAME` (--label NAME) takes another, of {columns.listed()}"
            )


def bytes_within(columns: Columns, image: Column) -> Column:
    """The column of bytes itself, which may be the field `bytes` of a struct. Raises ValueError for other columns."""
    leaves = set()
    for kind in columns.kinds[image.path[0]]:
        found = leaf(kind, image.path[1:])
        if found is not None and is_picture(found):
            leaves.add((*image.path, "bytes"))
        elif found is not None and is_bytes(found):
            leaves.add(image.path)
        else:
            got = "no such field" if found is None else "lists" if is_list(found) else short(found)
            raise ValueError(
                f"dataset {columns.dataset}: column {image.name!r}: expected one image a row, as bytes or as "
                f"struct<bytes, path>, got {got}: `image: NAME` (--image NAME) takes another, of {columns.listed()}"
            )
    if len(leaves) > 1:
        raise ValueError(
            f"dataset {columns.dataset}: column {image.name!r} holds bytes in some files and struct<bytes, path> in "
            "others: expected the same in all"
        )
    return Column(leaves.pop(), image.how)


def plain(kind: Any) -> Any:
    """The type of the values themselves, however they are written."""
    import pyarrow as pa

    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_whole(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_integer(plain(kind))


def is_text(kind: Any) -> bool:
    import pyarrow as pa

    return any(test(plain(kind)) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def is_other_number(kind: Any) -> bool:
    """Types whose values may be whole numbers, but that nobody would take labels from unasked."""
    import pyarrow as pa

    return any(test(plain(kind)) for test in (pa.types.is_boolean, pa.types.is_floating, pa.types.is_decimal))


def is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return any(test(plain(kind)) for test in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view))


def is_picture(kind: Any) -> bool:
    """A struct with the field `bytes`, as Hugging Face writes images."""
    import pyarrow as pa

    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and is_bytes(leaf(kind, ["bytes"]))


def is_list(kind: Any) -> bool:
    import pyarrow as pa

    return kind is not None and (pa.types.is_nested(kind) and not pa.types.is_struct(kind))


def is_path(name: str) -> bool:
    return name.casefold().replace("_", "").removeprefix("image").removeprefix("img") in PATHS


def short(kind: Any) -> str:
    """A type in a word: a struct's fields may be many."""
    import pyarrow as pa

    return "struct" if pa.types.is_struct(kind) else "list" if is_list(kind) else str(kind)
