"""A finished sweep made up so that every number on its page can be told beforehand, small or large."""

import hashlib
import io
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import safetensors.numpy
import sqlalchemy as sa
from sqlalchemy import Connection

from robustlib.datasets import load
from robustq.jobs.store import artifacts
from robustq.jobs.store.connection import Store
from robustq.jobs.store.schema import artifact, check_result, job, job_artifact, result, sweep, sweep_job
from tests.helpers.fake_results import add_result, add_sweep

ATTACKS = {"fgsm": 0.5, "pgd": 0.8, "square": 0.6}  # the share of a radius that each uses
RADII = (0.05, 0.1, 0.2)


@cache
def digits() -> dict[str, str]:
    return {"place": "digits", "sha256": load.fingerprint("digits")}


def columns(strength: float, eps: float, attack: str, n: int) -> dict[str, np.ndarray]:
    """Outcomes of a model whose image i falls at the distance strength (i + 1) / n; every tenth is wrong at first."""
    place = np.arange(n)
    label = np.asarray(load.load("digits", "test").y[:n])
    distance = strength * (place + 1) / n
    wrong = place % 10 == 9
    by = {name: distance <= share * eps for name, share in ATTACKS.items()}
    found = np.any(list(by.values()), 0) if attack == "worst-case" else by.get(attack, np.zeros(n, bool))
    broken = wrong | found
    name = np.where(by["pgd"] & ~by["fgsm"], "pgd", "fgsm") if attack == "worst-case" else attack
    return {
        "index": place,
        "label": label,
        "clean_prediction": np.where(wrong, (label + 1) % 10, label),
        "adversarial_prediction": np.where(broken, (label + 1) % 10, label),
        "success": broken,
        "distance": np.where(broken, np.where(wrong, 0, distance), np.nan).astype(np.float32),
        "broken_by": np.where(wrong, "clean", np.where(broken, name, "")),
        "clean_correct": 1 - wrong.astype(np.float32),
        "adversarial_correct": 1 - broken.astype(np.float32),
        "adversarial_survived": ~broken,
        "queries": np.full(n, 7 if attack == "square" else -1),
    }


def accuracy(strength: float, eps: float, attack: str, n: int) -> float:
    """The slow twin of `columns`: robust accuracy, an image at a time."""
    share = max(ATTACKS.values()) if attack == "worst-case" else ATTACKS[attack]
    stands = [i % 10 != 9 and strength * (i + 1) / n > share * eps for i in range(n)]
    return sum(stands) / n


def add_training(db: Connection, root: str, sweep_id: int, model: str, seed: int, epochs: int) -> None:
    """A finished training with its history and weights of 2,000 bytes and some."""
    history = [
        {
            "epoch": i,
            "loss": 1 / (i + 1),
            "clean_accuracy": i / epochs,
            "attacked_accuracy": i / (2 * epochs),
            "seconds": 2.0,
        }
        for i in range(epochs)
    ]
    extra = {"history": history, "best": epochs - 1}
    id_ = add_result(
        db, sweep_id, model, "", None, seed, outcomes=False, kind="train", norm=None,
        spec={"kind": "train"}, extra=extra, seconds=2.0 * epochs,
    )  # fmt: skip
    keep(db, root, id_, "weights", f"{model}{seed}".encode() * 500)


def keep(db: Connection, root: str, job_id: int, role: str, content: bytes) -> None:
    stored = artifacts.put(root, role, content)
    if db.execute(sa.select(artifact.c.sha256).where(artifact.c.sha256 == stored.sha256)).first() is None:
        db.execute(sa.insert(artifact).values(sha256=stored.sha256, bytes=stored.bytes, created_at=0.0))
    db.execute(sa.insert(job_artifact).values(job_id=job_id, role=role, sha256=stored.sha256))


def fill(
    store: Store, models: dict[str, float], *, name: str = "made-up", seeds: Sequence[int] = (0,), n: int = 50,
    radii: Sequence[float] = RADII, epochs: int = 3, images: int = 4, verdict: str | None = "pass",
) -> int:  # fmt: skip
    """A sweep of models by their strength: trainings, three attacks at every radius, and the worst cases."""
    with store.begin() as db:
        sweep_id = add_sweep(db, name)
        spec = {
            "name": name,
            "dataset": "digits",
            "models": {m: {"arch": "lenet5", "train": {"objective": "pgd"}} for m in models},
        }
        spec["attacks"] = [{"name": attack, "norm": None, "eps": list(radii)} for attack in ATTACKS]
        db.execute(sa.update(sweep).where(sweep.c.id == sweep_id).values(spec=spec))
        for model, strength in models.items():
            for seed in seeds:
                add_training(db, store.artifacts, sweep_id, model, seed, epochs)
                for eps in radii:
                    add_radius(db, store.artifacts, sweep_id, model, strength, eps, seed, n, images, verdict)
    return sweep_id


def add_radius(
    db: Connection, root: str, sweep_id: int, model: str, strength: float, eps: float, seed: int, n: int, images: int,
    verdict: str | None,
) -> None:  # fmt: skip
    """The attacks of one model at one radius, and their worst case."""
    passed = {"forwards": 100 * n, "gradients": 40 * n, "mode": "float32", "substitutions": []}
    for attack in (*ATTACKS, "worst-case"):
        worst = attack == "worst-case"
        spec: dict[str, Any] = {"kind": "worst"} if worst else {"kind": "eval", "data": digits(), "model": {}}
        curve = {"curve_seconds": 9.0 + seed} if attack == "pgd" else {}
        id_ = add_result(
            db, sweep_id, model, attack, eps, seed, columns=columns(strength, eps, attack, n), spec=spec,
            kind="worst" if worst else "eval", extra=None if worst else passed | curve, seconds=1.0, verdict=verdict,
        )  # fmt: skip
        if images and not worst:
            clean = load.load("digits", "test").x[:images].astype(np.float32) / 255
            keep(db, root, id_, "images", safetensors.numpy.save({"x_adv": np.clip(clean + eps, 0, 1)}))


def distrust(db: Connection, model: str, note: str, attack: str | None = None) -> None:
    """Let a check of a model's rows fail."""
    chosen = sa.select(job.c.id).join(sweep_job, sweep_job.c.job_id == job.c.id)
    chosen = chosen.where((sweep_job.c.model == model) & job.c.eps.is_not(None))
    if attack is not None:
        chosen = chosen.where(job.c.attack == attack)
    ids = db.execute(chosen).scalars().all()
    db.execute(sa.update(result).where(result.c.job_id.in_(ids)).values(verdict="fail"))
    for id_ in ids:
        values = {"name": "zero-gradient", "value": 0.9, "threshold": 0.25, "verdict": "fail", "note": note}
        db.execute(sa.insert(check_result).values(job_id=id_, examples=[3, 5], **values))


def file_hash(path: Any) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(io.BytesIO(file.read()), "sha256").hexdigest()
