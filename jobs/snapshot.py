"""A store on its way home: a copy of an SQLite store, with its artifacts or without, as text that any log carries."""

import base64
import hashlib
import io
import re
import tarfile
import tempfile
from contextlib import closing
from pathlib import Path

import pyarrow as pa

from jobs.engine import BUSY_SECONDS, open_store, parse_url
from jobs.errors import RunError, StoreError
from jobs.files import open_reading

BEGIN, END = "-----BEGIN ROBUSTQ SNAPSHOT", "-----END ROBUSTQ SNAPSHOT-----"
WIDTH = 4096


def snapshot_text(url: str, *, artifacts: bool) -> str:
    """The store as it is at this moment, packed, its hash in the first line."""
    path = parse_url(url)[1]
    if path is None:
        raise StoreError(f"store {url} is on a server, which can be asked from anywhere: name it with --store there")
    store = open_store(url)
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=packed, mode="w") as tar:
        copy = Path(folder) / "results.db"
        with closing(open_reading(path, BUSY_SECONDS)) as source:
            source.execute("VACUUM INTO ?", (str(copy),))
        tar.add(copy, "results.db")
        blobs = Path(store.artifacts) / "blobs"
        if artifacts and blobs.is_dir():
            tar.add(blobs, "artifacts/blobs")
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(packed.getvalue())
    body = sink.getvalue().to_pybytes()
    text = base64.b64encode(body).decode()
    lines = [text[start : start + WIDTH] for start in range(0, len(text), WIDTH)]
    return "\n".join([f"{BEGIN} {hashlib.sha256(body).hexdigest()}-----", *lines, END])


def unpack(text: str, out: Path) -> list[Path]:
    """Write the store of a snapshot to `out`, and its artifacts to the folder `artifacts` beside it.

    Raises RunError where the text holds no whole snapshot, StoreError where `out` exists.
    """
    found = re.search(rf"{BEGIN} ([0-9a-f]{{64}})-----\n(.*?)\n{END}", text, re.S)
    if found is None:
        raise RunError("the cluster sent no whole snapshot: try again")
    body = base64.b64decode("".join(found[2].split()))
    if hashlib.sha256(body).hexdigest() != found[1]:
        raise RunError("the snapshot came damaged: try again")
    if out.exists():
        raise StoreError(f"there is a file {out} already: move it away or name another with --out")
    with pa.CompressedInputStream(pa.BufferReader(body), "zstd") as stream:
        packed = io.BytesIO(stream.read())
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder, tarfile.open(fileobj=packed) as tar:
        tar.extractall(folder, filter="data")
        (Path(folder) / "results.db").rename(out)
        written = [out]
        for blob in sorted((Path(folder) / "artifacts" / "blobs").glob("*/*")):
            target = out.parent / "artifacts" / "blobs" / blob.parent.name / blob.name
            target.parent.mkdir(parents=True, exist_ok=True)
            blob.rename(target)
            written.append(target)
    return written
