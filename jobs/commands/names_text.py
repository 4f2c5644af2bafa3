"""The names that studies may use, with their parameters, read off the registries themselves."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from robustlib.settings import AUDIT, CERTIFY
from robustq.jobs.text.tables import json_text, table

ONCE = frozenset({"clean", "corruption", CERTIFY})  # what has no restarts


def names_text(kind: str, *, torchvision: bool, as_json: bool) -> str:
    """Names of one kind and what each takes, as text or JSON."""
    tables = {"models": models, "attacks": attacks, "datasets": datasets, "objectives": objectives}
    rows = (tables | {"defences": defences})[kind]()
    if kind == "models" and torchvision:
        from torchvision.models import list_models

        rows += [{"name": f"torchvision:{name}", "parameters": "", "what": ""} for name in list_models()]
    return json_text(rows) if as_json else table(rows)


def describe(name: str, function: Callable[..., Any], skip: set[str]) -> dict[str, Any]:
    known = inspect.signature(function).parameters.values()
    shown = [f"{p.name}={p.default}" for p in known if p.name not in skip and p.default is not p.empty]
    doc = inspect.getdoc(getattr(function, "func", function)) or ""
    return {"name": name, "parameters": ", ".join(shown), "what": doc.partition("\n")[0]}


def models() -> list[dict[str, Any]]:
    from robustlib.models import MODELS

    return [describe(name, make, {"in_channels", "num_classes", "image_size"}) for name, make in MODELS.items()]


def attacks() -> list[dict[str, Any]]:
    from robustlib.attacks import ATTACKS, ENSEMBLES
    from robustlib.audit.audit import audit
    from robustlib.defences.smoothing import certify

    known = ATTACKS | ENSEMBLES | {"certify": certify}
    rows = [describe(name, attack, {"draws", "classes", "start", "spent"}) for name, attack in known.items()]
    for row in rows:
        if row["name"] not in ONCE:
            row["parameters"] = ", ".join(filter(None, [row["parameters"], "restarts=1"]))
    queries = f"queries={inspect.signature(audit).parameters['queries'].default}"
    what = "all that might break the model, one after the other; see robustq audit"
    return [*rows, {"name": AUDIT, "parameters": f"norm=Linf, {queries}", "what": what}]


def defences() -> list[dict[str, Any]]:
    from robustlib.defences import DEFENCES

    return [describe(name, defence, set()) for name, defence in DEFENCES.items()]


def objectives() -> list[dict[str, Any]]:
    from robustlib.settings import TrainSettings
    from robustlib.training import OBJECTIVES

    plain = [f for f in fields(TrainSettings) if f.name not in ("objective", "attack")]
    settings = ", ".join(f"{f.name}={f.default}" for f in plain)
    rows = []
    for name, objective in OBJECTIVES.items():
        attack = getattr(objective, "keywords", {}).get("attack")
        row = {"name": name, "parameters": "", "what": "cross-entropy of the clean images"}
        if attack is not None:
            row = describe(name, attack, {"draws", "start", "stop_at_success"}) | {
                "what": f"cross-entropy of images attacked by {name}"
            }
        rows.append(row)
    return [*rows, {"name": "(every objective)", "parameters": settings, "what": "settings of the training"}]


def datasets() -> list[dict[str, Any]]:
    from robustlib.datasets.load import DATASETS, PATH_DATASETS

    rows = [
        {"name": name, "what": "offline, with scikit-learn" if name == "digits" else "downloaded by torchvision"}
        for name in DATASETS
    ]
    for kind, reader in PATH_DATASETS.items():
        rows.append({"name": f"{kind}:PATH", "what": (inspect.getdoc(reader) or "").partition("\n")[0]})
    return rows
