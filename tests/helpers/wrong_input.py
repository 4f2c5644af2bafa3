"""A seeded generator of wrong input: studies, options, data folders and checkpoints with something changed in them.

Each case is a command line in a folder of its own, whose files it has written. Nothing is sure to be wrong: what is
taken has to change something.
"""

import copy
import gzip
import io
import random
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image

from robustlib.models import build
from tests.helpers import wrong_files

STUDY: dict[str, Any] = {
    "name": "base",
    "dataset": "digits",
    "models": {
        "plain": {"arch": "lenet5", "train": {"objective": "pgd", "eps": 0.1, "steps": 3, "epochs": 2}},
        "mine": {"file": "m.py:make", "options": {"width": 3}, "normalize": {"mean": 0.5, "std": [0.25]}},
        "given": {
            "arch": "lenet5",
            "weights": "w.pt",
            "defence": [{"name": "bit_depth", "bits": 3}, {"name": "median"}],
        },
    },
    "attacks": [{"name": "pgd", "eps": [0.1, 0.2], "steps": 5}, {"name": "deepfool", "norm": "L2"}],
    "seeds": [0, 1],
    "examples": 10,
    "train": {"batch_size": 64},
}
MODEL = """import torch
def make(width: int, in_channels, num_classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(width), torch.nn.Linear(width, num_classes))
"""
ATTACK = ["attack", "lenet5", "--weights", "w.pt", "--attack", "pgd", "--eps", "8/255", "--param", "steps=2"]
ATTACK += ["--examples", "20"]
# Written into YAML as they stand.
SCALARS = [
    "yes", "no", "true", "off", "null", "~", ".inf", "-.inf", ".nan", "nan", "inf", "2e-3", "1e1", "1e400", "1e-400",
    "010", "0x1F", "1_000", "1:30", "1/0", "3/255", "-3/255", "7/255/2", "1 / 7", "'0.07'", "'3/255'", "'yes'", "0", "-1",
    "2", "3", "2.5", "0.07", "1.5", "255", "99999999999999999999", "2026-01-01", "''", "a", "L2", "L1", "Linf", "l2",
    "all", "ALL", "pgd", "fgsm", "autoattack", "standard", "convnet3", "digits", "cifar11", "parquet:none", "folder:.",
    "m.py:make", "m.py:nothing", "none.py:make", "os:system", "http://127.0.0.1:9/v1:predict", "[]", "[3]", "[yes]",
    "[0.05, 0.06]", "[0.06, 0.05]", "[.nan]", "{}", "{a: 1}", "[[1]]", "'\\0'", "\"🐍\"", "validation", "train",
    "stratified", "remap", "imagenet", "dataset", "{mean: [0.5], std: [0.2]}", "{mean: [0.5], std: [0]}",
    "{mean: [0.1, 0.2, 0.3], std: [1, 1, 1]}", "{mean: yes, std: no}", "x" * 300, *wrong_files.YAML,
]  # fmt: skip
ENTRIES = [
    "name", "dataset", "split", "label", "image", "classes", "size", "crop", "exif_transpose", "choose", "examples",
    "images", "batch_size", "draws", "eot_draws", "shards", "audit", "timeout_seconds", "train", "seeds", "arch", "file",
    "weights", "normalize", "dropout_at_inference", "options", "defence", "norm", "eps", "restarts", "surrogate", "steps",
    "step_size", "loss", "random_start", "queries", "epochs", "objective", "learning_rate", "optimizer", "flip",
    "validation", "keep", "version", "epsilon", "epss", "models", "attacks",
]  # fmt: skip
TRAIN = ["train", "convnet3", "--objective", "pgd", "--param", "eps=8/255", "--param", "steps=2", "--epochs", "2"]
AUDIT = ["audit", "lenet5", "--weights", "w.pt", "--eps", "8/255", "--examples", "20", "--queries", "50"]
OPTIONS = [
    "--dataset", "--norm", "--eps", "--param", "--examples", "--seed", "--attack", "--weights", "--label", "--image",
    "--split", "--classes", "--size", "--crop", "--choose", "--normalize", "--mean", "--std", "--cpus-per-job",
]  # fmt: skip
CHANGES = ["--examples", "--epochs", "--dataset", "--split", "--label", "--size", "--crop", "--choose", "--priority"]
VALUES = [
    "yes", "nan", "inf", "2e-3", "1e1", "3/255", "1/0", "-1", "0", "2", "2.5", "07", "1_0", "", "a", "L2", "L1", "l2", "all",
    "fgsm", "clean", "deepfool", "autoattack", "audit", "certify", "steps=3", "steps=yes", "steps=1e1", "steps=", "=3",
    "restarts=2", "restarts=yes", "step_size=2e-3", "loss=dlr", "random_start=no", "stepz=1", "digits", "mnist2",
    "parquet:none", "folder:.", "idx:.", "none.pt", ".", "w.pt", "w.pt:state_dict", "validation", "train", "test", "remap",
    "stratified", "8x9", "8", "0x8", "cifar10", "imagenet", "dataset", "0.5", "0.5,0.4", "0.5,0.4,0.3", "0", "-0.1", "🐍",
    "99999999999999999999", "1e400",
]  # fmt: skip


