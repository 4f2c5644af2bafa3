"""A report on what is installed here and what works: the first thing to run when something does not."""

import platform
import tempfile
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from robustlib.datasets import load
from robustlib.number_text import counted
from robustq.cluster import gpu_probe
from robustq.cluster.ray_connection import local_ray
from robustq.cluster.slots import usable_cpus
from robustq.cluster.this_machine import gpu_count, gpu_ids, local_slots
from robustq.jobs.errors import StoreError
from robustq.jobs.store.connection import open_store
from robustq.jobs.text import tables
from robustq.jobs.text.safe_text import address, hide

PACKAGES = ("robustq", "torch", "torchvision", "ray", "pyarrow", "sqlalchemy", "click", "numpy", "safetensors")


def examine(store: str, *, as_json: bool) -> tuple[str, bool]:
    """A table of checks as text or JSON, and whether all went well."""
    rows = [check("python", lambda: platform.python_version())]
    rows += [check(name, lambda name=name: version(name)) for name in PACKAGES]
    rows += [
        check("torch with torchvision", torch_pair),
        check("processors", lambda: f"{counted(usable_cpus(), 'CPU')}, {counted(gpu_count(), 'GPU')}"),
        check("GPUs", try_gpus),
        check("ray", try_ray),
        check("cache", try_cache),
        check("store", lambda: try_store(store)),
    ]
    return tables.json_text(rows) if as_json else tables.table(rows), all(row["ok"] == "yes" for row in rows)


def check(name: str, look: Any) -> dict[str, str]:
    """Run one check: whatever it raises is its finding."""
    try:
        return {"what": name, "ok": "yes", "found": look()}
    except PackageNotFoundError:
        return {"what": name, "ok": "no", "found": f"not installed: pip install {name}"}
    except Exception as error:
        return {"what": name, "ok": "no", "found": f"{type(error).__name__}: {hide(str(error))}"}


def torch_pair() -> str:
    """torch and torchvision work together: an operator of torchvision's own runs."""
    import torch
    import torchvision

    kept = torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{len(kept)} of 1 boxes kept; CUDA devices: {', '.join(names) or 'none'}"


def try_gpus() -> str:
    """As a run tries them, before its first job."""
    import torch

    ids = gpu_ids()
    if not ids and torch.version.hip is not None:
        raise RuntimeError(f"torch is built for ROCm {torch.version.hip}, whose GPUs are not used: jobs run on CPUs")
    reasons = gpu_probe.trial(tuple(ids))
    if all(reasons) and ids:
        why = "; ".join(dict.fromkeys(reasons))
        raise RuntimeError(f"{len(ids)} are there, and none can be used, so that jobs run on CPUs: {why}")
    if line := gpu_probe.told(ids, reasons):
        raise RuntimeError(line)
    return f"{len(ids)} of {len(ids)} multiply in a process of their own" if ids else "none"


def try_ray() -> str:
    with local_ray(local_slots(1, None)) as ray:
        found = ray.cluster_resources()
    return f"started; {counted(int(found.get('CPU', 0)), 'CPU')}, {counted(int(found.get('GPU', 0)), 'GPU')}"


def try_cache() -> str:
    load.home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=load.home()):
        return f"{load.home()} can be written"


def try_store(url: str) -> str:
    try:
        return f"{open_store(url).url} opened"
    except StoreError as error:
        if "there is no store" in str(error):
            return f"{address(url)} is not made yet"
        raise
