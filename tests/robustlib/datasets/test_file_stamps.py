"""When a source file is read again: whenever its stamp may hide an edit, and else never."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from robustlib.datasets import file_stamps, load
from tests.robustlib.datasets.test_load import COLOUR, LABELS, encode, write_parquet

pytestmark = pytest.mark.usefixtures("home")  # a cache of its own


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_parquet(tmp_path / "a.parquet", [encode(image) for image in COLOUR], LABELS)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were hashed by their content."""
    read: list[Path] = []
    before = file_stamps.file_hash
    monkeypatch.setattr(file_stamps, "file_hash", lambda path: read.append(path) or before(path))
    return read


def set_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """How far the machine's clock is ahead of the disk's."""
    monkeypatch.setattr(file_stamps, "clock", lambda: time.time() + seconds)


def set_disk(monkeypatch: pytest.MonkeyPatch, tick: int = 1, **shift: int) -> None:
    """A disk with times in whole ticks of so many nanoseconds, or with other numbers for its files."""
    real = os.stat

    def stat(*args, **kwargs):
        found = real(*args, **kwargs)
        numbers = {name: getattr(found, name) for name in dir(found) if name.startswith("st_")}
        for name in ("mtime", "ctime"):
            numbers[f"st_{name}_ns"] -= numbers[f"st_{name}_ns"] % tick
            numbers[f"st_{name}"] = numbers[f"st_{name}_ns"] / 1e9
        return SimpleNamespace(**numbers | {name: numbers[name] + more for name, more in shift.items()})

    monkeypatch.setattr(os, "stat", stat)


def edit(file: Path) -> None:
    """Turn one bit of the last picture, in place; the time of the last edit is put back."""
    before = os.stat(file)
    content = bytearray(file.read_bytes())
    content[content.rindex(b"IEND") - 12] ^= 1
    with file.open("r+b") as handle:
        handle.write(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_file_that_lies_there_for_long_is_read_once(file: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch):
    set_clock(monkeypatch, 10)
    prints = {load.fingerprint(f"parquet:{file}") for _ in range(3)}
    assert len(prints) == 1 and read == [file]


def test_a_file_that_has_just_come_is_read_again_until_an_edit_would_show(
    file: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch, home: Path
):
    prints = {load.fingerprint(f"parquet:{file}") for _ in range(2)}
    assert len(read) == 2 and not home.exists()
    set_clock(monkeypatch, 10)
    prints |= {load.fingerprint(f"parquet:{file}") for _ in range(2)}
    assert len(read) == 3 and len(prints) == 1


@pytest.mark.parametrize("tick", [1, 10**15])  # of the disk here, and one so coarse that no edit shows
def test_an_edit_that_puts_back_the_time_is_noticed(tick: int, file: Path, monkeypatch: pytest.MonkeyPatch):
    set_disk(monkeypatch, tick)
    if tick > 1:  # so are files that came in the tick that is not over
        set_clock(monkeypatch, -(time.time() % (tick / 1e9)))
    before = load.fingerprint(f"parquet:{file}")
    edit(file)
    assert load.fingerprint(f"parquet:{file}") != before


def test_an_edit_in_the_tick_in_which_a_set_was_opened_is_noticed(file: Path, monkeypatch: pytest.MonkeyPatch):
    set_disk(monkeypatch, 10**15)
    set_clock(monkeypatch, -(time.time() % 10**6))
    found = load.load(f"parquet:{file}", "test")
    assert np.array_equal(found.images[:2], COLOUR[:2])
    edit(file)
    with pytest.raises(ValueError, match=r"a\.parquet has changed since it was opened: submit the study again$"):
        found.images[2:]


@pytest.mark.parametrize("what", ["the edit", "the clock"])
def test_times_that_lie_ahead_are_not_relied_upon(
    what: str, file: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch, home: Path
):
    ahead = time.time() + 1000
    set_clock(monkeypatch, 10 if what == "the edit" else -10)
    if what == "the edit":
        os.utime(file, (ahead, ahead))
    prints = {load.fingerprint(f"parquet:{file}") for _ in range(3)}
    assert len(prints) == 1 and len(read) == 3 and not home.exists()


@pytest.mark.parametrize("number", ["st_dev", "st_ino"])
def test_numbers_that_do_not_last_cost_a_look_and_nothing_else(
    number: str, file: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch
):
    """As on NFS, whose files may have other numbers after each mount."""
    set_clock(monkeypatch, 10)
    before = load.fingerprint(f"parquet:{file}")
    set_disk(monkeypatch, **{number: 7})
    assert load.fingerprint(f"parquet:{file}") == before and len(read) == 2
    assert load.fingerprint(f"parquet:{file}") == before and len(read) == 2


def test_one_file_under_two_paths_is_one_data_set(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A link stands for what leads to a file on another way, as a bind mount does."""
    set_clock(monkeypatch, 10)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.parquet").hardlink_to(file)
    places = [f"parquet:{file}", f"parquet:{tmp_path / 'there' / 'a.parquet'}"]
    before = load.fingerprint(places[0])
    assert load.fingerprint(places[1]) == before
    edit(file)
    assert load.fingerprint(places[1]) == load.fingerprint(places[0]) != before


def test_a_link_that_leads_elsewhere_is_another_file(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    set_clock(monkeypatch, 10)
    other, link = tmp_path / "b.parquet", tmp_path / "link.parquet"
    write_parquet(other, [encode(255 - image) for image in COLOUR], LABELS)
    prints = set()
    for target in (file, other):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        prints.add(load.fingerprint(f"parquet:{link}"))
    assert len(prints) == 2


def test_notes_do_not_grow_for_ever(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch):
    set_clock(monkeypatch, 10)
    monkeypatch.setattr(file_stamps, "MOST_NOTES", 3)
    home.mkdir()
    (home / "fingerprints.json").write_text("{}")  # of an older release: one for all
    for i in range(5):
        (tmp_path / str(i)).mkdir()
        write_parquet(tmp_path / str(i) / "a.parquet", [encode(image) for image in COLOUR], LABELS)
        load.fingerprint(f"parquet:{tmp_path / str(i) / 'a.parquet'}")
    assert len(list(home.glob("fingerprints/*"))) == 3 and not (home / "fingerprints.json").exists()


def test_files_that_are_gone_leave_the_notes(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch):
    set_clock(monkeypatch, 10)
    place = tmp_path / "set" / "test" / "c0"
    place.mkdir(parents=True)
    for i, image in enumerate(COLOUR):
        (place / f"{i}.png").write_bytes(encode(image))
    load.fingerprint(f"folder:{tmp_path / 'set'}")
    (place / "0.png").rename(place / "6.png")
    load.fingerprint(f"folder:{tmp_path / 'set'}")
    (notes,) = home.glob("fingerprints/*.json")
    assert sorted(Path(name).name for name in json.loads(notes.read_text())["facts"]) == [
        f"{i}.png" for i in range(1, 7)
    ]
