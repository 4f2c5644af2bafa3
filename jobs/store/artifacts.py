"""Files that jobs leave behind, by content hash, under a local folder or any URL that pyarrow.fs opens."""

import hashlib
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustlib import durable_files
from robustq.jobs.errors import ArtifactError

SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Artifact:
    """A stored file. role: what it is to its job, "weights" or "images"."""

    role: str
    sha256: str
    bytes: int


AGAIN = "`robustq retry` with the sweep or the job's number makes it again"
INSTEAD = "it is trained on from the state before, or from the beginning, and comes out the same"
SEAL = b"robustq state 1\n"  # begins a state, before the hash of the rest
BEFORE = ".before"  # ends the name of the state that was kept before the last


def open_root(root: str) -> tuple[Any, str]:
    """The file system and the path in it of an artifact folder, given as a path or URL."""
    from pyarrow import fs  # not at the top: the queue knows artifacts, and `robustq status` should not wait

    if "://" in root:
        return fs.FileSystem.from_uri(root)
    return fs.LocalFileSystem(), root


def exists(system: Any, path: str) -> bool:
    return bool(system.get_file_info(path).is_file)


def blob_path(base: str, sha256: str) -> str:
    # Only a hash ever becomes a file name, so no row of a store can point outside the folder.
    if not SHA256.fullmatch(sha256):
        raise ValueError(f"expected a SHA-256 in hexadecimal, got {sha256!r}")
    return f"{base}/blobs/{sha256[:2]}/{sha256}"


def write(root: str, path: str, data: bytes) -> None:
    """Write a file whole or not at all."""
    system, base = open_root(root)
    target = f"{base}/{path}"
    temporary = f"{target}.{uuid.uuid4().hex}.partial"
    system.create_dir(target.rpartition("/")[0], recursive=True)
    try:
        with system.open_output_stream(temporary) as stream:
            stream.write(data)
        move(system, temporary, target)
    except BaseException:
        if exists(system, temporary):
            system.delete_file(temporary)
        raise


def move(system: Any, temporary: str, target: str) -> None:
    """Give a finished file its name; on this machine's disks it is there for good then."""
    if system.type_name == "local":
        durable_files.replace(Path(temporary), Path(target), ours=True)
    else:
        system.move(temporary, target)


def put(root: str, role: str, data: bytes) -> Artifact:
    """Keep the data under its hash."""
    sha256 = hashlib.sha256(data).hexdigest()
    write(root, blob_path("", sha256).lstrip("/"), data)
    return Artifact(role, sha256, len(data))


def get(root: str, sha256: str) -> bytes:
    """The data with this hash. Raises ArtifactError where it is not there, cannot be read, or was changed since."""
    system, base = open_root(root)
    path = blob_path(base, sha256)
    data = read(system, path)
    if data is None:
        raise ArtifactError(path, "missing", f"the artifact {path} is missing: {AGAIN}")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ArtifactError(path, "damaged", f"the artifact {path} is damaged, its content has another hash: {AGAIN}")
    return data


def read(system: Any, path: str) -> bytes | None:
    """The content of a file; None where there is none."""
    try:
        if not exists(system, path):
            return None
        with system.open_input_stream(path) as stream:
            return stream.read()
    except OSError as error:
        why = error.strerror or str(error)
        raise ArtifactError(path, "unreadable", f"the artifact {path} cannot be read: {why}") from error


def reason_of(root: str, sha256: str) -> str | None:
    """Why the data with this hash is lost: "missing" or "damaged"; None where it is as it was.

    Raises ArtifactError where that cannot be told.
    """
    try:
        get(root, sha256)
    except ArtifactError as error:
        if error.reason == "unreadable":
            raise
        return error.reason
    return None


def put_partial(root: str, key: str, data: bytes) -> None:
    """Keep the state of an unfinished job with its hash, and beside it the one that was kept last."""
    system, base = open_root(root)
    path = f"{base}/partial/{key}"
    if exists(system, path):
        with suppress(FileNotFoundError):  # a worker that was given up does the same
            move(system, path, f"{path}{BEFORE}")
    write(root, f"partial/{key}", SEAL + hashlib.sha256(data).digest() + data)


def get_partial(root: str, key: str, tell: Callable[[str], None] = lambda text: None) -> Iterator[bytes]:
    """The states of an unfinished job that are as they were, the latest first.

    tell: is told in one line of each that is not, which is removed.
    """
    system, base = open_root(root)
    for path in (f"{base}/partial/{key}", f"{base}/partial/{key}{BEFORE}"):
        sealed = read(system, path)
        if sealed is None:
            continue
        head, data = sealed[: len(SEAL) + 32], sealed[len(SEAL) + 32 :]
        if head == SEAL + hashlib.sha256(data).digest():
            yield data
            continue
        old = "" if sealed.startswith(SEAL) else " or of an older release"
        tell(f"the state of an unfinished training {path} is damaged{old}, and was removed: {INSTEAD}")
        with suppress(FileNotFoundError):
            system.delete_file(path)


def drop_partial(root: str, key: str) -> None:
    """Forget the states of a job that has finished, and what a killed worker left of one."""
    from pyarrow import fs

    system, base = open_root(root)
    for found in system.get_file_info(fs.FileSelector(f"{base}/partial", allow_not_found=True)):
        if found.is_file and found.base_name.partition(".")[0] == key:
            with suppress(FileNotFoundError):
                system.delete_file(found.path)
