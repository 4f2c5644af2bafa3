"""The wheel: robustq and robustlib whole, and nothing else that a site-packages could trip over."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # a wheel is built

ROOT = Path(__file__).parents[1]
FOLDERS = ("cluster", "jobs", "robustlib")
SOURCES = (
    "__init__.py",
    "__main__.py",
    "cli.py",
    "py.typed",
    "CITATION.cff",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    *FOLDERS,
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since an older `build/` beside the sources would go in too."""
    place = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, place / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    done = subprocess.run([*command, "out", "."], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "absent from the `packages` configuration" not in done.stdout + done.stderr
    (found,) = (place / "out").glob("*.whl")
    return found


def test_every_folder_is_a_package_of_the_wheel():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    files = [path for top in FOLDERS for path in (ROOT / top).rglob("*") if path.is_file()]
    folders = {path.parent.relative_to(ROOT) for path in files if path.parent.name != "__pycache__"}
    names = {".".join(folder.parts) for folder in folders}
    assert sorted(packages) == sorted(
        ["robustq", *(name if name.startswith("robustlib") else f"robustq.{name}" for name in names)]
    )


def test_the_wheel_holds_our_two_packages_and_nothing_else(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {f"robustq/{name}" for name in ("__init__.py", "__main__.py", "cli.py", "py.typed", "CITATION.cff")}
    for top in FOLDERS:
        for path in (ROOT / top).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                where = path.relative_to(ROOT).as_posix()
                wanted.add(where if top == "robustlib" else f"robustq/{where}")
    assert files == wanted
    assert {"robustq/py.typed", "robustlib/py.typed"} <= files  # type checkers of users read our annotations


def test_extras_are_for_users(wheel: Path):
    """What developers want are dependency groups, which no wheel has."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = archive.read(name).decode().splitlines()
    extras = {line.removeprefix("Provides-Extra: ") for line in lines if line.startswith("Provides-Extra: ")}
    assert extras == {"postgres", "cluster", "serve", "corruptions", "deploy", "mlflow", "tensorboard", "wandb"}


def test_the_wheel_works_beside_a_stranger_of_the_same_names(wheel: Path, tmp_path: Path):
    """Unpacked into a folder, with a user's `cluster.py`, `jobs.py` and `cli.py` in front of it on the path."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "work").mkdir()
    for name in ("cluster", "jobs", "cli"):
        (tmp_path / "work" / f"{name}.py").write_text("raise ImportError('a stray')\n")
    look = (
        "import runpy, sys, robustq, robustq.jobs.report.page.render as render\n"
        "assert robustq.__file__.startswith(sys.argv[1]) and render.__file__.startswith(sys.argv[1])\n"
        "assert render.environment() and robustq.__version__\n"
        "sys.argv = ['robustq', '--help']\n"
        "runpy.run_module('robustq', run_name='__main__')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", look, str(tmp_path / "site")]
    done = subprocess.run(command, cwd=tmp_path / "work", env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: robustq ")
