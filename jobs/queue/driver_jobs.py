"""Work that a driver does itself between claims: worst cases, shards put together, long evaluations split."""

import os
import platform
import traceback
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from sqlalchemy import Connection

from robustlib.datasets import load
from robustlib.datasets.choose import choose
from robustlib.settings import AUDIT
from robustq.jobs.queue import shards, transitions, worst_case
from robustq.jobs.queue.claims import SETTLES, claim
from robustq.jobs.queue.transitions import Claimed
from robustq.jobs.specs import DataRef

MOST = 64  # settled between two looks at the workers


def settle_all(db: Connection, driver_id: str, sweep_id: int | None) -> None:
    """Record the worst cases and merged evaluations that are ready: they need only what the store holds."""
    for claimed in claim(db, driver_id, most=MOST, what=SETTLES, sweep_id=sweep_id):
        transitions.start(db, claimed, driver_id, platform.node(), os.getpid(), "")  # claimed just now: it cannot fail
        try:
            with db.begin_nested():
                worst_case.settle(db, claimed) if claimed.kind == "worst" else shards.merge(db, claimed)
        except (ValueError, KeyError) as error:  # what was stored does not fit together: that job's own end
            transitions.fail(db, claimed, type(error).__name__, str(error), traceback.format_exc())


def split_long(db: Connection, claimed: Sequence[Claimed], slots: int, unit_seconds: float) -> list[Claimed]:
    """Split the evaluations that would take long, or whose study says so; returns the rest.

    unit_seconds: what a unit of estimated cost takes here. The radii of a curve are one search, so that they are split
    alike.
    """
    if all(c.kind != "eval" for c in claimed):
        return list(claimed)
    curve = sum(c.cost for c in claimed) if claimed[0].spec["attack"]["curve"] else None
    kept = []
    for c in claimed:
        if c.spec["attack"]["name"] == AUDIT:  # each of its attacks answers to the one before, over all examples
            kept.append(c)
            continue
        wanted = shards.wanted_shards(c, c.cost if curve is None else curve, slots, unit_seconds)
        rows = chosen(c.spec) if wanted > 1 else None
        ranges = shards.edges(rows, wanted, c.spec["images"]) if rows is not None else []
        if len(ranges) > 1:
            shards.split(db, c, ranges)
        else:
            kept.append(c)
    return kept


def chosen(spec: dict[str, Any]) -> np.ndarray | None:
    """Places of the examples that an evaluation looks at; None where its data cannot be read here: its worker says
    why.
    """
    try:
        labels = labels_of(DataRef.model_validate(spec["data"]))
    except (OSError, ValueError):
        return None
    return choose(labels, spec["examples"], spec.get("choose", "first"))


@lru_cache
def labels_of(ref: DataRef) -> np.ndarray:
    return load.load(ref.place, ref.split, ref.reading).y
