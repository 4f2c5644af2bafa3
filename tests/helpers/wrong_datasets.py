"""Wrong data sets for the seeded generator: of each form one with columns, files, names or bytes changed."""

import gzip
import io
import random
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from tests.helpers import wrong_files
from tests.helpers.wrong_case import MODEL, STUDY, Case

Y = [i % 3 for i in range(12)]


def png(k: int, seed: int, side: int = 8, mode: str = "L") -> bytes:
    a = np.random.default_rng(seed).integers(0, 90, (side, side)).astype("uint8")
    a[: side // 2] += np.uint8(50 * k)
    file = io.BytesIO()
    Image.fromarray(a).convert(mode).save(file, "PNG")
    return file.getvalue()


def with_data(folder: Path, kind: str, name: str, what: str, *, idle: bool = False) -> Case:
    (folder / "m.py").write_text(MODEL)
    data = STUDY | {"dataset": f"{kind}:{name}", "models": {"mine": STUDY["models"]["mine"]}}
    del data["train"]
    (folder / "s.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    return Case(folder, ["submit", "s.yaml"], what, idle)


def parquet(folder: Path, draw: random.Random | None) -> Case:
    """A Parquet file whose columns, labels or images are changed."""
    values: dict[str, list[Any]] = {"image": [png(y, i) for i, y in enumerate(Y)], "label": list(Y)}
    what, name = "unchanged", "label"
    if draw is not None:
        what, row = draw.choice(PARQUETS), draw.randrange(12)
        match what:
            case "label":
                values["label"][row] = draw.choice([None, -1, 7, 10**12, 2**62, (Y[row] + 1) % 3])
            case "kind":
                kind = draw.choice([str, float, bool, lambda y: [y], lambda y: {"a": y}, lambda y: f"c{y}", bytes])
                values["label"] = [kind(y) for y in Y]
            case "image":
                values["image"][row] = draw.choice(
                    [None, b"", b"no image", png(1, 99)[:-20], png(1, 99, side=9), png(1, 99, mode="RGB"), png(1, 98)]
                )
            case "columns":
                more = draw.choice(["target", "image_id", "width", "labels", "note", "index"])
                values[more] = draw.choice([list(range(12)), [f"t{i}" for i in range(12)], list(Y), [None] * 12])
            case "name":
                name = draw.choice(["y", "class", "digit", "Label", "", "label.a", "labels", "ß"])
            case "empty":
                values = {column: [] for column in values}
    values = {name if column == "label" else column: value for column, value in values.items()}
    image = [{"bytes": b, "path": None} for b in values["image"]]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {column: pa.array(image, kind) if column == "image" else pa.array(v) for column, v in values.items()}
    table = pa.table(columns)
    pq.write_table(
        wrong_files.with_metadata(table, draw) if draw and what == "metadata" else table, folder / "d.parquet"
    )
    if draw is not None and what == "flip":
        what = wrong_files.flip(folder / "d.parquet", draw)
    if what in ("texts", "rows"):
        (wrong_files.large_texts if what == "texts" else wrong_files.many_rows)(folder / "d.parquet")
    if draw is not None and what == "bytes":
        content = bytearray((folder / "d.parquet").read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        (folder / "d.parquet").write_bytes(content[: draw.choice([len(content), draw.randrange(len(content))])])
    return with_data(folder, "parquet", "d.parquet", what, idle=what.startswith(("metadata", "flip")))


PARQUETS = [
    "label",
    "kind",
    "image",
    "columns",
    "name",
    "empty",
    "bytes",
    "metadata",
    "metadata",
    "flip",
    "flip",
    "texts",
    "rows",
]


def class_folders(folder: Path, draw: random.Random | None) -> Case:
    """A folder for each class, with files and folders renamed, damaged or put in its way."""
    root = folder / "d" / "test"
    for i, y in enumerate(Y):
        place = root / ("ant", "bee", "cat")[y] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(png(y, i))
    what = "unchanged"
    if draw is not None:
        what = draw.choice(["rename split", "rename class", "another split", "file", "more", "wrap", "emptied"])
        words = [
            "Test",
            "testing",
            "val",
            "train",
            "Training",
            "eval",
            "flowers",
            "__MACOSX",
            ".hidden",
            "dev",
            "tests",
        ]
        word, file = draw.choice(words), draw.choice(sorted(root.rglob("*.png")))
        match what:
            case "rename split":
                root.rename(root.with_name(word))
            case "rename class":
                (root / "cat").rename(root / word)
            case "another split":
                (root.with_name(word) / "ant").mkdir(parents=True, exist_ok=True)
                (root.with_name(word) / "ant" / "n.png").write_bytes(png(0, 77))
            case "file":
                file.write_bytes(
                    draw.choice(
                        [b"", b"no image", png(1, 99)[:-20], png(1, 99, side=9), png(1, 99, mode="RGB"), png(1, 98)]
                    )
                )
            case "more":
                name = draw.choice(["n.PNG", "n.jpeg", "n.tiff", "n.webp"])
                (file.parent / name).write_bytes(draw.choice([b"", png(0, 66), b"GIF89a"]))
            case "wrap":
                inner = root.parent.rename(folder / "inner")
                inner.rename((folder / "d" / word) if not (folder / "d").mkdir() else inner)
            case "emptied":
                for png_file in sorted((root / "bee").iterdir()):
                    png_file.unlink()
        what += f" {word}"
    # A split that is not evaluated is nothing to one that is, and so is a folder that is none.
    return with_data(folder, "folder", "d", what, idle=what.startswith("another split"))


def idx(folder: Path, draw: random.Random | None) -> Case:
    """The four files of the MNIST family, one of them damaged."""
    x = np.random.default_rng(0).integers(0, 256, (12, 8, 8)).astype("uint8")
    place = folder / "d"
    place.mkdir()
    for prefix in ("train", "t10k"):
        for part, values in (("images-idx3", x), ("labels-idx1", np.array(Y, "uint8"))):
            head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
            (place / f"{prefix}-{part}-ubyte").write_bytes(head + values.tobytes())
    what = "unchanged"
    if draw is not None:
        file = draw.choice(sorted(place.iterdir()))
        content = bytearray(file.read_bytes())
        at = draw.randrange(len(content)) if draw.random() < 0.5 else draw.randrange(16)
        how = draw.choice(["flip", "cut", "gone", "longer"])
        if how == "flip" and at < len(content):
            content[at] ^= 1 << draw.randrange(8)
        what = f"{how} {file.name} at {at}"
        file.write_bytes(content[:at] if how == "cut" else content + b"\0" if how == "longer" else content)
        if how == "gone":
            file.unlink()
    return with_data(folder, "idx", "d", what)


def tar(folder: Path, draw: random.Random | None) -> Case:
    """A shard of WebDataset with a member renamed, damaged, doubled or gone, or the file itself damaged."""
    members = {f"{i:04}.{end}": png(y, i) if end == "png" else str(y).encode() for i, y in enumerate(Y) for end in ENDS}
    what, twice = "unchanged", ""
    if draw is not None:
        what, name = draw.choice(TARS), draw.choice(list(members))
        match what:
            case "gone":
                del members[name]
            case "rename":
                end = draw.choice(["jpg", "CLS", "json", "txt", "seg.png", "label", ""])
                members[f"{name[:4]}.{end}"] = members.pop(name)
            case "label":
                name = f"{name[:4]}.cls"
                members[name] = draw.choice([b"", b"-1", b"7", b"1.0", b"ant", b"1\n", b"\xff", b"9" * 30, b"1 2"])
            case "image":
                members[f"{name[:4]}.png"] = draw.choice([b"", b"no image", png(1, 99)[:-20], png(1, 99, side=9)])
            case "twice":
                twice = name
            case "folder":
                members = {f"a/{name}" if i > 5 else name: content for i, (name, content) in enumerate(members.items())}
        what += f" {name}"
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as shard:
        for name in [*members, *([twice] if twice else [])]:
            info = tarfile.TarInfo(name)
            info.size = len(members[name])
            shard.addfile(info, io.BytesIO(members[name]))
    content = bytearray(file.getvalue())
    if draw is not None and what.startswith("bytes"):
        content[draw.randrange(len(content) // 2)] ^= 1 << draw.randrange(8)
        content = content[: draw.choice([len(content), draw.randrange(len(content))])]
    (folder / "test-000.tar").write_bytes(gzip.compress(content) if what.startswith("gzip") else content)
    return with_data(folder, "tar", "test-000.tar", what)


ENDS = ("png", "cls")
TARS = ["gone", "rename", "label", "image", "twice", "folder", "bytes", "gzip"]
