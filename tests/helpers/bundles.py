"""The members of a bundle, and bundles in which somebody has changed them."""

import json
import zipfile
from pathlib import Path

from robustq.jobs.verification import bundle_format


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def altered(path: Path, target: Path, change, *, seal: bool = True) -> Path:
    """A bundle whose members were changed by `change`. seal: with a manifest that fits them, as a forger makes it."""
    found = members(path)
    manifest = json.loads(found.pop("manifest.json"))
    change(found)
    if seal:
        about = {name: manifest[name] for name in ("robustq", "kernel", "sweep", "states")}
        bundle_format.write(target, about, found)
        return target
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in {**found, "manifest.json": json.dumps(manifest).encode()}.items():
            archive.writestr(name, content)
    return target


def of_jobs(change):
    """A change of members that changes the records of jobs, one by one."""

    def changed(found: dict[str, bytes]) -> None:
        lines = [json.loads(line) for line in found["jobs.jsonl"].splitlines()]
        for line in lines:
            change(line)
        found["jobs.jsonl"] = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines).encode()

    return changed
