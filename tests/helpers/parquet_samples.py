"""Small Parquet files as people have them, for tests of how they are read."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from robustlib.datasets import load as data

Y = [i % 3 for i in range(12)]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
IMAGE = {"_type": "Image"}


def png(k: int, side: int = 4) -> bytes:
    """Grey, of the value k."""
    file = io.BytesIO()
    Image.fromarray(np.full((side, side), k, np.uint8)).save(file, "PNG")
    return file.getvalue()


def images(n: int = 12, start: int = 0) -> pa.Array:
    return pa.array([{"bytes": png(start + k), "path": None} for k in range(n)], STRUCT)


def classes(names: Any = None, **more: Any) -> dict[str, Any]:
    return {"_type": "ClassLabel"} | ({} if names is None else {"names": names}) | more


def write(path: Path, columns: dict[str, Any], features: Any = None, metadata: str | None = None) -> Path:
    """A table, with images where it has none; features or metadata as Hugging Face's `datasets` writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    n = len(next(iter(columns.values()), []))
    table = pa.table(columns if {"image", "jpg", "img"} & set(columns) else {"image": images(n), **columns})
    if features is not None:
        metadata = json.dumps({"info": {"features": features}})
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, path)
    return path


def load(path: Path, split: str = "test", kind: str = "parquet", **reading: Any) -> data.Dataset:
    if not reading:
        return data.load(f"{kind}:{path}", split)
    from robustlib.datasets.source import Reading

    return data.load(f"{kind}:{path}", split, Reading(**reading))
