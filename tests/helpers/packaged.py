"""A small store whose network was trained and attacked, and packages of it, altered as somebody might."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

from robustq.jobs.packages.chosen_model import model_by_job
from robustq.jobs.packages.make import Asked, Made, make_package
from robustq.jobs.store.connection import Store

QUICK = Asked(queries=30, examples=40, seconds=0.0, monitored=0)
STUDY: dict[str, Any] = {
    "name": "small",
    "dataset": "digits",
    "models": {"net": {"arch": "lenet5", "train": {"optimizer": "adam", "learning_rate": 0.005, "epochs": 6}}},
    "attacks": [
        {"name": "pgd", "eps": 0.05, "steps": 10},
        {"name": "fgsm", "eps": 0.05},
        {"name": "certify", "sigma": 0.1, "n": 100, "n0": 10, "eps": 0.1},
        {"name": "explain", "method": "saliency", "against": [{"name": "pgd", "steps": 3}], "eps": 0.05},
    ],
    "examples": 40,
    "images": 40,
    "seeds": [3],
}
MEASURED = 30  # images that the signals of a small package are measured on
TRAINED, ATTACKED = 1, 2  # numbers of its jobs: the training, and PGD


def packaged(store: Store, number: int, out: Path, asked: Asked = QUICK) -> Made:
    with store.begin() as db:
        chosen = model_by_job(db, number)
    return make_package(store, chosen, out, asked, lambda line: None)


def altered(
    place: Path, copy: Path, *, files: dict[str, bytes | None], card: dict[str, Any] | None = None, rehash: bool = False
) -> Path:
    """A copy of a package, a folder, with other files (None for one that goes) and other entries of its card.

    rehash: whether the card names the new files by their hashes.
    """
    shutil.copytree(place, copy)
    for name, data in files.items():
        if data is None:
            (copy / name).unlink()
        else:
            (copy / name).write_bytes(data)
    said = json.loads((copy / "card.json").read_text()) | (card or {})
    if rehash:
        for name, data in files.items():
            if data is not None:
                said["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    if card is not None or rehash:
        (copy / "card.json").write_text(json.dumps(said))
    return copy


def zipped(place: Path, out: Path) -> Path:
    with zipfile.ZipFile(out, "w") as archive:
        for file in sorted(place.iterdir()):
            archive.write(file, file.name)
    return out
