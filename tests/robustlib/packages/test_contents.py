"""The files of a package: nothing is read of what leads out of it, is a link, or unpacks beyond all proportion."""

import hashlib
import json
import os
import zipfile
from pathlib import Path

import pytest

from robustlib.packages import contents
from robustlib.packages.contents import PackageError, open_contents
from robustlib.packages.manifest import CARD, is_file_alone, open_package, package_hash, seal_of

CARD_OF_ONE = {
    "format": "robustq-package/1",
    "network": {"arch": "lenet5"},
    "files": {"model.onnx": {"sha256": hashlib.sha256(b"abc").hexdigest(), "bytes": 3}},
}


def archive(place: Path, files: dict[str, bytes], **entry: int) -> Path:
    with zipfile.ZipFile(place, "w") as made:
        for name, data in files.items():
            member = zipfile.ZipInfo(name)
            for field, value in entry.items():
                setattr(member, field, value)
            made.writestr(member, data)
    return place


def whole(card: object = CARD_OF_ONE, **files: bytes) -> dict[str, bytes]:
    return {CARD: json.dumps(card).encode(), "model.onnx": b"abc"} | files


def folder(place: Path, files: dict[str, bytes]) -> Path:
    place.mkdir()
    for name, data in files.items():
        (place / name).write_bytes(data)
    return place


@pytest.mark.parametrize("form", ["folder", "p.zip"])
def test_a_package_is_read_by_the_names_of_its_card(tmp_path: Path, form: str):
    place = (archive if form == "p.zip" else folder)(tmp_path / form, whole())
    package = open_package(place)
    assert package.faults == [] and package.read("model.onnx") == b"abc" and package.has_gradients
    assert package.digest == hashlib.sha256(json.dumps(CARD_OF_ONE).encode()).hexdigest()
    assert is_file_alone(place) and is_file_alone(Path("a.onnx")) and not is_file_alone(tmp_path)


@pytest.mark.parametrize(
    "name", ["../out", "/tmp/out", "a/b", "..", ".hidden", "a\\b", "C:x", "a..b", "", "ü", "x" * 200]
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str):
    (tmp_path / "deep").mkdir()
    place = archive(tmp_path / "deep" / "p.zip", whole() | {name: b"x"})
    with pytest.raises(PackageError, match="a package has files in one folder, with plain names"):
        open_package(place)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "p.zip"]


def test_links_folders_and_devices_are_refused(tmp_path: Path):
    (tmp_path / "secret").write_text("s")
    place = folder(tmp_path / "linked", whole())
    (place / "model.onnx").unlink()
    os.symlink(tmp_path / "secret", place / "model.onnx")
    with pytest.raises(PackageError, match=r"'model\.onnx' is a link"):
        open_package(place)
    place = folder(tmp_path / "nested", whole())
    (place / "more").mkdir()
    with pytest.raises(PackageError, match="'more' is no plain file"):
        open_package(place)
    place = folder(tmp_path / "piped", whole())
    os.mkfifo(place / "pipe")
    with pytest.raises(PackageError, match="'pipe' is no plain file"):
        open_package(place)
    with pytest.raises(PackageError, match="is a link: a package has plain files alone"):
        open_package(archive(tmp_path / "l.zip", whole(), external_attr=0o120777 << 16))


def test_a_name_that_becomes_a_link_is_not_followed(tmp_path: Path):
    place = folder(tmp_path / "p", whole())
    opened = open_package(place)
    (place / "model.onnx").unlink()
    os.symlink(tmp_path / "p" / CARD, place / "model.onnx")
    with pytest.raises(PackageError, match=r"model\.onnx cannot be read"):
        opened.read("model.onnx")


