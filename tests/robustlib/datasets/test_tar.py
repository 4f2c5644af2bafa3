"""WebDataset's tar files: samples by their keys, read in place; nothing is unpacked, and what is not plain is named."""

import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustlib.datasets import load as data
from tests.helpers.parquet_samples import load, png

Y = [0, 1, 2, 0, 1, 2]


pytestmark = pytest.mark.usefixtures("home")  # a cache of its own


def pack(path: Path, members: dict[str, bytes], *others: tarfile.TarInfo, format: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
        for about in others:
            archive.addfile(about)
    return path


def samples(y: Any = Y, ending: str = "cls", image: str = "png", folder: str = "", start: int = 0) -> dict[str, bytes]:
    found = {}
    for k, label in enumerate(y):
        found[f"{folder}{k:04}.{image}"] = png(start + k)
        found[f"{folder}{k:04}.{ending}"] = label if isinstance(label, bytes) else str(label).encode()
    return found


def values(found: data.Dataset) -> list[int]:
    return found.x[:, 0, 0, 0].tolist()


LONG = "a" * 90 + "/" + "b" * 120 + "/"
PLAIN = {
    "as written": samples(),
    "in folders": samples(folder="./train/cats/"),
    "long names": samples(folder=LONG),
    "upper case": samples(image="PNG"),
    "a line's end": {name: content + b"\n" if name.endswith("cls") else content for name, content in samples().items()},
    "more members": samples() | {f"{k:04}.json": b"{" for k in range(6)} | {f"{k:04}.seg.png": b"" for k in range(6)},
    "images first": dict(sorted(samples().items(), key=lambda item: item[0].endswith("cls"))),
    "files beside": {"README": b"", "._0000.png": b"no", "a/.hidden.cls": b"x"} | samples(),
}


@pytest.mark.slow
@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["GNU", "PAX"])
@pytest.mark.parametrize("members", PLAIN.values(), ids=PLAIN)
def test_samples_come_back(members: dict[str, bytes], format: int, tmp_path: Path):
    found = load(pack(tmp_path / "a.tar", members, format=format), kind="tar")
    assert found.y.tolist() == Y and found.names == ("0", "1", "2") and values(found) == list(range(6))


def test_splits_and_their_shards(tmp_path: Path):
    pack(tmp_path / "set" / "train-000000.tar", samples())
    pack(tmp_path / "set" / "train-000001.tar", samples([2, 3], start=10))
    pack(tmp_path / "set" / "imagenet-val-000000.tar", samples([1, 1], start=20))
    pack(tmp_path / "set" / "._train-000002.tar", {})
    train, validation = (load(tmp_path / "set", split, kind="tar") for split in ("train", "validation"))
    assert train.y.tolist() == [*Y, 2, 3] and values(train) == [*range(6), 10, 11]
    assert validation.y.tolist() == [1, 1] and values(validation) == [20, 21]
    assert train.names == validation.names == ("0", "1", "2", "3")
    assert train.images[np.array([7, 2])][:, 0, 0, 0].tolist() == [11, 2]
    with pytest.raises(ValueError, match="has no 'test' split, it has: train, validation: `split: validation` eval"):
        load(tmp_path / "set", kind="tar")


def test_labels_from_other_members(tmp_path: Path):
    about = [json.dumps({"label": ["owl", "cat", "dog"][k], "meta": {"id": k}}).encode() for k in Y]
    path = pack(tmp_path / "a.tar", samples(["cat", "dog", "owl"] * 2, "txt") | samples(about, "json"))
    for reading, y, names in (
        ({"label": "txt"}, [0, 1, 2] * 2, ("cat", "dog", "owl")),
        ({"label": "json.label"}, [2, 0, 1] * 2, ("cat", "dog", "owl")),
        ({"label": "json.meta.id"}, Y, ("0", "1", "2")),
    ):
        found = load(path, kind="tar", **reading)
        assert found.y.tolist() == y and found.names == names
    assert data.fingerprint(f"tar:{path}") == data.fingerprint(f"tar:{path}", "train")


def test_an_image_that_the_user_names(tmp_path: Path):
    members = (
        samples() | {f"{k:04}.jpg": png(50 + k) for k in range(6)} | {f"{k:04}.left.png": png(90) for k in range(6)}
    )
    path = pack(tmp_path / "a.tar", members)
    with pytest.raises(ValueError, match=r"sample '0000': expected one image .*, got jpg and png: `image: ENDING`"):
        load(path, kind="tar")
    assert values(load(path, kind="tar", image="jpg")) == list(range(50, 56))
    assert values(load(path, kind="tar", image="left.png")) == [90] * 6


