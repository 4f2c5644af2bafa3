"""The hash of a user's Python file: of itself and what it imports from beside it. Free of torch."""

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

OURS = ("robustq", "robustlib")  # robustq's own packages, whose kernels have a version of their own


def code_hash(path: Path) -> str:
    """SHA-256 of a Python file and of all that it imports from its own folder, directly or not.

    Of a file that imports nothing from there it is that of the file alone. Installed packages, and files that are
    opened when the code runs, are not in it. Raises OSError for a file that cannot be read.
    """
    own, beside = file_hash(path), local_modules(path)
    if not beside:
        return own
    parts = "".join(f"{name}={file_hash(found)}\n" for name, found in sorted(beside.items()))
    return hashlib.sha256(f"{own}\n{parts}".encode()).hexdigest()


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def local_modules(path: Path) -> dict[str, Path]:
    """The modules that a Python file imports from its own folder, directly or not, by their dotted names."""
    path = path.resolve()
    found: dict[str, Path] = {}
    waiting = [("", path)]
    while waiting:
        module, file = waiting.pop()
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        for name in imported(file, package):
            place = find(path.parent, name)
            if place is not None and name not in found and place != path and not is_ours(place):
                found[name] = place
                waiting.append((name, place))
    return found


def is_ours(file: Path) -> bool:
    """Whether a file is robustq's own, and not a user's of the same name."""
    return any(file.is_relative_to(own) for own in own_places())


@cache
def own_places() -> tuple[Path, ...]:
    """Where robustq's own modules lie. In its repository its folders stand among others that are none of its code."""
    spec = importlib.util.find_spec("robustq")
    found = [Path(place).resolve() for place in (spec and spec.submodule_search_locations) or ()]
    parts = ("__init__.py", "__main__.py", "cli.py", "cluster", "jobs")
    return (Path(__file__).resolve().parent, *(place / part for place in found for part in parts))


def imported(file: Path, package: str) -> Iterator[str]:
    """Dotted names of the modules that a file may import, with the packages that they lie in."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # whoever imports it is told
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".") if package else []
            parts = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*parts, *filter(None, [node.module])])
            names = [base, *(f"{base}.{alias.name}" if base else alias.name for alias in node.names)]
        else:
            continue
        for name in filter(None, names):
            parts = name.split(".")
            yield from (".".join(parts[: i + 1]) for i in range(len(parts)))


def find(folder: Path, name: str) -> Path | None:
    """The file of a module by its dotted name, below a folder."""
    base = folder.joinpath(*name.split("."))
    return next((file for file in (base / "__init__.py", base.with_suffix(".py")) if file.is_file()), None)
