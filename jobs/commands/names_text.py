"""The names that studies may use, with their parameters, read off the registries themselves."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from robustlib.arguments import keywords
from robustlib.settings import AUDIT, CERTIFY, EXPLAIN
from robustq.jobs.text.tables import json_text, table


def names_text(kind: str, *, torchvision: bool, as_json: bool) -> str:
    """Names of one kind and what each takes, as text or JSON."""
    tables = {"models": model_rows, "attacks": attack_rows, "datasets": dataset_rows, "objectives": objective_rows}
    rows = (tables | {"defences": defence_rows, "explanations": explanation_rows})[kind]()
    if kind == "models" and torchvision:
        from torchvision.models import list_models

        rows += [{"name": f"torchvision:{name}", "parameters": "", "what": ""} for name in list_models()]
    return json_text(rows) if as_json else table(rows)


def describe(name: str, function: Callable[..., Any], known: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """A row: the parameters that have defaults, and the first line of the function's docstring."""
    shown = [f"{p.name}={p.default}" for p in known.values() if p.default is not p.empty]
    doc = inspect.getdoc(getattr(function, "func", function)) or ""
    return {"name": name, "parameters": ", ".join(shown), "what": doc.partition("\n")[0]}


def without(known: Mapping[str, inspect.Parameter], *names: str) -> dict[str, inspect.Parameter]:
    return {name: parameter for name, parameter in known.items() if name not in names}


def model_rows() -> list[dict[str, Any]]:
    from robustlib.models import MODELS

    given = ("in_channels", "num_classes", "image_size")  # by the data set
    known = {name: without(inspect.signature(make).parameters, *given) for name, make in MODELS.items()}
    return [describe(name, make, known[name]) for name, make in MODELS.items()]


def attack_rows() -> list[dict[str, Any]]:
    from robustlib.attacks import ATTACKS, ENSEMBLES
    from robustlib.audit.audit import audit
    from robustlib.defences.smoothing import certify

    rows = []
    for name, attack in (ATTACKS | ENSEMBLES).items():
        row = describe(name, attack.run, attack.settings)
        if attack.restarts:
            row["parameters"] = ", ".join(filter(None, [row["parameters"], "restarts=1"]))
        rows.append(row)
    rows.append(describe(CERTIFY, certify, without(keywords(certify), "draws")))
    queries = f"queries={keywords(audit)['queries'].default}"
    what = "all that might break the model, one after the other; see robustq audit"
    rows.append({"name": AUDIT, "parameters": f"norm=Linf, {queries}", "what": what})
    return [*rows, explanation_row()]


def explanation_row() -> dict[str, Any]:
    from robustlib.evaluation.explanation_stability import USUAL
    from robustq.jobs.submission.explanation_params import measure_settings

    lists = f"method=NAMES, against={'+'.join(name for name, _ in USUAL)}, norm=Linf"
    others = ", ".join(f"{name}={p.default}" for name, p in measure_settings().items())
    what = "what noise and attacks do to explanations; see robustq list explanations"
    return {"name": EXPLAIN, "parameters": f"{lists}, {others}", "what": what}


def explanation_rows() -> list[dict[str, Any]]:
    from robustlib.explanations import EXPLANATIONS

    return [describe(name, explanation.run, explanation.settings) for name, explanation in EXPLANATIONS.items()]


def defence_rows() -> list[dict[str, Any]]:
    from robustlib.defences import DEFENCES

    return [describe(name, defence, keywords(defence)) for name, defence in DEFENCES.items()]


def objective_rows() -> list[dict[str, Any]]:
    from robustlib.settings import TrainSettings
    from robustlib.training import OBJECTIVES
    from robustlib.training.objectives import OF_TRAINING, attack_of

    plain = [f for f in fields(TrainSettings) if f.name not in ("objective", "attack")]
    settings = ", ".join(f"{f.name}={f.default}" for f in plain)
    rows = []
    for name, objective in OBJECTIVES.items():
        attack = attack_of(objective)
        row = {"name": name, "parameters": "", "what": "cross-entropy of the clean images"}
        if attack is not None:
            row = describe(name, attack.run, without(attack.options, *OF_TRAINING)) | {
                "what": f"cross-entropy of images attacked by {name}"
            }
        rows.append(row)
    return [*rows, {"name": "(every objective)", "parameters": settings, "what": "settings of the training"}]


def dataset_rows() -> list[dict[str, Any]]:
    from robustlib.datasets.load import DATASETS, PATH_DATASETS

    rows = [
        {"name": name, "what": "offline, with scikit-learn" if name == "digits" else "downloaded by torchvision"}
        for name in DATASETS
    ]
    for kind, reader in PATH_DATASETS.items():
        rows.append({"name": f"{kind}:PATH", "what": (inspect.getdoc(reader) or "").partition("\n")[0]})
    return rows
