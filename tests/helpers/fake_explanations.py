"""Explanation jobs made up, so that what is asked of them can be told beforehand."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy import Connection

from robustlib.checks.explanation_sanity import explanation_checks
from robustlib.checks.thresholds import overall
from robustlib.settings import EXPLANATION_MEASURES, EXPLANATION_SANITY
from robustq.jobs.specs import AttackSpec
from robustq.jobs.statistics.explanation_means import clean_accuracy, means_rows
from robustq.jobs.store.explanations import measures
from robustq.jobs.store.schema import check_result, example_blob, explanation
from tests.helpers.fake_results import add_result

AGAINST = ("clean", "noise", "pgd", "explanation-attack")


def params_of(method: str = "grad-cam", target: str = "predicted") -> dict[str, Any]:
    """Parameters of an explanation job, as its spec has them."""
    against = [{"name": name, "params": {}} for name in AGAINST[1:]]
    settings = {"share": 0.1, "radius": 1, "curve_steps": 16, "baseline": 0.0}
    return {"method": method, "options": {}, "against": against, "target": target} | settings


def made_up_measures(
    seed: int, means: Mapping[str, float], *, n: int = 40, alike: float = 0.1
) -> dict[str, np.ndarray]:
    """Measures of n images, of which PGD changes every second one's class.

    means: of the top-k intersection by what was done; the same numbers stand around it in each.  alike: how alike maps
    are to those of randomised weights.
    """
    random = np.random.default_rng(seed)
    noise = random.normal(0, 0.1, (n, 1))
    shape, names = (n, len(AGAINST)), np.array(AGAINST)
    columns = {name: np.full(shape, np.nan) for name in (*EXPLANATION_MEASURES, *EXPLANATION_SANITY)}
    for place, name in enumerate(AGAINST[1:], 1):
        for measure in ("top_intersection", "near_top_intersection", "spearman", "ssim"):
            columns[measure][:, [place]] = np.clip(means[name] + noise, 0, 1)
    columns["deletion"][:], columns["insertion"][:] = 0.2, 0.7 + noise
    columns["random_weights"][:, 0], columns["gain"][:, 0] = alike, 0.5 + noise[:, 0]
    columns["random_gain"][:, 0] = noise[::-1, 0]
    label = np.repeat(np.arange(n)[:, None] % 10, len(AGAINST), 1)
    guess = np.where((names == "pgd") & (np.arange(n)[:, None] % 2 == 0), (label + 1) % 10, label)
    columns |= {"index": np.repeat(np.arange(n)[:, None], len(AGAINST), 1), "label": label, "explained": label}
    columns |= {"prediction": guess, "against": np.broadcast_to(names, shape)}
    return {name: values.reshape(-1) for name, values in columns.items()}


def add_explanation(
    db: Connection, sweep_id: int, model: str, columns: dict[str, np.ndarray], *, seed: int = 0, eps: float = 8 / 255,
    method: str = "grad-cam", checks: Sequence[Any] | None = None, **values: Any,
) -> int:  # fmt: skip
    """Number of a new finished explanation job with these measures, its means and its checks."""
    spec = AttackSpec(name="explain", norm="Linf", eps=eps, params=params_of(method))
    found = explanation_checks(columns) if checks is None else list(checks)
    row: dict[str, Any] = dict.fromkeys(("robust_accuracy", "robust_accuracy_low", "robust_accuracy_high"))
    row |= dict.fromkeys(("any_draw_accuracy", "distance_median", "distance_mean"))
    row |= clean_accuracy(columns) | {"verdict": overall(found)}
    told = {"recipe": spec.recipe, "spec": {"kind": "eval", "attack": spec.model_dump(mode="json")}}
    number = add_result(db, sweep_id, model, "explain", eps, seed, outcomes=False, **row | told | values)
    data = measures.encode(columns)
    blob = {"job_id": number, "n": row["n"], "sha256": hashlib.sha256(data).hexdigest(), "data": data}
    db.execute(sa.insert(example_blob).values(**blob))
    db.execute(sa.insert(explanation), [one | {"job_id": number} for one in means_rows(columns, spec.params)])
    db.execute(sa.insert(check_result), [asdict(one) | {"job_id": number} for one in found])
    return number
