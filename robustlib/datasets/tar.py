"""WebDataset's tar files: the members of one sample share the beginning of their names."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from robustlib.datasets.labels import Labels, classes_of, y_of
from robustlib.datasets.source import AS_IT_IS, TEST, Pictures, Reading, Source
from robustlib.datasets.splits import find_splits
from robustlib.datasets.tar_members import Member, check_plain, members
from robustlib.names import did_you_mean

ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "tif", "tiff")  # of images
LABEL = "cls"
MOST_BYTES = 2**16  # of a member that holds a label
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
# https://github.com/webdataset/webdataset: folders and the name up to its first dot are the key, the rest the ending.
NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")


@dataclass(frozen=True, slots=True)
class Sample:
    """The members that share a key, by ending."""

    archive: Path
    key: str
    members: dict[str, Member] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.archive}: sample {self.key!r}"


def tar(path: Path, reading: Reading = AS_IT_IS) -> Source:
    """WebDataset's shards: a folder with train*.tar and test*.tar, or one file; image (jpg, png, ...), label (cls)."""
    dataset, notes = f"tar:{path}", ()
    if path.is_file():
        splits, files = {TEST: [path]}, [(path.name, path)]
    else:
        found = find_splits(path, dataset, (".tar", *PACKED))
        splits, notes = found.files, found.notes
        files = [(f"{split}/{file.name}", file) for split, listed in splits.items() for file in listed]
    for _, file in files:
        check_plain(file)
    # The classes are those of all splits, so the fingerprint is over all of them.
    return Source("tar", {"": files}, tuple(splits), cache(lambda split: read(dataset, splits, split, reading)), notes)


def read(dataset: str, files: Mapping[str, Sequence[Path]], split: str, reading: Reading) -> Pictures:
    label = reading.label or LABEL
    samples = {path: samples_of(path) for listed in files.values() for path in listed}
    chosen = [sample for path in files[split] for sample in samples[path]]
    if not chosen:
        raise ValueError(f"the dataset holds no image: {files[split][0]} has no member named as KEY.ENDING")
    images = [image_of(sample, reading.image) for sample in chosen]
    for sample in chosen:
        check_label(sample, label)
    texts = {
        path: [text_of(sample, label) for sample in listed if label_ending(label) in sample.members]
        for path, listed in samples.items()
    }
    whole = all(re.fullmatch(r"[+-]?[0-9]{1,18}", text) for listed in texts.values() for text in listed if text)
    found = {path: encode(path, listed, int if whole else str) for path, listed in texts.items()}
    where = f"dataset {dataset}, label {label!r}"
    classes = classes_of(where, found.values(), None, remap=reading.classes == "remap")
    y = y_of(where, split, [found[path] for path in files[split]], classes)
    return Pictures(y, classes.names, lambda rows: fetch(images, rows), lambda row: str(images[row]), reading)


def fetch(images: Sequence[Member], rows: np.ndarray) -> Iterator[bytes]:
    archive, file = None, None
    try:
        for row in rows.tolist():
            member = images[row]
            if file is None or member.archive != archive:
                if file is not None:
                    file.close()
                archive, file = member.archive, member.archive.open("rb")
            file.seek(member.offset)
            yield file.read(member.size)
    finally:
        if file is not None:
            file.close()


def samples_of(path: Path) -> list[Sample]:
    """In the order of their first members. Raises ValueError for a sample with two members of one ending."""
    found: dict[str, Sample] = {}
    for member in members(path):
        if (parts := NAME.fullmatch(member.name)) is None:
            continue
        key, ending = parts[1], parts[2].casefold()
        sample = found.setdefault(key, Sample(path, key))
        if ending in sample.members:
            raise ValueError(f"{sample} has two members .{ending}: expected one, so give samples other names")
        sample.members[ending] = member
    return list(found.values())


def image_of(sample: Sample, asked: str | None) -> Member:
    """Its only image, or the one asked for."""
    endings = [asked.casefold().removeprefix(".")] if asked else ENDINGS
    found = [ending for ending in endings if ending in sample.members]
    if len(found) != 1:
        there = f"{' and '.join(found)}" if found else f"none among {', '.join(sample.members)}"
        raise ValueError(
            f"{sample}: expected one image ({', '.join(endings)}), got {there}: `image: ENDING` (--image ENDING) says "
            "which member is the image; a name's ending begins at its first dot"
        )
    return sample.members[found[0]]


def label_ending(label: str) -> str:
    return "json" if label.startswith("json.") else label.casefold().removeprefix(".")


def check_label(sample: Sample, label: str) -> None:
    if label_ending(label) not in sample.members:
        raise ValueError(
            f"{sample}: expected a label, a member .{label_ending(label)}, got {', '.join(sample.members)}: "
            "`label: ENDING` or `label: json.FIELD` (--label) takes it from another; class folders in a tar file are "
            "read once they are unpacked, by folder:PATH"
        )


def text_of(sample: Sample, label: str) -> str | None:
    """A sample's label as text, None where there is none in it."""
    member = sample.members[label_ending(label)]
    if member.size > MOST_BYTES:
        raise ValueError(f"{sample}: expected a number or a class's name in .{label}, got {member.size} bytes")
    try:
        text = member.read().decode().strip()
        value = json_value(json.loads(text), label.split(".")[1:]) if label.startswith("json.") else text
    except ValueError as error:  # of UTF-8 or of JSON
        raise ValueError(f"{sample}: expected a label in {label}: {error}") from error
    if isinstance(value, bool) or not (value is None or isinstance(value, int | str)):
        raise ValueError(f"{sample}: expected a whole number or text in {label}, got {str(value)[:80]}")
    return str(value) if value is not None and value != "" else None


def json_value(value: Any, path: Iterable[str]) -> Any:
    for name in path:
        if not isinstance(value, dict) or name not in value:
            known = ", ".join(map(str, value)) if isinstance(value, dict) else "no object"
            meant = did_you_mean(name, value) if isinstance(value, dict) else ""
            raise ValueError(f"there is no field {name!r}, there is: {known}{meant}")
        value = value[name]
    return value


def encode(path: Path, texts: Sequence[str | None], kind: type) -> Labels:
    places: dict[Any, int] = {}
    codes = [-1 if text is None else places.setdefault(kind(text), len(places)) for text in texts]
    return Labels(path, list(places), np.array(codes, dtype=np.int64))
