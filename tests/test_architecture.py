"""The floors hold: imports point down, Ray and torch stay where they belong, and quick commands load neither."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ["robustlib", "jobs", "cluster", "cli"]
SOURCES = sorted(
    path.relative_to(ROOT)
    for place in ("robustlib", "jobs", "cluster", "cli.py")
    for path in ([ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py"))
)


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at any depth of its code."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def floor_of(path: Path) -> int:
    return FLOORS.index(path.parts[0].removesuffix(".py"))


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_point_down(path: Path):
    assert not tops(path) & set(FLOORS[floor_of(path) + 1 :])


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_only_cluster_knows_ray_and_few_know_torch_above_the_kernels(path: Path):
    if path.parts[0] != "cluster":
        assert "ray" not in tops(path)
    if path.parts[0] == "jobs" and path.name not in (
        "run.py",
        "measure.py",
        "ready.py",
        "surrogates.py",
        "material.py",
        "complete.py",
        "estimate.py",
        "replay.py",
        "examine.py",
    ):
        assert "torch" not in tops(path)
    if path.parts[0] == "cli.py":
        assert "torch" not in tops(path)


@pytest.mark.parametrize("path", [p for p in SOURCES if len(p.parts) > 1 and p.name != "__init__.py"], ids=str)
def test_no_file_imports_its_own_package(path: Path):
    """A registry in `__init__` may be read from above, not by the files that it lists."""
    package = ".".join(path.parts[:-1])
    names = {alias for alias in imports(path) if alias.rpartition(".")[0] == package}
    files = {p.stem for p in (ROOT / path).parent.glob("*.py")} | {p.name for p in (ROOT / path).parent.iterdir()}
    assert {name.rpartition(".")[2] for name in names} <= files | ALLOWED.get(str(path), set())


# The training loop looks its objective up by name, as nothing else in robustlib does.
ALLOWED = {"robustlib/training/loop.py": {"OBJECTIVES"}}


@pytest.mark.parametrize("command", [["status"], ["results"], ["results", "--json"], ["--help"]], ids=" ".join)
def test_quick_commands_load_neither_torch_nor_ray(command: list[str], tmp_path: Path):
    make = f"from jobs.engine import open_store; open_store({str(tmp_path / 'r.db')!r}, create=True, write=True)"
    subprocess.run([sys.executable, "-c", make], check=True)
    look = (
        f"import sys, cli\ntry: cli.main({['--store', str(tmp_path / 'r.db'), *command]!r})\n"
        "except SystemExit as end: assert not end.code\n"
        "loaded = {'torch', 'ray', 'torchvision', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", look], check=True, capture_output=True)
