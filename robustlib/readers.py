"""Readers of data sets: each names its source files and gives a split as uint8 arrays."""

import gzip
import importlib.util
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")  # endings of an image's name


@dataclass(frozen=True)
class Images:
    """A split as read: x uint8 (N, C, H, W), y whole numbers (N,), the classes' names."""

    x: np.ndarray
    y: np.ndarray
    names: list[str]


@dataclass(frozen=True)
class Source:
    """Where a data set comes from: a reader's name, its files as (name, path), its splits and how to read one."""

    reader: str
    files: list[tuple[str, Path]]
    splits: tuple[str, ...]
    read: Callable[[str], Images]


def digits(_: Path) -> Source:
    """scikit-learn's handwritten digits: 1,797 images of 8x8, every fourth for testing. Needs no network."""
    package = importlib.util.find_spec("sklearn")  # found, not imported: the fingerprint alone must be quick
    if package is None or package.origin is None:
        raise FileNotFoundError("dataset digits needs the package scikit-learn: pip install scikit-learn")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    return Source("digits", [("digits.csv.gz", path)], ("train", "test"), read_digits)


def read_digits(split: str) -> Images:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    x = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    test = np.arange(len(x)) % 4 == 3
    chosen = test if split == "test" else ~test
    return Images(x[chosen], bunch.target[chosen], [str(name) for name in bunch.target_names])


def parquet(path: Path) -> Source:
    """Hugging Face image columns: a folder with train*.parquet and test*.parquet (also in data/), or one file."""
    if path.is_file():
        return Source("parquet", [(path.name, path)], ("test",), lambda split: read_parquet([path], [path]))
    found = {
        split: sorted([*path.glob(f"{split}*.parquet"), *path.glob(f"data/{split}*.parquet")])
        for split in ("train", "test")
    }
    splits = {split: files for split, files in found.items() if files}
    if not splits:
        raise FileNotFoundError(
            f"dataset parquet:{path}: expected train*.parquet and test*.parquet there, found neither"
        )
    files = [(f"{split}/{file.name}", file) for split, files in splits.items() for file in files]
    everything = [file for _, file in files]
    return Source("parquet", files, tuple(splits), lambda split: read_parquet(splits[split], everything))


def read_parquet(files: list[Path], everything: list[Path]) -> Images:
    """The images in `files`; where the classes have no names, the labels in `everything` tell how many there are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pa.concat_tables([pq.read_table(file) for file in files])
    except pa.ArrowInvalid as error:
        raise ValueError(f"{files[0]} is no Parquet file: {error}") from error
    columns = {field.name: field.type for field in table.schema}
    image = next(
        (name for name, kind in columns.items() if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0),
        None,
    )
    labels = [name for name, kind in columns.items() if pa.types.is_integer(kind)]
    label = next((name for name in labels if "label" in name), labels[0] if labels else None)
    if image is None or label is None:
        raise ValueError(
            f"{files[0]}: expected an image column struct<bytes, path> and an integer label column, "
            f"got: {', '.join(columns)}"
        )
    encoded = table.column(image).combine_chunks().field("bytes").to_pylist()
    names = class_names(table.schema.metadata, label)
    if names is None:
        names = numbered(pq.read_table(file, columns=[label]).column(label).to_numpy() for file in everything)
    return Images(decode(encoded, str(files[0])), table.column(label).to_numpy(), names)


def numbered(labels: Iterable[np.ndarray]) -> list[str]:
    """Names for classes without: their numbers, the same for every split."""
    return [str(number) for number in range(max(int(y.max(initial=0)) for y in labels) + 1)]


def class_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str] | None:
    """The names in the schema's metadata, as Hugging Face writes them."""
    about = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    names = about.get("info", {}).get("features", {}).get(label, {}).get("names")
    return list(names) if names else None


def class_folders(path: Path) -> Source:
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
    files = [(str(file.relative_to(path)), file) for listed in found.values() for file in listed]

    def read(split: str) -> Images:
        listed, place = found[split], splits[split]
        y = np.array([names.index(file.relative_to(place).parts[0]) for file in listed], dtype=np.int64)
        return Images(
            decode([file.read_bytes() for file in listed], str(place), [str(file) for file in listed]), y, names
        )

    return Source("folder", files, tuple(splits), read)


def is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGES and path.is_file()


def idx(path: Path) -> Source:
    """The four files of the MNIST family, plain or gzipped: {train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]."""
    found: dict[str, tuple[Path, Path]] = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = (idx_file(path, f"{prefix}-{part}-ubyte") for part in ("images-idx3", "labels-idx1"))
        found[split] = images, labels
    files = [(file.name, file) for pair in found.values() for file in pair]

    def read(split: str) -> Images:
        x, y = (read_idx(file) for file in found[split])
        if len(x) != len(y):
            raise ValueError(f"{found[split][0]} holds {len(x)} images, {found[split][1]} {len(y)} labels")
        return Images(x[:, None], y, numbered(read_idx(labels) for _, labels in found.values()))

    return Source("idx", files, ("train", "test"), read)


def idx_file(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"dataset idx:{folder}: expected {name} or {name}.gz there, found neither")


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes, http://yann.lecun.com/exdb/mnist/ (format at the foot of that page)."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is cut off or damaged: {error}") from error
    if len(data) < 4 or data[:2] != b"\0\0":
        raise ValueError(f"{path} is no IDX file: it does not start with two zero bytes")
    kind, dimensions = data[2], data[3]
    if kind != 0x08:
        raise ValueError(
            f"{path}: expected unsigned bytes (IDX type 0x08), got type 0x{kind:02X}: images must be 8-bit"
        )
    if len(data) < 4 + 4 * dimensions:
        raise ValueError(f"{path} is cut off: it ends within its header")
    shape = struct.unpack(f">{dimensions}I", data[4 : 4 + 4 * dimensions])
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions)
    if values.size != int(np.prod(shape)):
        raise ValueError(f"{path} is cut off: its header promises {int(np.prod(shape))} bytes, {values.size} are there")
    return values.reshape(shape)


def decode(encoded: list[bytes], place: str, names: list[str] | None = None) -> np.ndarray:
    """PNG or JPEG bytes to uint8 (N, C, H, W): grey images have one channel, all others become RGB."""
    pictures: list[np.ndarray] = []
    for row, data in enumerate(encoded):
        where = names[row] if names else f"{place}, row {row}"
        try:
            with Image.open(io.BytesIO(data)) as picture:
                if picture.mode.startswith(("I", "F")):
                    raise ValueError(
                        f"{where}: expected an 8-bit image, got mode {picture.mode!r}: values outside 0 to 255"
                    )
                pixels = np.asarray(picture if picture.mode == "L" else picture.convert("RGB"))
        except (OSError, SyntaxError, TypeError) as error:
            raise ValueError(f"{where}: expected PNG or JPEG bytes, got something else") from error
        if pictures and pixels.shape != pictures[0].shape:
            raise ValueError(
                f"{where}: image of shape {pixels.shape}, the first is {pictures[0].shape}: all must be alike"
            )
        pictures.append(pixels)
    if not pictures:
        raise ValueError(f"{place} holds no image")
    x = np.stack(pictures)
    return x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
