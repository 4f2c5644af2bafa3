"""Class folders with pictures, and what is read of them."""

import io
from pathlib import Path

import pytest
from PIL import Image

from robustlib.datasets import load


def png(level: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (level, 0, 0)).save(file, "PNG")
    return file.getvalue()


def noise() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((30, 20), 90).save(file, "PNG")
    return file.getvalue()


NOISE = noise()


def plant(place: Path, *names: str, content: bytes | None = None) -> Path:
    """Files of these names, and empty folders where a name ends in a slash; each picture has a level of its own."""
    for k, name in enumerate(names):
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            file.mkdir()
        else:
            file.write_bytes(png(k) if content is None else content)
    return place


def taken(place: Path, split: str) -> tuple[tuple[str, ...], list[int]]:
    """The classes, and the labels of a split."""
    found = load.load(f"folder:{place}", split)
    assert found.x.shape[1:] == (3, 2, 3)
    return found.names, found.y.tolist()


def splits(place: Path) -> tuple[str, ...]:
    return load.source_of(f"folder:{place}").splits


def notes(place: Path) -> tuple[str, ...]:
    return load.source_of(f"folder:{place}").notes


def refusal(place: Path, split: str = "test") -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load.load(f"folder:{place}", split)
    return str(error.value).removeprefix(f"dataset folder:{place}")
