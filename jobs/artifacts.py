"""Files that jobs leave behind, by content hash, under a local folder or any URL that pyarrow.fs opens."""

import hashlib
import re
import uuid
from dataclasses import dataclass
from typing import Any

from jobs.errors import ArtifactError

SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Artifact:
    """A stored file. role: what it is to its job, "weights" or "images"."""

    role: str
    sha256: str
    bytes: int


AGAIN = "`robustq retry` with the sweep or the job's number makes it again"


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
        system.move(temporary, target)
    except BaseException:
        if exists(system, temporary):
            system.delete_file(temporary)
        raise


def put(root: str, role: str, data: bytes) -> Artifact:
    """Keep the data under its hash."""
    sha256 = hashlib.sha256(data).hexdigest()
    write(root, blob_path("", sha256).lstrip("/"), data)
    return Artifact(role, sha256, len(data))


def get(root: str, sha256: str) -> bytes:
    """The data with this hash. Raises ArtifactError where it is not there, cannot be read, or was changed since."""
    system, base = open_root(root)
    path = blob_path(base, sha256)
    if not exists(system, path):
        raise ArtifactError(path, "missing", f"the artifact {path} is missing: {AGAIN}")
    try:
        with system.open_input_stream(path) as stream:
            data = stream.read()
    except OSError as error:
        why = error.strerror or str(error)
        raise ArtifactError(path, "unreadable", f"the artifact {path} cannot be read: {why}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ArtifactError(path, "damaged", f"the artifact {path} is damaged, its content has another hash: {AGAIN}")
    return data


def is_whole(root: str, sha256: str) -> bool:
    """Whether the data with this hash is there, and is as it was. Raises ArtifactError where that cannot be told."""
    try:
        get(root, sha256)
    except ArtifactError as error:
        if error.reason == "unreadable":
            raise
        return False
    return True


def put_partial(root: str, key: str, data: bytes) -> None:
    """Keep the state of an unfinished job, over the one kept before."""
    write(root, f"partial/{key}", data)


def get_partial(root: str, key: str) -> bytes | None:
    """The state of an unfinished job, or None where there is none."""
    system, base = open_root(root)
    path = f"{base}/partial/{key}"
    if not exists(system, path):
        return None
    with system.open_input_stream(path) as stream:
        return stream.read()


def drop_partial(root: str, key: str) -> None:
    """Forget the state of a job that has finished."""
    system, base = open_root(root)
    path = f"{base}/partial/{key}"
    if exists(system, path):
        system.delete_file(path)
