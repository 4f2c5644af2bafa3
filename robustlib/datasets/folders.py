"""A folder for each class, as torchvision's ImageFolder reads them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from robustlib.datasets.source import AS_IT_IS, Pictures, Reading, Source

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")  # endings of an image's name


def class_folders(path: Path, reading: Reading = AS_IT_IS) -> Source:
    """PATH/train/CLASS/*.png and PATH/test/CLASS/*, or PATH/CLASS/* for a test split alone.

    Only files whose names end like images' count, as in torchvision's ImageFolder, and no hidden folder is a class.
    """
    splits = {split: path / split for split in ("train", "test") if (path / split).is_dir()} or {"test": path}
    folders = [folder for place in splits.values() for folder in place.iterdir() if folder.is_dir()]
    names = sorted({folder.name for folder in folders if not folder.name.startswith(".")})
    if not names:
        raise FileNotFoundError(f"dataset folder:{path}: expected a folder for each class there, found none")
    found = {
        split: sorted(file for name in names for file in (place / name).rglob("*") if is_image(file))
        for split, place in splits.items()
    }
    if not any(found.values()):
        raise FileNotFoundError(f"dataset folder:{path}: expected images ({', '.join(IMAGES)}) there, found none")
    files = {split: [(str(file.relative_to(path)), file) for file in listed] for split, listed in found.items()}

    def read(split: str) -> Pictures:
        listed, place = found[split], splits[split]
        y = np.array([names.index(file.relative_to(place).parts[0]) for file in listed], dtype=np.int64)
        return Pictures(y, names, lambda rows: fetch(listed, rows), lambda row: str(listed[row]), reading)

    return Source("folder", files, tuple(splits), read)


def fetch(files: Sequence[Path], rows: np.ndarray) -> Iterator[bytes]:
    for row in rows.tolist():
        yield files[row].read_bytes()


def is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGES and path.is_file()
