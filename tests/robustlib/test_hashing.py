"""What a user's file is made of: an edited helper is another model, and no folder's helper stands in for another's."""

import hashlib
import os
from pathlib import Path

import pytest

from robustlib.hashing import code_hash, local_modules
from robustlib.models.loading import load_factory

MODEL = """
import json
import torch
import helper
from package import part, VALUE
from package.deep.leaf import LEAF
from robustlib.models import MODELS

def build():
    from lazy import LATE
    return helper.SCALE, VALUE, part.PART, LEAF, LATE
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made(tmp_path / "mine", scale=1)


def made(folder: Path, scale: int) -> Path:
    for name, text in {
        "model.py": MODEL,
        "helper.py": f"from other import OTHER\nSCALE = {scale} * OTHER",
        "other.py": "OTHER = 1",
        "package/__init__.py": "VALUE = 2",
        "package/part.py": "from . import sibling\nfrom .deep import leaf\nPART = 3 + sibling.NOTHING",
        "package/sibling.py": "NOTHING = 0",
        "package/deep/leaf.py": "from ..sibling import NOTHING\nLEAF = 4 + NOTHING",
        "lazy.py": "LATE = 5",
        "unused.py": "1 / 0",
        "json/notes.txt": "no module",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_what_is_imported_from_beside_is_found(folder: Path):
    found = local_modules(folder / "model.py")
    assert {name: path.relative_to(folder).as_posix() for name, path in found.items()} == {
        "helper": "helper.py",
        "other": "other.py",
        "package": "package/__init__.py",
        "package.part": "package/part.py",
        "package.sibling": "package/sibling.py",
        "package.deep.leaf": "package/deep/leaf.py",
        "lazy": "lazy.py",
    }


@pytest.mark.parametrize("name", ["model.py", "helper.py", "other.py", "package/sibling.py", "lazy.py"])
def test_an_edited_part_changes_the_hash(folder: Path, name: str):
    before = code_hash(folder / "model.py")
    text = (folder / name).read_text()
    (folder / name).write_text(text + "\nMORE = 1\n")
    assert code_hash(folder / "model.py") != before
    (folder / name).write_text(text)
    assert code_hash(folder / "model.py") == before


def test_what_is_not_imported_does_not_count(folder: Path, tmp_path: Path):
    before = code_hash(folder / "model.py")
    (folder / "unused.py").write_text("2 / 0")
    assert code_hash(folder / "model.py") == before
    assert code_hash(made(tmp_path / "elsewhere", scale=1) / "model.py") == before


def test_a_file_by_itself_has_its_own_hash(tmp_path: Path):
    for text in ("import torch\n", "this is no Python", "import model\n"):
        (tmp_path / "model.py").write_text(text)
        assert code_hash(tmp_path / "model.py") == hashlib.sha256(text.encode()).hexdigest()
    with pytest.raises(FileNotFoundError):
        code_hash(tmp_path / "nowhere.py")


def test_every_folder_has_its_own_helpers(folder: Path, tmp_path: Path):
    """In one process, as a worker evaluates one model after another."""
    other = made(tmp_path / "other", scale=7)
    assert load_factory(f"{folder}/model.py:build")() == (1, 2, 3, 4, 5)
    assert load_factory(f"{other}/model.py:build")() == (7, 2, 3, 4, 5)
    (folder / "helper.py").write_text("SCALE = 9")
    assert load_factory(f"{folder}/model.py:build")() == (9, 2, 3, 4, 5)


@pytest.mark.parametrize("name", ["model.py", "helper.py"])
def test_an_edit_that_keeps_size_and_time_is_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Python's compiled files know a source by these two alone."""
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    for file, text in {
        "model.py": "import helper\ndef build():\n    return 1, helper.VALUE\n",
        "helper.py": "VALUE = 1",
    }.items():
        (tmp_path / file).write_text(text)
    assert load_factory(f"{tmp_path / 'model.py'}:build")() == (1, 1)
    path = tmp_path / name
    before = path.stat()
    path.write_text(path.read_text().replace("1", "2"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load_factory(f"{tmp_path / 'model.py'}:build")() == ((2, 1) if name == "model.py" else (1, 2))
    assert not list(tmp_path.rglob("*.pyc"))
