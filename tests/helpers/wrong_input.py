"""A seeded generator of wrong input: studies, options, data folders and checkpoints with something changed in them.

Each case is a command line in a folder of its own, whose files it has written. Nothing is sure to be wrong: what is
taken has to change something.
"""

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.helpers import wrong_files
from tests.helpers.wrong_case import ATTACK, MODEL, STUDY, Case, network
from tests.helpers.wrong_checkpoints import checkpoint
from tests.helpers.wrong_datasets import class_folders, idx, parquet, tar

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
