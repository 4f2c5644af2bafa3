"""A folder for each class, as torchvision's ImageFolder reads them, within folders for the splits."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from robustlib.datasets.folder_classes import check_classes, class_names, classes_in, notes_of
from robustlib.datasets.folder_layout import check_images, split_folders
from robustlib.datasets.folder_tree import IMAGES, Folder, Parts, ending_of, first_names, printable, read_tree
from robustlib.datasets.source import AS_IT_IS, SPLITS, TEST, Pictures, Reading, Source


def class_folders(path: Path, reading: Reading = AS_IT_IS) -> Source:
    """PATH/train/CLASS/*.png and PATH/test/CLASS/*, or PATH/CLASS/* for a test split alone.

    Folders named by another word for a split are that split, a wrapper around all is looked into. Only files whose
    names end like images' count, as in torchvision's ImageFolder; hidden ones never do. Raises ValueError for what is
    not plain.
    """
    where = f"dataset folder:{path}"
    if path.is_file():
        raise ValueError(f"{where}: expected a folder, got a file: unpack it, or use parquet:PATH for a Parquet file")
    root = read_tree(path)
    check_images(root, where)
    found, passed = split_folders(root, where)
    splits = {split: found[split] for split in SPLITS if split in found}
    check_classes(splits, where)
    names, listing = class_names(splits), {split: images(folder) for split, folder in splits.items()}
    files = {
        split: [(printable("/".join(parts)), path.joinpath(*parts)) for parts in those]
        for split, those in listing.items()
    }

    def read(split: str) -> Pictures:
        place, paths = splits[split], [file for _, file in files[split]]
        number = {name: k for k, name in enumerate(names)}
        if unknown := [name for name in classes_in(place) if name not in number]:
            raise ValueError(f"{where}: the {split} split has classes that the others lack: {first_names(unknown)}")
        y = np.array([number[parts[len(place.parts)]] for parts in listing[split]], dtype=np.int64)
        said_names, where_is = [printable(name) for name in names], lambda row: printable(str(paths[row]))
        return Pictures(y, said_names, partial(fetch, paths), where_is, reading, partial(header_files, paths))

    return Source(reader(path, root, splits, names), files, tuple(splits), read, notes_of(root, splits, passed))


def images(folder: Folder) -> list[Parts]:
    """The images in its classes' folders: by class, then by the names of folders and files."""
    return sorted(parts for inner in folder.folders.values() for parts in inner.files())


def reader(path: Path, root: Folder, splits: dict[str, Folder], names: list[str]) -> str:
    """The reader's name for the fingerprint: "folder" where the files' names alone tell splits and classes.

    That is so for train/CLASS and test/CLASS, or CLASS alone; all else has its places and its classes in the name.
    """
    places = {split: folder.parts for split, folder in splits.items() if split in ("train", TEST)}
    by_names = {name for split in places for name, inner in splits[split].folders.items() if inner.holds()}
    usual = bool(places) and all(parts == (split,) for split, parts in places.items())
    if (usual or places == {TEST: ()}) and by_names == set(names) == earlier_classes(path, root):
        return "folder"
    told = places or {split: folder.parts for split, folder in splits.items()}
    return "folder/" + json.dumps([told, names])


def earlier_classes(path: Path, root: Folder) -> set[str]:
    """The classes by the rule of the first fingerprints, which took every folder that is not hidden for one.

    Those that are nothing today but had images gave other files, and so another fingerprint anyway.
    """
    places = [root.folders[split] for split in ("train", TEST) if split in root.folders] or [root]
    empty = {name for place in places for name in place.nothing if not had_images(path.joinpath(*place.parts, name))}
    return empty.union(*(place.folders for place in places))


def had_images(folder: Path) -> bool:
    return any(ending_of(file.name) in IMAGES for file in folder.rglob("*"))


def header_files(files: Sequence[Path], rows: np.ndarray) -> Iterator[Path]:
    return (files[row] for row in rows.tolist())


def fetch(files: Sequence[Path], rows: np.ndarray) -> Iterator[bytes]:
    for row in rows.tolist():
        yield files[row].read_bytes()
