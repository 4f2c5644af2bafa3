"""Words that the shell completes: names of the kernels, kept once they were read, and of the store, which is not made.

Whatever cannot be found completes nothing: a shell that waits for words is no place for an error.
"""

import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

import robustlib
from robustlib.arguments import NORMS
from robustlib.normalisations import NORMALISATIONS
from robustq.jobs.errors import RobustqError
from robustq.jobs.results.columns import RESULT_COLUMNS

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

# Registries, whose import takes seconds: their files say whether what was kept of them is still so.
REGISTRIES = ("attacks/__init__.py", "models/__init__.py", "training/__init__.py", "datasets/load.py", "settings.py")


def beginning(words: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


def kernel_names(kind: str, *, files: bool = False) -> Complete:
    """Names of attacks, models, datasets or objectives. files: a path may stand there too."""

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = beginning(kept_names().get(kind, ()), incomplete)
        return [*found, CompletionItem(incomplete, type="file")] if files else found

    return complete


def fixed(words: Iterable[str]) -> Complete:
    return lambda ctx, parameter, incomplete: beginning(words, incomplete)


def columns(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The last of several columns with commas between, also behind the - of a descending order."""
    before, comma, last = incomplete.rpartition(",")
    sign = "-" if last.startswith("-") else ""
    return beginning([f"{before}{comma}{sign}{column}" for column in RESULT_COLUMNS], incomplete)


def sweeps(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the store's sweeps."""
    from robustq.jobs.store.sweeps import latest_sweeps

    return beginning(ask_store(ctx, latest_sweeps), incomplete)


def stored_models(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the models that the store has."""
    import sqlalchemy as sa

    from robustq.jobs.store.schema import sweep_job

    query = sa.select(sweep_job.c.model).distinct().order_by(sweep_job.c.model)
    return beginning(ask_store(ctx, lambda db: db.execute(query).scalars().all()), incomplete)


def ask_store(ctx: click.Context, ask: Callable[[Any], Iterable[str]]) -> list[str]:
    """What a store that is there answers; nothing where there is none, or one that cannot be read."""
    from robustq.jobs.store.connection import open_store

    root = ctx.find_root()
    option = next(each for each in root.command.params if each.name == "store")
    url = root.params.get("store") or os.environ.get("ROBUSTQ_STORE") or option.get_default(root)
    with suppress(RobustqError, OSError):
        store = open_store(str(url))
        try:
            with store.begin() as db:
                return list(ask(db))
        finally:
            store.engine.dispose()
    return []


def kept_names() -> dict[str, list[str]]:
    """The registries' names from the cache, or from themselves, and then kept there."""
    from robustlib.datasets.load import home

    path, stamp = home() / "names.json", registry_stamp()
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(path.read_text())
        if found["stamp"] == stamp:
            return found["names"]
    names = registry_names()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"names.{os.getpid()}.part")
        part.write_text(json.dumps({"stamp": stamp, "names": names}))
        part.replace(path)
    return names


def registry_stamp() -> list[Any]:
    root = Path(robustlib.__path__[0])
    return [robustlib.VERSION, *(f"{name} {(root / name).stat().st_mtime_ns}" for name in REGISTRIES)]


def registry_names() -> dict[str, list[str]]:
    """Names as studies have them; of data sets with a path the kind."""
    from robustlib.attacks import ATTACKS, ENSEMBLES
    from robustlib.datasets.load import DATASETS, PATH_DATASETS
    from robustlib.explanations import EXPLANATIONS
    from robustlib.models import MODELS
    from robustlib.settings import AUDIT, CERTIFY, EXPLAIN
    from robustlib.training import OBJECTIVES

    return {
        "attacks": [*ATTACKS, *ENSEMBLES, CERTIFY, AUDIT, EXPLAIN],
        "models": list(MODELS),
        "datasets": [*DATASETS, *(f"{kind}:" for kind in PATH_DATASETS)],
        "objectives": list(OBJECTIVES),
        "explanations": list(EXPLANATIONS),
    }


ATTACKS, DATASETS, OBJECTIVES = (kernel_names(kind) for kind in ("attacks", "datasets", "objectives"))
EXPLANATIONS = kernel_names("explanations")
MODEL = kernel_names("models", files=True)  # by name, or FILE.py:factory
NORM, NORMALIZE = fixed(NORMS), fixed(("dataset", *NORMALISATIONS))
# The options by which results are chosen, where a word can be known.
FILTERS: dict[str, Complete] = {
    "sweep": sweeps,
    "model": stored_models,
    "attack": ATTACKS,
    "norm": NORM,
    "dataset": DATASETS,
    "defence": OBJECTIVES,
    "arch": kernel_names("models"),
}
