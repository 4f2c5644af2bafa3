"""Small facts on disk with a hash of their own: what was damaged is found, and made again."""

import hashlib
import json
from pathlib import Path
from typing import Any

from robustlib import durable_files


def write_sealed(path: Path, facts: Any) -> None:
    text = json.dumps(facts, sort_keys=True)
    sealed = json.dumps({"facts": facts, "sha256": hashlib.sha256(text.encode()).hexdigest()})
    durable_files.write(path, sealed.encode())


def read_sealed(path: Path) -> Any:
    """The facts, None where there are none, where they cannot be read, or where they are damaged."""
    try:
        found = json.loads(path.read_bytes())
        text = json.dumps(found["facts"], sort_keys=True)
        return found["facts"] if hashlib.sha256(text.encode()).hexdigest() == found["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
