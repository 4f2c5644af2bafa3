"""What is sent to a cluster: robustq's own code, and the folder of a study with the files that it names."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from jobs.errors import SpecError
from jobs.plan import weights_place
from jobs.study import load_study

HERE = Path(__file__).parents[1]
CODE = ("cli.py", "cluster", "jobs", "robustlib")
LIMIT_BYTES = 100 * 2**20
LEFT_OUT = ("__pycache__", ".*", "*.db", "*.db-wal", "*.db-shm", "node_modules", "venv", "*.egg-info")


@contextmanager
def staged() -> Iterator[Path]:
    """A folder with robustq's code alone."""
    with tempfile.TemporaryDirectory(prefix="robustq-") as place:
        folder = Path(place)
        for name in CODE:
            source = HERE / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
            else:
                shutil.copy(source, folder / name)
        yield folder


@contextmanager
def parcel(study: Path) -> Iterator[tuple[Path, str]]:
    """The code and, as `study/`, the folder that the study lies in; and a hash of the latter's content.

    Raises SpecError where the folder is too large to send, or a file that the study names lies outside of it.
    """
    root = study.resolve().parent
    check_inside(study, root)
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file() and not hidden(path, root))
    if size > LIMIT_BYTES:
        raise SpecError(
            f"the folder {root} holds {size / 2**20:.0f} MB, of which {LIMIT_BYTES >> 20} can be sent: put the study "
            "and the files that it names into a folder of their own; data sets are named by their path on the cluster"
        )
    with staged() as folder:
        shutil.copytree(root, folder / "study", ignore=shutil.ignore_patterns(*LEFT_OUT))
        yield folder, digest(folder / "study", study.name)


def hidden(path: Path, root: Path) -> bool:
    return any(fnmatch(part, pattern) for part in path.relative_to(root).parts for pattern in LEFT_OUT)


def check_inside(study: Path, root: Path) -> None:
    checked, origin = load_study(study, {})
    for label, model in checked.models.items():
        for entry, place in (("file", (model.file or "").rpartition(":")[0]), ("weights", model.weights)):
            if not place or (entry == "file" and not place.endswith(".py")):
                continue
            path = (weights_place(place, root)[0] if entry == "weights" else root / Path(place).expanduser()).resolve()
            if not path.is_relative_to(root):
                raise origin.error(
                    ("models", label, entry), f"{place} lies outside of the study's folder, which is what is sent"
                )


def digest(folder: Path, study: str) -> str:
    """Of the study's name and of every file's place and content."""
    found = hashlib.sha256(study.encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(str(path.relative_to(folder)).encode() + b"\0")
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()
