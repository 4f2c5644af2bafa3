"""A store with results made up row by row, for tests of what is asked of them."""

import hashlib
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy import Connection

from robustlib.metrics import summarise
from robustq.jobs.specs import AttackSpec
from robustq.jobs.store import example_outcomes
from robustq.jobs.store.connection import Store
from robustq.jobs.store.schema import example_blob, job, result, sweep, sweep_job

N = 40


def outcome(seed: int, *, n: int = N, broken: float = 0.5) -> dict[str, np.ndarray]:
    """What an attack might have found: a tenth wrong from the start, about so large a share broken."""
    random = np.random.default_rng(seed)
    wrong, success = random.random(n) < 0.1, random.random(n) < broken
    success |= wrong
    return {
        "index": np.arange(n),
        "label": np.arange(n) % 10,
        "clean_prediction": (np.arange(n) + wrong) % 10,
        "adversarial_prediction": (np.arange(n) + success) % 10,
        "success": success,
        "distance": np.where(success, np.where(wrong, 0, 0.1 * random.random(n)), np.nan).astype(np.float32),
        "broken_by": np.where(success, np.where(wrong, "clean", ["fgsm", "pgd"][seed % 2]), ""),
        "clean_correct": 1 - wrong.astype(np.float32),
        "adversarial_correct": 1 - success.astype(np.float32),
        "adversarial_survived": ~success,
        "queries": np.full(n, -1),
    }


def add_sweep(db: Connection, name: str) -> int:
    """Number of a new sweep."""
    identity = hashlib.sha256(f"{name}{db.execute(sa.select(sa.func.count()).select_from(sweep)).scalar()}".encode())
    values = {"name": name, "spec": {}, "identity": identity.hexdigest(), "created_at": 0.0}
    key = db.execute(sa.insert(sweep).values(**values)).inserted_primary_key
    assert key is not None
    return key[0]


def add_result(
    db: Connection,
    sweep_id: int,
    model: str,
    attack: str,
    eps: float | None = 8 / 255,
    seed: int = 0,
    *,
    columns: dict[str, np.ndarray] | None = None,
    outcomes: bool = True,
    **values: Any,
) -> int:
    """Number of a new finished evaluation. columns: its outcomes; values: of its rows, over the usual ones; of an
    evaluation's spec over the usual one.
    """
    id_ = (db.execute(sa.select(sa.func.max(job.c.id))).scalar() or 0) + 1
    columns = outcome(id_) if columns is None else columns
    key = hashlib.sha256(str(id_).encode()).hexdigest()
    of_job = {
        "id": id_, "key": key, "kind": "eval", "arch": "lenet5", "defence": "pgd",
        "dataset": "digits", "attack": attack, "norm": "Linf", "eps": eps, "seed": seed,
        "bundle_key": key, "state": "done", "created_at": 0.0,
    }  # fmt: skip
    usual = AttackSpec(name=attack, norm=values.get("norm", "Linf"), eps=eps, params={"steps": 10})
    values = {"recipe": f"{attack}(steps=10)", "spec": {"kind": "eval"}} | values
    if values["spec"]["kind"] == "eval":
        values["spec"] = {"attack": usual.model_dump(mode="json")} | values["spec"]
    of_result = summarise(columns) | {
        "job_id": id_, "fence": 1, "seconds": 0.5 + id_, "device": "cpu: made up", "recorded_at": 1.8e9 + id_,
        "versions": {"python": "3.12", "torch": "2.14", "numpy": "2.4", "kernel": "3", "robustq": "0.0.9"},
    }  # fmt: skip
    db.execute(sa.insert(job).values(**of_job | {k: v for k, v in values.items() if k in job.c}))
    db.execute(sa.insert(sweep_job).values(sweep_id=sweep_id, job_id=id_, model=model))
    db.execute(sa.insert(result).values(**of_result | {k: v for k, v in values.items() if k in result.c}))
    if outcomes:
        data = example_outcomes.encode(example_outcomes.to_table(columns))
        blob = {"job_id": id_, "n": len(columns["index"]), "sha256": hashlib.sha256(data).hexdigest(), "data": data}
        db.execute(sa.insert(example_blob).values(**blob))
    return id_


def of_attack(spec: AttackSpec) -> dict[str, Any]:
    """What the rows of an evaluation under this attack say of it, for add_result."""
    return {"recipe": spec.recipe, "spec": {"kind": "eval", "attack": spec.model_dump(mode="json")}}


MODELS = ("plain", "b-fgsm", "b-pgd", "B-pgd", "odd%_[x]|'\"")


def fill(store: Store) -> None:
    """Five models under four attacks with three seeds in two sweeps of one name, and a job of two sweeps."""
    with store.begin() as db:
        first, second, third = (add_sweep(db, name) for name in ("demo", "demo", "other"))
        for model in MODELS:
            for attack, eps in (("pgd", 8 / 255), ("pgd", 0.5), ("apgd-ce", 8 / 255), ("deepfool", None)):
                for seed in (0, 1, 2):
                    add_result(db, second if seed else first, model, attack, eps, seed)
        clean = {"norm": None, "defence": None, "device": "cuda:0: H100", "versions": {"kernel": "2"}}
        shared = add_result(db, third, "plain", "clean", None, 0, **clean)
        db.execute(sa.insert(sweep_job).values(sweep_id=first, job_id=shared, model="plain"))
