"""Small facts on disk with a hash of their own: what was damaged is found, and made again."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_sealed(path: Path, facts: Any) -> None:
    text = json.dumps(facts, sort_keys=True)
    write_atomically(path, json.dumps({"facts": facts, "sha256": hashlib.sha256(text.encode()).hexdigest()}))


def read_sealed(path: Path) -> Any:
    """The facts, None where there are none or where they are damaged."""
    try:
        found = json.loads(path.read_text())
        text = json.dumps(found["facts"], sort_keys=True)
        return found["facts"] if hashlib.sha256(text.encode()).hexdigest() == found["sha256"] else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # a cache may be several people's
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
