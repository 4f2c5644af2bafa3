"""Shards of a long evaluation, by examples, put together again exactly: an example's numbers know no shard."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy import Connection, select, update

from robustlib.checks.explanation_sanity import explanation_checks
from robustlib.checks.thresholds import CheckResult, merge_results, overall
from robustlib.checks.whole_evaluation import check_whole
from robustlib.metrics import CLEAN, summarise
from robustlib.settings import BEYOND_HALF, EXPLAIN
from robustq.jobs.queue.transitions import Claimed, finish, mine, note
from robustq.jobs.specs import ShardSpec
from robustq.jobs.statistics.explanation_means import clean_accuracy, means_rows
from robustq.jobs.store import example_outcomes
from robustq.jobs.store.bulk_insert import add_dependencies, add_jobs
from robustq.jobs.store.explanations import measures
from robustq.jobs.store.schema import check_result, example_blob, job, job_artifact, job_dep, result, sweep_job

SHARD_SECONDS = 600.0  # an evaluation estimated to take longer is split
EDGE = 100  # shards begin at multiples of this: randomised models are evaluated in such groups
# Seconds that a unit of cost takes where nothing was measured yet: rules of thumb.
SECONDS_A_UNIT = {"cuda": 1e-7, "cpu": 2e-5}


def seconds_a_unit(db: Connection, device: str) -> float:
    """What a unit of estimated cost has taken on this kind of device, over the evaluations that the store holds."""
    done = result.join(job, job.c.id == result.c.job_id)
    chosen = (job.c.cost > 0) & result.c.device.startswith(device) & job.c.kind.in_(("eval", "shard"))
    totals = select(sa.func.sum(result.c.seconds), sa.func.sum(job.c.cost)).select_from(done).where(chosen)
    seconds, cost = db.execute(totals).one()
    return seconds / cost if cost else SECONDS_A_UNIT[device]


def edges(rows: np.ndarray, wanted: int, images: int) -> list[tuple[int, int]]:
    """At most so many ranges of the places of examples, which rise, cut at multiples of EDGE.

    Each holds nearly as many examples, the first all kept images.
    """
    groups = np.unique(rows // EDGE)
    wanted = max(1, min(wanted, len(groups)))
    cuts = sorted({int(groups[round(len(groups) * i / wanted)]) * EDGE for i in range(1, wanted)})
    end = int(rows[-1]) + 1
    inner = [cut for cut in cuts if images <= int((rows < cut).sum()) < len(rows)]
    return list(zip([0, *inner], [*inner, end], strict=True))


def wanted_shards(claimed: Claimed, cost: float, slots: int, unit_seconds: float) -> int:
    """Into how many shards to split an evaluation: as the study says, else two a slot or more where it takes long."""
    if claimed.kind != "eval":
        return 1
    asked = claimed.spec.get("shards")
    if asked is not None:
        return int(asked)
    seconds = cost * unit_seconds
    return 1 if seconds <= SHARD_SECONDS else max(2 * slots, round(seconds / SHARD_SECONDS))


def split(db: Connection, claimed: Claimed, ranges: Sequence[tuple[int, int]]) -> bool:
    """Put shards in the place of a claimed evaluation, which then waits for them. False if the claim holds no more."""
    held = update(job).where(mine(claimed) & (job.c.state == "leased"))
    waits = {"state": "blocked", "parts": len(ranges), "cost": 0.0, "lease_owner": None, "lease_expires_at": None}
    if db.execute(held.values(**waits)).rowcount != 1:
        return False
    parent = db.execute(select(job).where(job.c.id == claimed.id)).mappings().one()
    needs = list(db.execute(select(job_dep.c.needs_id).where(job_dep.c.job_id == claimed.id)).scalars())
    rows = [shard_row(parent, claimed, first, last, ranges[-1][1]) for first, last in ranges]
    shards = [id_ for id_, _ in add_jobs(db, rows).values()]
    add_dependencies(db, [(shard, need) for shard in shards for need in needs])
    add_dependencies(db, [(claimed.id, shard) for shard in shards])
    members = select(sweep_job.c.sweep_id, sweep_job.c.model).where(sweep_job.c.job_id == claimed.id)
    for sweep_id, model in db.execute(members).all():
        known = select(sweep_job.c.job_id).where(sweep_job.c.sweep_id == sweep_id)
        new = set(shards) - set(db.execute(known.where(sweep_job.c.job_id.in_(shards))).scalars())
        for shard in sorted(new):
            db.execute(sa.insert(sweep_job).values(sweep_id=sweep_id, job_id=shard, model=model))
    note(db, "split", claimed.id, claimed.fence, shards=len(ranges))
    return True


COPIED = (
    "arch", "defence", "dataset", "attack", "norm", "eps", "seed", "recipe", "priority", "max_crashes", "gpu_share",
    "timeout_seconds", "subject",
)  # fmt: skip


def shard_row(parent: Any, claimed: Claimed, first: int, last: int, n: int) -> dict[str, Any]:
    spec = ShardSpec.model_validate(claimed.spec | {"kind": "shard", "shards": None, "first": first, "last": last})
    share = parent["bundle_key"]
    if spec.attack.curve:  # the radii of a curve are one search, each range for itself
        share = hashlib.sha256(f"{share}/{first}-{last}".encode()).hexdigest()
    return {name: parent[name] for name in COPIED} | {
        "key": spec.key(),
        "kind": "shard",
        "spec": spec.model_dump(mode="json"),
        "bundle_key": share,
        "cost": claimed.cost * (last - first) / n,
        "state": "queued",
        "created_at": time.time(),
    }


def joined(found: Sequence[dict[str, str]]) -> dict[str, str]:
    """Versions that shards were made with: several where the evaluation went on under others."""
    names = dict.fromkeys(name for versions in found for name in versions)
    return {name: "; ".join(dict.fromkeys(v[name] for v in found if name in v)) for name in names}


def merge(db: Connection, claimed: Claimed) -> bool:
    """Put a claimed evaluation's finished shards together and record its result, in the caller's transaction."""
    rows = db.execute(
        select(job.c.id, job.c.spec, example_blob.c.data, *result.c)
        .join(job_dep, job_dep.c.needs_id == job.c.id)
        .join(result, result.c.job_id == job.c.id)
        .join(example_blob, example_blob.c.job_id == job.c.id)
        .where((job_dep.c.job_id == claimed.id) & (job.c.kind == "shard"))
    ).mappings()
    shards = sorted(rows, key=lambda row: row["spec"]["first"])
    together = explained if claimed.spec["attack"]["name"] == EXPLAIN else attacked
    row, data, index, of_whole = together(shards, claimed.spec)
    if not holds_each_once(index, shards, claimed.spec):
        raise ValueError(f"expected the shards of job {claimed.id} to hold each example once, in order")
    row |= {
        "seconds": sum(shard["seconds"] for shard in shards),
        "device": "; ".join(dict.fromkeys(shard["device"] for shard in shards)),
        "versions": joined([shard["versions"] for shard in shards]),
    }
    row |= merged_checks(db, [shard["id"] for shard in shards], of_whole)
    if not finish(db, claimed, row, (data, row["n"])):
        return False
    kept = select(job_artifact.c.role, job_artifact.c.sha256).where(job_artifact.c.job_id == shards[0]["id"])
    for role, sha256 in db.execute(kept).all():
        db.execute(sa.insert(job_artifact).values(job_id=claimed.id, role=role, sha256=sha256))
    return True


Together = tuple[dict[str, Any], bytes, np.ndarray, list[CheckResult]]


def attacked(shards: Sequence[Any], spec: dict[str, Any]) -> Together:
    """Shards of an evaluation as one: columns of its row, outcomes, the places of its images, checks of the whole."""
    table = pa.concat_tables([example_outcomes.decode(row["data"]) for row in shards], promote_options="permissive")
    columns = example_outcomes.to_columns(table.unify_dictionaries())
    data = example_outcomes.encode(example_outcomes.to_table(columns))
    row = summarise(columns) | {"extra": merged_extra(shards)}
    of_whole = check_whole(columns, row["extra"], spec["attack"]["eps"], spec["draws"])
    return row, data, columns["index"], of_whole


def explained(shards: Sequence[Any], spec: dict[str, Any]) -> Together:
    """The same of an explanation job."""
    parts = [measures.to_columns(measures.decode(row["data"])) for row in shards]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    row = clean_accuracy(columns) | {"explanations": means_rows(columns, spec["attack"]["params"])}
    index = columns["index"][columns["against"] == CLEAN]
    return row | {"extra": merged_extra(shards)}, measures.encode(columns), index, explanation_checks(columns)


def holds_each_once(index: np.ndarray, shards: Sequence[Any], spec: dict[str, Any]) -> bool:
    """Whether these are the places of all examples: those that the first ones have, or rising ones in whole ranges."""
    if np.array_equal(index, np.arange(len(index))):
        return True
    if spec.get("choose", "first") == "first":
        return False
    ends = [(shard["spec"]["first"], shard["spec"]["last"]) for shard in shards]
    whole = [0, *(last for _, last in ends[:-1])] == [first for first, _ in ends]
    return whole and bool((np.diff(index) > 0).all()) and len(index) == spec["examples"]


def merged_checks(db: Connection, shards: Sequence[int], of_whole: Sequence[CheckResult]) -> dict[str, Any]:
    """The verdict and the checks of the whole, from those of its parts and those that need all of its examples."""
    names = [field.name for field in fields(CheckResult)]
    rows = db.execute(
        select(*[check_result.c[name] for name in names]).where(check_result.c.job_id.in_(shards)).order_by("job_id")
    ).mappings()
    found = [*merge_results(CheckResult(**{**row, "examples": tuple(row["examples"])}) for row in rows), *of_whole]
    return {"verdict": overall(found), "checks": [asdict(one) for one in found]} if found else {}


def merged_extra(shards: Sequence[Any]) -> dict[str, Any]:
    """What the rows tell besides: counts and seconds added, accuracies weighed by examples, every mode, and the rest,
    which is the same in all, from the first.
    """
    extras = [shard["extra"] for shard in shards]
    found: dict[str, Any] = dict(extras[0]) | {"shards": len(shards), "mode": merged_mode(extras)}
    for name in ("forwards", "gradients", "overflows", "curve_seconds", "warmup_seconds", "check_seconds", "proved"):
        if any(name in extra for extra in extras):
            found[name] = sum(extra.get(name, 0) for extra in extras)  # rows of before lack some
    found["peak_memory_bytes"] = max(extra["peak_memory_bytes"] for extra in extras)
    n = sum(shard["n"] for shard in shards)
    if "surrogate" in found:
        shares = [extra["surrogate"]["agreement"] * shard["n"] for extra, shard in zip(extras, shards, strict=True)]
        found["surrogate"] = found["surrogate"] | {"agreement": sum(shares) / n}
    if "radii" in found:
        found["radii"] = [
            [eps, sum(extra["radii"][place][1] * shard["n"] for extra, shard in zip(extras, shards, strict=True)) / n]
            for place, (eps, _) in enumerate(found["radii"])
        ]
    if "stages" in found:
        found["stages"] = [
            {
                "attack": stage["attack"],
                "robust_accuracy": sum(
                    extra["stages"][place]["robust_accuracy"] * shard["n"]
                    for extra, shard in zip(extras, shards, strict=True)
                )
                / n,
                "seconds": sum(extra["stages"][place]["seconds"] for extra in extras),
            }
            for place, stage in enumerate(found["stages"])
        ]
    return found


def merged_mode(extras: Sequence[dict[str, Any]]) -> str:
    """The modes that shards ran in, each once: several where they ran on different machines, or one was refused a form
    that another one took. A mode in which one went beyond half precision is told as that one's.
    """
    told = [extra["mode"] for extra in extras]
    return "; ".join(dict.fromkeys(mode + BEYOND_HALF if mode + BEYOND_HALF in told else mode for mode in told))