def test_what_unpacks_beyond_all_proportion_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(contents, "SMALL_BYTES", 1000)
    bomb = archive(tmp_path / "p.zip", whole() | {"zeros": bytes(10**6)}, compress_type=zipfile.ZIP_DEFLATED)
    with pytest.raises(PackageError, match=r"unpacks to 1 MB, though it has 0.0 MB: expected at most 0 MB"):
        open_package(bomb)
    with pytest.raises(PackageError, match="holds 65 files: a package has at most 64"):
        open_contents(archive(tmp_path / "many.zip", {f"f{i}": b"" for i in range(65)}))


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_packed_file_that_is_damaged_is_named(tmp_path: Path, packing: int):
    text = "".join(hashlib.sha256(bytes([i])).hexdigest() for i in range(100)).encode()
    place = archive(tmp_path / "p.zip", {"a": text}, compress_type=packing)
    whole = open_contents(place)
    assert whole.read("a") == text
    data = bytearray(place.read_bytes())
    data[60:80] = bytes(byte ^ 255 for byte in data[60:80])
    place.write_bytes(data)
    with pytest.raises(PackageError, match=r"p\.zip: a cannot be read"):
        whole.read("a")


def test_two_files_of_one_name_are_refused(tmp_path: Path):
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "p.zip", "w") as made:
        made.writestr("a", b"1")
        made.writestr("a", b"2")
    with pytest.raises(PackageError, match="holds 'a' twice"):
        open_contents(tmp_path / "p.zip")


@pytest.mark.parametrize(
    ("card", "line"),
    [
        ([1], "expected a card of format 'robustq-package/1', got 'list'"),
        ({"format": "other"}, "got 'other'"),
        ({"format": "robustq-package/1"}, "the card names no files"),
        ({"format": "robustq-package/1", "files": {"a": 3}}, "as {sha256, bytes}, got 'a'"),
        ({"format": "robustq-package/1", "files": {CARD: {"sha256": "a", "bytes": 1}}}, "got 'card.json'"),
    ],
)
def test_a_card_that_is_none_is_refused(tmp_path: Path, card: object, line: str):
    with pytest.raises(PackageError, match=line):
        open_package(folder(tmp_path / "p", whole(card)))


def test_what_is_no_package_is_refused(tmp_path: Path):
    (tmp_path / "p.zip").write_bytes(b"PK\x03\x04 half of it")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / CARD).write_text("[" * 100_000)
    (tmp_path / "empty").mkdir()
    for name, line in (
        ("p.zip", "is no ZIP archive that can be read"),
        ("deep", "card.json is no JSON"),
        ("empty", "is no package: it has no card.json"),
        ("none", "there is no package"),
    ):
        with pytest.raises(PackageError, match=line):
            open_package(tmp_path / name)


def test_every_fault_is_named(tmp_path: Path):
    files = {name: {"sha256": hashlib.sha256(b"abc").hexdigest(), "bytes": 3} for name in ("a", "b", "c", "d")}
    place = folder(tmp_path / "p", whole({**CARD_OF_ONE, "files": files}) | {"a": b"abc", "b": b"abd", "c": b"abcd"})
    package = open_package(place)
    assert package.faults == [
        "d: missing",
        "model.onnx: the card does not name it",
        "b: another content than the card's, by its hash",
        "c: 4 bytes, the card says 3",
    ]
    with pytest.raises(PackageError, match="b is not the file that the card names"):
        package.read("b")
    with pytest.raises(PackageError, match=r"the card names no model\.onnx"):
        package.read("model.onnx")
    with pytest.raises(PackageError, match="is not what its card says: d: missing; "):
        package_hash(place)


def test_the_key_is_of_what_is_computed_and_not_of_what_is_said(tmp_path: Path):
    """The same model packaged twice, folder or archive, is one model; another program or network is another."""
    said = {**CARD_OF_ONE, "made_at": "tomorrow", "classes": ["b", "a"]}
    one = package_hash(folder(tmp_path / "p", whole()))
    assert package_hash(archive(tmp_path / "p.zip", whole(said))) == one
    other = {**CARD_OF_ONE, "network": {"arch": "convnet3"}}
    assert package_hash(folder(tmp_path / "q", whole(other))) != one
    changed = {"model.onnx": {"sha256": hashlib.sha256(b"abd").hexdigest(), "bytes": 3}}
    place = folder(tmp_path / "r", whole({**CARD_OF_ONE, "files": changed}) | {"model.onnx": b"abd"})
    assert package_hash(place) != one
    assert seal_of(said) != seal_of(CARD_OF_ONE) == seal_of({**CARD_OF_ONE, "files": changed})
