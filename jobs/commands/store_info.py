"""The facts about a store that `robustq db` prints, and what its commands did."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robustlib.number_text import counted
from robustlib.settings import EXPLAIN
from robustq.jobs.queue.status import counts
from robustq.jobs.store.compact import compact
from robustq.jobs.store.connection import Store, connect_store, open_store
from robustq.jobs.store.database.store_url import parse_url
from robustq.jobs.store.schema import SCHEMA_VERSION
from robustq.jobs.store.schema_check import schema_version
from robustq.jobs.text import tables
from robustq.jobs.text.safe_text import address
from robustq.jobs.upkeep import prune as pruning


def info(url: str) -> dict[str, Any]:
    """The store's schema version, the one that this robustq reads, and what is in it."""
    with connect_store(url).begin() as db:
        version = schema_version(db, address(url))
        found = {"store": address(url), "schema_version": version, "reads": SCHEMA_VERSION}
        return found | {f"{state}_jobs": n for state, n in counts(db).items()}


def sizes(store: Store) -> dict[str, Any]:
    """Bytes of each sweep, of the database's file, and of files that nothing rests on."""
    path = parse_url(store.url)[1]
    with store.begin() as db:
        return {
            "sweeps": pruning.sizes(db),
            "database": None if path is None else database_bytes(path),
            "left": pruning.going(db, store, ()).bytes,
        }


def database_bytes(path: Path) -> int:
    """Of the database's file, with the write-ahead log beside it."""
    log = Path(f"{path}-wal")
    return path.stat().st_size + (log.stat().st_size if log.exists() else 0)


def sizes_text(found: Mapping[str, Any]) -> str:
    columns = ("outcomes", "artifacts", "freed")
    rows = [row | {name: size_text(row[name]) for name in columns} for row in found["sweeps"]]
    lines = [tables.table(rows)]
    if found["database"] is not None:
        lines.append(f"the database's file has {size_text(found['database'])}")
    if found["left"]:
        lines.append(f"{size_text(found['left'])} are files that nothing rests on: robustq db prune --yes removes them")
    return "\n".join(lines)


def size_text(size: int) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if unit != "B" else f"{size} B"
        size = size / 1000  # pyright: ignore (a float from here on)
    return f"{size:,.3g} TB"


def prune(store: Store, names: Sequence[str], *, yes: bool) -> dict[str, Any]:
    """Remove sweeps, or say what would go."""
    with store.begin() as db:
        ids = pruning.named_sweeps(db, names)
        found = pruning.going(db, store, ids)
    if yes:
        found = pruning.prune(store, names)
    told = {
        "removed": yes,
        "sweeps": list(names),
        "versions": len(found.sweeps),
        "jobs": len(found.jobs),
        "kept_jobs": found.kept,
        "outcome_bytes": found.outcome_bytes,
        "artifacts": found.files,
        "left": {str(file.path): file.bytes for file in found.left},
        "bytes": found.bytes,
        "shared_artifacts": None if pruning.artifact_files.own_folder(store) else address(store.artifacts),
        "not_compacted": compact(store) if yes and found.jobs else None,
    }
    return told


def prune_text(told: Mapping[str, Any]) -> str:
    verb = "removed" if told["removed"] else "would go"
    lines = [
        f"{verb}: {counted(told['versions'], 'version of a sweep', 'versions of sweeps')}, "
        f"{counted(told['jobs'], 'job')}, {size_text(told['outcome_bytes'])} of outcomes, "
        f"{counted(len(told['artifacts']), 'artifact')} ({size_text(sum(told['artifacts'].values()))}), "
        f"{counted(len(told['left']), 'file')} that nothing rests on ({size_text(sum(told['left'].values()))})",
        *(f"  {sha256} ({size_text(size)})" for sha256, size in sorted(told["artifacts"].items())),
        *(f"  {path} ({size_text(size)})" for path, size in told["left"].items()),
    ]
    if told["kept_jobs"]:
        stay = counted(told["kept_jobs"], "of their jobs stays", "of their jobs stay")
        lines.append(f"{stay}: other sweeps have {'it' if told['kept_jobs'] == 1 else 'them'} too")
    if told["shared_artifacts"] and told["artifacts"]:
        lines.append(f"the artifacts are in {told['shared_artifacts']}: other stores that use it lose these too")
    if told["not_compacted"]:
        lines.append(f"the database's file is as large as before: {told['not_compacted']}")
    if not told["removed"]:
        lines.append(f"nothing was removed: --yes does it, and frees {size_text(told['bytes'])}")
    return "\n".join(lines)


def merge(url: str, others: Sequence[str], places: Sequence[str], *, dry_run: bool) -> list[dict[str, Any]]:
    """Take other stores into the one of this URL, one after the other."""
    from robustq.jobs.upkeep.merge import merge

    sources = [open_store(other) for other in others]
    target = open_store(url, create=not dry_run, write=True)
    told = []
    for source in sources:
        found = asdict(merge(target, source, places=places, dry_run=dry_run))
        told.append({"store": address(source.url), "dry_run": dry_run} | found)
    return told


def merge_text(told: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(line for one in told for line in merge_lines(one))


def merge_lines(one: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{one['store']}{' (tried only)' if one['dry_run'] else ''}: "
        f"{counted(one['sweeps'], 'new sweep')}, {counted(one['new'], 'new job')} ({one['done']} of them done), "
        f"{counted(one['taken'], 'result')} of jobs that were open here, {one['same']} done alike in both, "
        f"{len(one['differing'])} done differently, {counted(one['copied'], 'artifact')} ({size_text(one['bytes'])})"
    ]
    for row in one["differing"]:
        at = "" if row["eps"] is None else f" {row['norm']} {row['eps']:.4g}"
        lines.append(
            f"differs: job {row['job_id']}, {row['model']} under {row['attack']}{at}, seed {row['seed']}: kept "
            f"{kept_text(row, 'kept')} ({row['kept_made_on']}), left "
            f"{kept_text(row, 'other')} ({row['other_made_on']})"
        )
    return lines + [
        f"lost: no place has the artifact {sha256} as it was; robustq retry makes it again" for sha256 in one["lost"]
    ]


def kept_text(row: Mapping[str, Any], side: str) -> str:
    """A side's robust accuracy; an explanation has none."""
    return "its explanations" if row["attack"] == EXPLAIN else percent(row[f"{side}_robust_accuracy"])


def percent(share: float | None) -> str:
    return "nothing" if share is None else f"{100 * share:.2f} %"