# What is left out is the default, and another way of writing a value is no other value.
NOTHING = ("~", "null", "!!null x")  # said of an entry, as if it were left out
IDLE = (
    "add --weights w.pt", "add --seed 0", "add --normalize dataset", "add --split test", "replace --epochs 2", "add --norm Linf",
    "drop attacks.1.norm: ", "drop --attack ", "replace attacks.1.norm: L2", "add seeds.0: 0", "replace seeds.0: 0", "drop name: ", "drop dataset: ", "drop --eps ",
    "add --cpus-per-job 8", "add --cpus-per-job 2", "add --cpus-per-job 1_0", "add --cpus-per-job 07", "replace attacks.1.norm: ~",
    "replace attacks.1.norm: null", "replace attacks.1.norm: !!null x", "add --dataset digits", "replace --weights w.pt",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A command line to be given in `folder`. what: was changed, in words.  idle: it may change nothing."""

    folder: Path
    words: list[str]
    what: str
    idle: bool = False


def make(kind: str, folder: Path, draw: random.Random | None) -> Case:
    """A case of this kind; unchanged where there is nothing to draw by."""
    folder.mkdir(parents=True)
    return KINDS[kind](folder, draw)


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a tree of dicts and lists."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return ([path] if path else []) + [place for key, value in items for place in places(value, (*path, key))]


def study(folder: Path, draw: random.Random | None) -> Case:
    """A study with one entry replaced, dropped, added or misspelt."""
    (folder / "m.py").write_text(MODEL)
    torch.save(network().state_dict(), folder / "w.pt")
    data, what, raw, words = copy.deepcopy(STUDY), "unchanged", "", ["submit", "s.yaml"]
    if draw is not None:
        path = draw.choice(places(data))
        parent: Any = data
        for key in path[:-1]:
            parent = parent[key]
        how = draw.choice(["replace", "replace", "drop", "add", "add"])
        raw = draw.choice(SCALARS)
        if how == "drop":
            del parent[path[-1]]
        elif how == "add" and isinstance(parent, dict):
            name = draw.choice(ENTRIES)
            parent[name] = "@@raw@@"
            path = (*path[:-1], name)
        else:
            parent[path[-1]] = "@@raw@@"
        what = f"{how} {'.'.join(map(str, path))}: {raw if how != 'drop' else ''}"
        if draw.random() < 0.2:  # the command line replaces what stands in the file
            name, value = draw.choice(CHANGES), draw.choice(VALUES)
            words += [name, value]
            what += f" with {name} {value}"
    text = yaml.safe_dump(data, sort_keys=False).replace("'@@raw@@'", raw).replace("@@raw@@", raw)
    content = text.encode()
    if draw is not None and draw.random() < 0.15:  # other bytes, at the end or in the middle
        more, at = draw.choice(wrong_files.TEXTS), draw.choice([len(content), draw.randrange(len(content))])
        content = content[:at] + more + content[at:]
        what += f", {more[:12]!r} at {at}"
    (folder / "s.yaml").write_bytes(content)
    idle = what.partition(" with ")[0] in IDLE or (what.startswith("add ") and raw in NOTHING)
    return Case(folder, words, what, idle)


def changed_words(folder: Path, given: list[str], draw: random.Random | None) -> Case:
    """A command with one of its options replaced, dropped or added."""
    torch.save(network().state_dict(), folder / "w.pt")
    words, what = list(given), "unchanged"
    if draw is not None:
        places = [i for i, word in enumerate(words) if word.startswith("--")]
        at, value = draw.choice(places), draw.choice(VALUES)
        how = draw.choice(["replace", "replace", "drop", "add", "add", "add"])
        name = words[at] if how != "add" else draw.choice(OPTIONS)
        if how == "replace":
            words[at + 1] = value
        elif how == "drop":
            del words[at : at + 2]
        else:
            words += [name, value]
        what = f"{how} {name} {value if how != 'drop' else ''}"
    return Case(folder, words, what, what in IDLE)


def options(folder: Path, draw: random.Random | None) -> Case:
    return changed_words(folder, ATTACK, draw)


def training(folder: Path, draw: random.Random | None) -> Case:
    return changed_words(folder, TRAIN, draw)


def audit(folder: Path, draw: random.Random | None) -> Case:
    return changed_words(folder, AUDIT, draw)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build(arch="lenet5", in_channels=1, num_classes=10, image_size=(8, 8))


def checkpoint(folder: Path, draw: random.Random | None) -> Case:
    """Weights as people save them, wrapped, renamed, short of something, or not weights at all."""
    path = folder / "w.pt"
    state: Any = {name: tensor.clone() for name, tensor in network().state_dict().items()}
    what = "unchanged"
    if draw is None:
        torch.save(state, path)
    else:
        how = draw.choice(list(CHECKPOINTS))
        what = how + CHECKPOINTS[how](path, state, draw)
    return Case(folder, list(ATTACK), what)


def changed(save: Callable[[dict[str, Any], random.Random], Any]) -> Callable[[Path, Any, random.Random], str]:
    """A change of the state dict, which is then saved."""

    def change(path: Path, state: dict[str, Any], draw: random.Random) -> str:
        found, word = save(state, draw)
        torch.save(found, path)
        return f" {word}"

    return change


def renamed(state: dict[str, Any], draw: random.Random) -> tuple[Any, str]:
    prefix = "".join(
        draw.choice(["module.", "_orig_mod.", "model.", "backbone.", "x."]) for _ in range(draw.randint(1, 2))
    )
    return {prefix + name: tensor for name, tensor in state.items()}, prefix


def nested(state: dict[str, Any], draw: random.Random) -> tuple[Any, str]:
    names = draw.sample(
        ["state_dict", "model", "net", "model_state_dict", "ema", "best", "optimizer"], draw.randint(1, 3)
    )
    other = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    return {name: state if i == 0 else other for i, name in enumerate(names)} | {"epoch": 3}, "+".join(names)


def lacking(state: dict[str, Any], draw: random.Random) -> tuple[Any, str]:
    name = draw.choice(list(state))
    return {key: tensor for key, tensor in state.items() if key != name}, name


def with_more(state: dict[str, Any], draw: random.Random) -> tuple[Any, str]:
    name = draw.choice(["net.fc9.weight", "normalizer.mean", "ema.decay", "epoch"])
    return state | {name: draw.choice([torch.zeros(3), 3, "text", None])}, name


def misshapen(state: dict[str, Any], draw: random.Random) -> tuple[Any, str]:
    name = draw.choice(list(state))
    return state | {name: torch.zeros(*state[name].shape, 2)}, name


def retyped(state: dict[str, Any], draw: random.Random) -> tuple[Any, str]:
    kind = draw.choice([torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.complex64, torch.bool])
    return {name: tensor.to(kind) for name, tensor in state.items()}, str(kind)


def no_dict(state: dict[str, Any], draw: random.Random) -> tuple[Any, str]:
    what = draw.choice([list(state.values()), network(), {}, None, 3, torch.zeros(4), [state], {1: torch.zeros(2)}])
    return what, type(what).__name__


def cut(path: Path, state: dict[str, Any], draw: random.Random) -> str:
    torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])
    return f" at {path.stat().st_size}"


def flipped(path: Path, state: dict[str, Any], draw: random.Random) -> str:
    torch.save(state, path)
    content = bytearray(path.read_bytes())
    at = draw.randrange(len(content))
    content[at] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return f" at {at}"


def other_file(path: Path, state: dict[str, Any], draw: random.Random) -> str:
    found = draw.choice(
        [b"", b"\0" * 100, b"<!DOCTYPE html><html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
         b"PK\x03\x04" + b"\0" * 60, b"\x80\x04\x95", b"\x08\x07\x12\x07pytorch", b"\x89HDF\r\n\x1a\n", b"\x1f\x8b\x08\0\0"]
    )  # fmt: skip
    path.write_bytes(found)
    return f" {found[:12]!r}"


CHECKPOINTS: dict[str, Callable[[Path, Any, random.Random], str]] = {
    "renamed": changed(renamed),
    "nested": changed(nested),
    "lacking": changed(lacking),
    "with more": changed(with_more),
    "misshapen": changed(misshapen),
    "retyped": changed(retyped),
    "no dict": changed(no_dict),
    "cut": cut,
    "flipped": flipped,
    "another file": other_file,
    **wrong_files.MORE_CHECKPOINTS,
}

Y = [i % 3 for i in range(12)]


def png(k: int, seed: int, side: int = 8, mode: str = "L") -> bytes:
    a = np.random.default_rng(seed).integers(0, 90, (side, side)).astype("uint8")
    a[: side // 2] += np.uint8(50 * k)
    file = io.BytesIO()
    Image.fromarray(a).convert(mode).save(file, "PNG")
    return file.getvalue()


def with_data(folder: Path, kind: str, name: str, what: str, *, idle: bool = False) -> Case:
    (folder / "m.py").write_text(MODEL)
    data = STUDY | {"dataset": f"{kind}:{name}", "models": {"mine": STUDY["models"]["mine"]}}
    del data["train"]
    (folder / "s.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    return Case(folder, ["submit", "s.yaml"], what, idle)


def parquet(folder: Path, draw: random.Random | None) -> Case:
    """A Parquet file whose columns, labels or images are changed."""
    values: dict[str, list[Any]] = {"image": [png(y, i) for i, y in enumerate(Y)], "label": list(Y)}
    what, name = "unchanged", "label"
    if draw is not None:
        what, row = draw.choice(PARQUETS), draw.randrange(12)
        match what:
            case "label":
                values["label"][row] = draw.choice([None, -1, 7, 10**12, 2**62, (Y[row] + 1) % 3])
            case "kind":
                kind = draw.choice([str, float, bool, lambda y: [y], lambda y: {"a": y}, lambda y: f"c{y}", bytes])
                values["label"] = [kind(y) for y in Y]
            case "image":
                values["image"][row] = draw.choice(
                    [None, b"", b"no image", png(1, 99)[:-20], png(1, 99, side=9), png(1, 99, mode="RGB"), png(1, 98)]
                )
            case "columns":
                more = draw.choice(["target", "image_id", "width", "labels", "note", "index"])
                values[more] = draw.choice([list(range(12)), [f"t{i}" for i in range(12)], list(Y), [None] * 12])
            case "name":
                name = draw.choice(["y", "class", "digit", "Label", "", "label.a", "labels", "ß"])
            case "empty":
                values = {column: [] for column in values}
    values = {name if column == "label" else column: value for column, value in values.items()}
    image = [{"bytes": b, "path": None} for b in values["image"]]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {column: pa.array(image, kind) if column == "image" else pa.array(v) for column, v in values.items()}
    table = pa.table(columns)
    pq.write_table(
        wrong_files.with_metadata(table, draw) if draw and what == "metadata" else table, folder / "d.parquet"
    )
    if draw is not None and what == "flip":
        what = wrong_files.flip(folder / "d.parquet", draw)
    if what in ("texts", "rows"):
        (wrong_files.large_texts if what == "texts" else wrong_files.many_rows)(folder / "d.parquet")
    if draw is not None and what == "bytes":
        content = bytearray((folder / "d.parquet").read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        (folder / "d.parquet").write_bytes(content[: draw.choice([len(content), draw.randrange(len(content))])])
    return with_data(folder, "parquet", "d.parquet", what, idle=what.startswith(("metadata", "flip")))


PARQUETS = [
    "label",
    "kind",
    "image",
    "columns",
    "name",
    "empty",
    "bytes",
    "metadata",
    "metadata",
    "flip",
    "flip",
    "texts",
    "rows",
]


def class_folders(folder: Path, draw: random.Random | None) -> Case:
    """A folder for each class, with files and folders renamed, damaged or put in its way."""
    root = folder / "d" / "test"
    for i, y in enumerate(Y):
        place = root / ("ant", "bee", "cat")[y] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(png(y, i))
    what = "unchanged"
    if draw is not None:
        what = draw.choice(["rename split", "rename class", "another split", "file", "more", "wrap", "emptied"])
        words = [
            "Test",
            "testing",
            "val",
            "train",
            "Training",
            "eval",
            "flowers",
            "__MACOSX",
            ".hidden",
            "dev",
            "tests",
        ]
        word, file = draw.choice(words), draw.choice(sorted(root.rglob("*.png")))
        match what:
            case "rename split":
                root.rename(root.with_name(word))
            case "rename class":
                (root / "cat").rename(root / word)
            case "another split":
                (root.with_name(word) / "ant").mkdir(parents=True, exist_ok=True)
                (root.with_name(word) / "ant" / "n.png").write_bytes(png(0, 77))
            case "file":
                file.write_bytes(
                    draw.choice(
                        [b"", b"no image", png(1, 99)[:-20], png(1, 99, side=9), png(1, 99, mode="RGB"), png(1, 98)]
                    )
                )
            case "more":
                name = draw.choice(["n.PNG", "n.jpeg", "n.tiff", "n.webp"])
                (file.parent / name).write_bytes(draw.choice([b"", png(0, 66), b"GIF89a"]))
            case "wrap":
                inner = root.parent.rename(folder / "inner")
                inner.rename((folder / "d" / word) if not (folder / "d").mkdir() else inner)
            case "emptied":
                for png_file in sorted((root / "bee").iterdir()):
                    png_file.unlink()
        what += f" {word}"
    # A split that is not evaluated is nothing to one that is, and so is a folder that is none.
    return with_data(folder, "folder", "d", what, idle=what.startswith("another split"))


def idx(folder: Path, draw: random.Random | None) -> Case:
    """The four files of the MNIST family, one of them damaged."""
    x = np.random.default_rng(0).integers(0, 256, (12, 8, 8)).astype("uint8")
    place = folder / "d"
    place.mkdir()
    for prefix in ("train", "t10k"):
        for part, values in (("images-idx3", x), ("labels-idx1", np.array(Y, "uint8"))):
            head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
            (place / f"{prefix}-{part}-ubyte").write_bytes(head + values.tobytes())
    what = "unchanged"
    if draw is not None:
        file = draw.choice(sorted(place.iterdir()))
        content = bytearray(file.read_bytes())
        at = draw.randrange(len(content)) if draw.random() < 0.5 else draw.randrange(16)
        how = draw.choice(["flip", "cut", "gone", "longer"])
        if how == "flip" and at < len(content):
            content[at] ^= 1 << draw.randrange(8)
        what = f"{how} {file.name} at {at}"
        file.write_bytes(content[:at] if how == "cut" else content + b"\0" if how == "longer" else content)
        if how == "gone":
            file.unlink()
    return with_data(folder, "idx", "d", what)


def tar(folder: Path, draw: random.Random | None) -> Case:
    """A shard of WebDataset with a member renamed, damaged, doubled or gone, or the file itself damaged."""
    members = {f"{i:04}.{end}": png(y, i) if end == "png" else str(y).encode() for i, y in enumerate(Y) for end in ENDS}
    what, twice = "unchanged", ""
    if draw is not None:
        what, name = draw.choice(TARS), draw.choice(list(members))
        match what:
            case "gone":
                del members[name]
            case "rename":
                end = draw.choice(["jpg", "CLS", "json", "txt", "seg.png", "label", ""])
                members[f"{name[:4]}.{end}"] = members.pop(name)
            case "label":
                name = f"{name[:4]}.cls"
                members[name] = draw.choice([b"", b"-1", b"7", b"1.0", b"ant", b"1\n", b"\xff", b"9" * 30, b"1 2"])
            case "image":
                members[f"{name[:4]}.png"] = draw.choice([b"", b"no image", png(1, 99)[:-20], png(1, 99, side=9)])
            case "twice":
                twice = name
            case "folder":
                members = {f"a/{name}" if i > 5 else name: content for i, (name, content) in enumerate(members.items())}
        what += f" {name}"
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as shard:
        for name in [*members, *([twice] if twice else [])]:
            info = tarfile.TarInfo(name)
            info.size = len(members[name])
            shard.addfile(info, io.BytesIO(members[name]))
    content = bytearray(file.getvalue())
    if draw is not None and what.startswith("bytes"):
        content[draw.randrange(len(content) // 2)] ^= 1 << draw.randrange(8)
        content = content[: draw.choice([len(content), draw.randrange(len(content))])]
    (folder / "test-000.tar").write_bytes(gzip.compress(content) if what.startswith("gzip") else content)
    return with_data(folder, "tar", "test-000.tar", what)


ENDS = ("png", "cls")
TARS = ["gone", "rename", "label", "image", "twice", "folder", "bytes", "gzip"]


def places_of(folder: Path, draw: random.Random | None) -> Case:
    """Commands that name a store, a file to read or to write, or a time, by a name that is none of such a thing."""
    unchanged = study(folder, None)
    if draw is None:
        return unchanged
    odd, named = wrong_files.no_files(folder), wrong_files.stores(folder)
    what = draw.choice(["store", "store", "study", "weights", "code", "data", "out", "seconds", "number"])
    store, place = draw.choice([*named, *odd]), draw.choice(odd)
    match what:
        case "store":
            some = [
                ["submit", "s.yaml"],
                ["status"],
                ["db", "info"],
                ["results"],
                ["sql", "select 1"],
                ["db", "upgrade"],
            ]
            words = ["--store", store, *draw.choice(some)]
        case "study":
            place = place.replace("\0", "")  # which no command line can hold
            words = draw.choice([["submit", place], ["submit", place, "--cluster", "http://127.0.0.1:1", "--dry-run"]])
        case "weights":
            words = ["attack", "lenet5", "--weights", place + draw.choice(["", ":state_dict"]), "--eps", "8/255"]
        case "code":
            words = ["attack", f"{place}{draw.choice(['', '.py'])}:make", "--eps", "8/255"]
        case "data":
            kind = draw.choice(["parquet", "idx", "folder", "tar"])
            words = ["attack", "lenet5", "--weights", "w.pt", "--eps", "8/255", "--dataset", f"{kind}:{place}"]
        case "out":
            place = draw.choice(
                [*wrong_files.OUTPUTS, *(name for name in odd if "nowhere" not in name and name != " ")]
            )
            words = draw.choice([["report", "--sweep", "x", "--out", place], ["export", f"{place}/x.csv"]])
        case "seconds":
            place = draw.choice(wrong_files.SECONDS)
            words = ["sql", "select 1", f"--seconds={place}"]
        case _:
            place = draw.choice(["9" * 5000, "1" + "0" * 30, "nan", "inf", "-1", "0"])
            words = ["sql", "select 1", f"--limit={place}"]
    return Case(folder, words, f"{what} {store[:60] if what == 'store' else place[:60]!r}", idle=True)


KINDS: dict[str, Callable[[Path, random.Random | None], Case]] = {
    "study": study,
    "options": options,
    "training": training,
    "audit": audit,
    "checkpoint": checkpoint,
    "parquet": parquet,
    "folder": class_folders,
    "idx": idx,
    "tar": tar,
    "places": places_of,
}
