"""Snapshots: a copy of an SQLite store, with its artifacts or without, as text that any log carries."""

import base64
import hashlib
import io
import re
import shutil
import tarfile
import tempfile
from contextlib import closing
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
from sqlalchemy.exc import SQLAlchemyError

from robustlib import durable_files
from robustlib.datasets.tar_headers import Modest, TooLarge
from robustlib.hashing import file_hash
from robustq.jobs.errors import RunError, StoreError
from robustq.jobs.store.connection import connect_store, open_store
from robustq.jobs.store.database.engines import BUSY_SECONDS
from robustq.jobs.store.database.sqlite_files import open_reading
from robustq.jobs.store.database.store_url import parse_url
from robustq.jobs.store.schema_check import schema_version
from robustq.jobs.text.safe_text import address

STORE = "results.db"
BLOB = re.compile(r"artifacts/blobs/([0-9a-f]{2})/\1[0-9a-f]{62}")
MOST_BYTES = 2 * 2**30  # unpacked: a few kilobytes can stand for any number
BEGIN, END = "-----BEGIN ROBUSTQ SNAPSHOT", "-----END ROBUSTQ SNAPSHOT-----"
WIDTH = 4096


def snapshot_text(url: str, *, artifacts: bool) -> str:
    """The store as it is at this moment, packed, its hash in the first line."""
    path = parse_url(url)[1]
    if path is None:
        raise StoreError(
            f"store {address(url)} is on a server, which can be asked from anywhere: name it with --store there"
        )
    store = open_store(url)
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=packed, mode="w") as tar:
        copy = Path(folder) / "results.db"
        with closing(open_reading(path, BUSY_SECONDS)) as source:
            source.execute("VACUUM INTO ?", (str(copy),))
        tar.add(copy, STORE)
        blobs = Path(store.artifacts) / "blobs"
        for blob in sorted(blobs.glob("*/*")) if artifacts else ():
            name = f"artifacts/blobs/{blob.parent.name}/{blob.name}"
            if BLOB.fullmatch(name) and blob.is_file():  # not what is being written
                tar.add(blob.resolve(), name)
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(packed.getvalue())
    body = sink.getvalue().to_pybytes()
    text = base64.b64encode(body).decode()
    lines = [text[start : start + WIDTH] for start in range(0, len(text), WIDTH)]
    return "\n".join([f"{BEGIN} {hashlib.sha256(body).hexdigest()}-----", *lines, END])


def unpack(text: str, out: Path, *, most_bytes: int = MOST_BYTES) -> list[Path]:
    """Write the store of a snapshot to `out`, and its artifacts to the folder `artifacts` beside it.

    Nothing but one SQLite store and files whose names are the hashes of their content is written, and no more than
    `most_bytes` of them. Raises RunError where the text holds something else or no whole snapshot, StoreError where
    `out` exists.
    """
    body = packed_body(text, most_bytes)
    if out.exists():
        raise StoreError(f"there is a file {out} already: move it away or name another with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        try:
            with pa.CompressedInputStream(pa.BufferReader(body), "zstd") as stream:
                found = read_members(Bounded(stream, most_bytes), Path(folder))
        except (tarfile.TarError, EOFError, TooLarge) as error:
            raise unreadable(error) from error
        check_members(found)
        written = [out]
        durable_files.replace(found.pop(STORE), out)
        for name, blob in sorted(found.items()):
            target = out.parent / name
            target.parent.mkdir(parents=True, exist_ok=True)
            durable_files.replace(blob, target)
            written.append(target)
    return written


def packed_body(text: str, most_bytes: int) -> bytes:
    """The packed bytes in what a cluster printed."""
    if len(text) > 2 * most_bytes:  # packed and spelt in letters it is smaller, unless somebody pads it
        raise too_large(most_bytes)
    found = re.search(rf"{BEGIN} ([0-9a-f]{{64}})-----\n(.*?)\n{END}", text, re.S)
    if found is None:
        raise RunError("the cluster sent no whole snapshot: try again")
    try:
        body = base64.b64decode("".join(found[2].split()), validate=True)
    except ValueError as error:
        raise RunError("the snapshot came damaged: try again") from error
    if hashlib.sha256(body).hexdigest() != found[1]:
        raise RunError("the snapshot came damaged: try again")
    return body


def read_members(stream: "Bounded", folder: Path) -> dict[str, Path]:
    """Every file of a snapshot in a folder of ours under a name of ours, by its name there."""
    found: dict[str, Path] = {}
    with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|", tarinfo=Modest) as tar:
        for member in tar:
            known = member.name == STORE or BLOB.fullmatch(member.name)
            if not known or member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.name in found:
                raise RunError(
                    f"the cluster sent {member.name!r}, which is neither its store nor an artifact: nothing was written"
                )
            source = tar.extractfile(member)
            assert source is not None  # of a regular file
            found[member.name] = folder / str(len(found))
            with found[member.name].open("wb") as file:
                shutil.copyfileobj(source, file)
    return found


def check_members(found: dict[str, Path]) -> None:
    """Raise RunError where there is no store of ours, or a file is not what its name says."""
    head = b""
    if STORE in found:
        with found[STORE].open("rb") as file:
            head = file.read(16)
    if head != b"SQLite format 3\0":
        raise RunError("the cluster sent no SQLite store: nothing was written")
    opened = connect_store(str(found[STORE]))
    try:
        with opened.begin() as db:
            schema_version(db, "the cluster sent what")
    except (StoreError, SQLAlchemyError) as error:
        raise RunError("the cluster sent an SQLite file that is no store of robustq's: nothing was written") from error
    finally:
        opened.engine.dispose()
    for name, path in found.items():
        if name != STORE and file_hash(path) != Path(name).name:
            raise RunError(f"the cluster sent {name} with other content than its name says: nothing was written")


class Bounded:
    """What is unpacked, up to a number of bytes."""

    def __init__(self, stream: Any, most_bytes: int):
        self.stream, self.most_bytes, self.left = stream, most_bytes, most_bytes

    def read(self, n: int) -> bytes:
        try:
            data = self.stream.read(n)
        except (OSError, pa.ArrowException) as error:  # of zstd: nothing is read from a disk
            raise unreadable(error) from error
        self.left -= len(data)
        if self.left < 0:
            raise too_large(self.most_bytes)
        return data


def unreadable(error: Exception) -> RunError:
    return RunError(f"the cluster sent a snapshot that cannot be read ({error}): nothing was written")


def too_large(most_bytes: int) -> RunError:
    return RunError(
        f"the cluster's snapshot holds more than {most_bytes >> 20} MB: nothing was written; --most-mb allows more, "
        "and without --artifacts it is smaller"
    )