REFUSED = {
    "no label": (
        {"a.png": png(0)},
        {},
        r"a\.tar: sample 'a': expected a label, a member \.cls, got png: `label: ENDING`",
    ),
    "the third": (samples([0, 1]) | {"x.png": png(0)}, {}, "sample 'x': expected a label"),
    "no image": (
        samples([0, 1]) | {"x/y.cls": b"0"},
        {},
        r"sample 'x/y': expected one image .*, got none among cls: `im",
    ),
    "names with dots": (
        {"v1.5_a.png": png(0), "v1.5_a.cls": b"0"},
        {},
        "got none among 5_a.png, 5_a.cls: .* first dot$",
    ),
    "nothing": ({"README": b""}, {}, "the dataset holds no image: .*has no member named as KEY.ENDING$"),
    "holes": (
        samples([0, 5]),
        {},
        "labels from 0 to 5, 2 different ones: expected 0 to 1 without holes; `classes: remap`",
    ),
    "empty": (samples([0, b""]), {}, "1 of 2 labels is null or empty, the first in .*a.tar, row 1"),
    "not text": (samples([0, b"\xff"]), {}, "sample '0001': expected a label in cls: 'utf-8' codec"),
    "large": (samples([0, b"1" * 100_000]), {}, "expected a number or a class's name in .cls, got 100000 bytes"),
    "no JSON": (samples([b"{"], "json"), {"label": "json.a"}, "expected a label in json.a: Expecting"),
    "no field": (samples([b'{"b": 1}'], "json"), {"label": "json.a"}, "there is no field 'a', there is: b$"),
    "no object": (samples([b"1"], "json"), {"label": "json.a"}, "there is no field 'a', there is: no object$"),
    "a list": (
        samples([b'{"a": [1]}'], "json"),
        {"label": "json.a"},
        r"expected a whole number or text in json.a, got \[",
    ),
    "a fraction": (samples([b'{"a": 0.5}'], "json"), {"label": "json.a"}, "in json.a, got 0.5$"),
    "cut picture": (
        samples([0]) | {"0000.png": png(0)[:20]},
        {},
        r"a.tar, member 0000.png: expected PNG or JPEG bytes",
    ),
}


@pytest.mark.parametrize("members, reading, message", REFUSED.values(), ids=REFUSED)
def test_what_is_not_plain_is_named(members: dict, reading: dict, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message) as caught:
        load(pack(tmp_path / "a.tar", members), kind="tar", **reading)
    assert "\n" not in str(caught.value)


def test_remap(tmp_path: Path):
    found = load(pack(tmp_path / "a.tar", samples([7, 100, 7])), kind="tar", classes="remap")
    assert found.y.tolist() == [0, 1, 0] and found.names == ("7", "100")


def test_two_members_of_one_name(tmp_path: Path):
    members = list(samples([0, 1]).items())
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in [*members, members[0]]:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    with pytest.raises(ValueError, match=r"sample '0000' has two members .png: expected one"):
        load(tmp_path / "a.tar", kind="tar")


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    about = tarfile.TarInfo(name)
    about.type, about.linkname = kind, target
    return about


def test_hostile_members_are_passed_over_and_nothing_is_written(tmp_path: Path, home: Path):
    outside = tmp_path / "outside.png"
    outside.write_bytes(png(99))
    others = [
        special("x.png", tarfile.SYMTYPE, str(outside)),
        special("y.png", tarfile.LNKTYPE, "0000.png"),
        special("z.png", tarfile.FIFOTYPE),
        special("w.png", tarfile.CHRTYPE),
        special("v.png", tarfile.DIRTYPE),
    ]
    members = samples() | {"../out.png": png(1), "/abs.png": png(1), "a/../../b.png": png(1)}
    path = pack(tmp_path / "in" / "a.tar", members, *others)
    there = {file for file in tmp_path.rglob("*")}
    assert values(load(path, kind="tar")) == list(range(6))
    assert {file for file in tmp_path.rglob("*") if home not in file.parents and file != home} == there


def test_a_file_that_is_packed_or_none_or_cut_off(tmp_path: Path):
    whole = pack(tmp_path / "a.tar", samples()).read_bytes()
    another = pack(tmp_path / "b.tar", samples([1])).read_bytes()
    ends = whole.rstrip(b"\0")
    ends += bytes(-len(ends) % 512)
    for name, content, message in (
        ("c.tar.gz", gzip.compress(whole), r"c\.tar\.gz is packed: expected a plain tar file, so `gunzip` it first$"),
        ("d.tar", gzip.compress(whole), r"d\.tar is packed: .*`gunzip` it first$"),
        (
            "e.tar",
            b"version https://git-lfs.github.com/spec/v1\n" * 20,
            "is no tar file, or is cut off: a Git LFS pointer",
        ),
        ("f.tar", b"", "is no tar file, or is cut off: "),
        ("g.tar", b"something else" * 100, "is no tar file, or is cut off: "),
        ("h.tar", whole[:1400], "is cut off"),
        ("i.tar", whole[: 512 * 4 + 100], "is cut off"),
        ("j.tar", ends, "is cut off or damaged: it does not end as a tar file, at byte "),
        ("k.tar", whole + another, "something follows the end of the archive: expected one archive in the file$"),
        ("l.tar", whole[: 512 * 4] + b"x" * 512 + whole[512 * 5 :], "is cut off or damaged: it does not end as a tar"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            load(tmp_path / name, kind="tar")
        assert "\n" not in str(caught.value) and name in str(caught.value)
    (tmp_path / "set").mkdir()
    with pytest.raises(FileNotFoundError, match=r"expected train\*\.tar and test\*\.tar there, found neither$"):
        load(tmp_path / "set", kind="tar")
    (tmp_path / "set" / "train-0.tar.gz").write_bytes(gzip.compress(whole))
    with pytest.raises(ValueError, match=r"train-0\.tar\.gz is packed"):
        load(tmp_path / "set", "train", kind="tar")


def test_a_sparse_member_is_refused(tmp_path: Path):
    """Its bytes do not lie in one piece."""
    with (tmp_path / "0000.png").open("wb") as file:
        file.seek(2**20)
        file.write(png(1))
    if os.system(f"cd {tmp_path} && tar --sparse -cf a.tar 0000.png 2>/dev/null"):
        pytest.skip("needs GNU tar")
    with pytest.raises(ValueError, match=r"member 0000\.png is sparse: expected plain files, so pack it anew$"):
        load(tmp_path / "a.tar", kind="tar")
