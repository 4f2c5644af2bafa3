"""Attacks beside those of other libraries: the same model, images and budget, in turn, in one process.

Prints medians, ratios, robust accuracies and the share of the floor, and writes an Arrow file and a picture. The floor
is the time that the passes of our run would take at the rate at which this device makes them, measured in the same run.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import tabulate
import torch
from peers import PEERS, Budget
from torch import Tensor, nn

from robustlib.attacks import ATTACKS, ENSEMBLES
from robustlib.datasets import load
from robustlib.evaluation.batches import Ready, evaluate_batches, evaluate_curve, make_ready
from robustlib.inference.model_modes import as_images, strict_float32
from robustlib.inference.throughput import Rates, Work, calibrate, wait
from robustlib.losses import misclassified
from robustlib.models import build
from robustlib.number_text import counted

OURS = "robustq"


@dataclass(frozen=True)
class Row:
    """One library on one task. seconds: the median; warmup_seconds: what it took once before, where that was anything.

    ratio: this library's seconds over ours.  floor_share: of our seconds, what the passes themselves need.
    """

    task: str
    library: str
    model: str
    examples: int
    seconds: float
    fastest_seconds: float
    slowest_seconds: float
    warmup_seconds: float
    runs: int
    robust_accuracy: float
    distance_median: float | None
    ratio: float
    floor_share: float | None
    device: str
    mode: str


@dataclass(frozen=True)
class Case:
    """A model and its images on a device. plain: the model as other libraries get it."""

    name: str
    plain: nn.Module
    ready: Ready
    x: Tensor
    y: Tensor
    device: torch.device
    budget: Budget


def our_stages(task: str, case: Case, eps: float) -> list[tuple[str, Callable[..., Tensor]]]:
    match task:
        case "pgd":
            return [("pgd", partial(ATTACKS["pgd"], eps=eps, steps=case.budget.steps, step_size=case.budget.step_size))]
        case "autoattack":
            return ENSEMBLES["autoattack"](norm="Linf", eps=eps, classes=case.ready.classes).stages
        case "deepfool":
            return [("deepfool", partial(ATTACKS["deepfool"], norm="L2"))]
    raise ValueError(task)


def ours(task: str, case: Case) -> Tensor:
    """Our attacked images, by the whole evaluation: attack, verdicts, budget checks."""
    options: dict[str, Any] = {"device": case.device, "ready": case.ready, "num_classes": case.budget.classes}
    if task == "curve":
        radii = [case.budget.eps * k / 8 for k in range(1, 9)]
        plan = [(eps, our_stages("pgd", case, eps)) for eps in radii]
        batches = [found[-1] for found in evaluate_curve(case.ready.model, case.x, case.y, plan, **options)]
    else:
        norm, eps = ("L2", None) if task == "deepfool" else ("Linf", case.budget.eps)
        options |= {"norm": norm, "eps": eps}
        batches = evaluate_batches(case.ready.model, case.x, case.y, our_stages(task, case, case.budget.eps), **options)
    return torch.cat([batch.x_adv for batch in batches]).to(case.device)


def timed(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    wait()
    start = time.perf_counter()
    found = call()
    wait()
    return time.perf_counter() - start, found


@torch.no_grad()
def judged(case: Case, x_adv: Tensor, task: str) -> tuple[float, float | None]:
    """Robust accuracy of the images by the original model in strict float32, and DeepFool's median distance."""
    with strict_float32():
        fell = torch.cat(
            [misclassified(case.plain(a), b) for a, b in zip(x_adv.split(250), case.y.split(250), strict=True)]
        )
        clean = torch.cat(
            [misclassified(case.plain(a), b) for a, b in zip(case.x.split(250), case.y.split(250), strict=True)]
        )
    distance = None
    if task == "deepfool":
        distance = (x_adv - case.x)[fell & ~clean].flatten(1).norm(dim=1).median().item()
    return 1 - fell.double().mean().item(), distance


def measure(task: str, case: Case, runs: int, libraries: list[str], rates: Rates) -> list[Row]:
    """Every library in turn, `runs` times over, so that a slow minute of the machine meets all of them."""
    case = replace(case, ready=case.ready.for_evaluation())  # the mode tells of this task
    calls: dict[str, Callable[[], Tensor]] = {OURS: partial(ours, task, case)}
    for name, peer in PEERS.get(task, {}).items():
        if name in libraries:
            calls[name] = partial(peer, case.plain, case.x, case.y, case.budget)
    if task == "curve":
        calls["robustq, one radius"] = partial(ours, "pgd", case)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    verdicts: dict[str, tuple[float, float | None]] = {}
    work = Work(0)
    for run in range(runs):
        for name, call in calls.items():
            before = passes(case.ready)
            took, x_adv = timed(call)
            if name == OURS:
                work = Work(*(b - a for a, b in zip(before, passes(case.ready), strict=True)))
            seconds[name].append(took)
            if run == 0:
                verdicts[name] = judged(case, x_adv, task)
            click.echo(f"{task} {name}: {took:.2f} s, robust accuracy {verdicts[name][0]:.4f}", err=True)
    mode = case.ready.mode(None if task == "deepfool" else case.budget.eps)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return [
        Row(
            task, name, case.name, len(case.x), median[name], min(values), max(values),
            case.ready.seconds if name == OURS else 0.0, runs, *verdicts[name], median[name] / median[OURS],
            rates.seconds(work) / median[OURS] if name == OURS else None, device_name(case.device),
            mode if name.startswith(OURS) else "PyTorch's defaults",
        )
        for name, values in seconds.items()
    ]  # fmt: skip


def passes(ready: Ready) -> tuple[int, int]:
    assert ready.replicas is not None
    return ready.replicas.passes.forwards, ready.replicas.passes.gradients


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {counted(torch.get_num_threads(), 'thread')}"


def make_case(
    model: str, weights: Path | None, dataset: str, examples: int, budget: Budget, device: torch.device
) -> Case:
    """model: an architecture, or a factory as FILE.py:NAME."""
    test = load.load(dataset, "test")
    facts = {"in_channels": test.in_channels, "num_classes": test.num_classes, "image_size": test.image_size}
    named = {"file" if ":" in model else "arch": model}
    given = build(**named, weights=weights, **facts).to(device)
    plain = build(**named, weights=weights, **facts).to(device)
    kept = torch.from_numpy(test.x[:examples])
    ready = make_ready(given, kept, test.num_classes, device)
    x, y = as_images(kept, device), torch.from_numpy(test.y[:examples]).to(device)
    return Case(model.rpartition(":")[2], plain, ready, x, y, device, budget)


def draw(rows: list[Row], path: Path) -> None:
    """Seconds by library, a panel a task."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(row.task for row in rows))
    figure, panels = plt.subplots(len(tasks), 1, figsize=(7, 1.2 + 1.5 * len(tasks)), squeeze=False)
    for panel, task in zip(panels[:, 0], tasks, strict=True):
        mine = [row for row in rows if row.task == task][::-1]
        bars = panel.barh([row.library for row in mine], [row.seconds for row in mine], color="#0072B2")
        panel.bar_label(bars, [f"{row.seconds:.1f} s, {100 * row.robust_accuracy:.1f} %" for row in mine], padding=3)
        panel.set_title(f"{task}: seconds, and robust accuracy", fontsize=10, loc="left")
        panel.margins(x=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{rows[0].model}, {counted(rows[0].examples, 'image')}, {rows[0].device}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


@click.command()
@click.argument("tasks", nargs=-1, type=click.Choice(["pgd", "autoattack", "curve", "deepfool"]))
@click.option("--model", default="convnet3", show_default=True, help="Architecture, or a factory as FILE.py:NAME.")
@click.option("--weights", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dataset", required=True, help="Such as parquet:PATH.")
@click.option("--examples", type=int, default=1000, show_default=True)
@click.option("--eps", type=float, default=8 / 255, show_default=True)
@click.option("--steps", type=int, default=20, show_default=True, help="Of PGD; a step is a quarter of eps.")
@click.option("--batch-size", type=int, default=500, show_default=True, help="Of the other libraries.")
@click.option("--runs", type=int, default=3, show_default=True)
@click.option("--libraries", default=",".join(sorted({name for known in PEERS.values() for name in known})))
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--strict", is_flag=True, help="Other libraries in strict float32 too, not PyTorch's defaults.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/out/attacks"), show_default=True)
def main(tasks: tuple[str, ...], model: str, weights: Path | None, dataset: str, examples: int, eps: float, steps: int,
         batch_size: int, runs: int, libraries: str, device: str, strict: bool, out: Path) -> None:  # fmt: skip
    """Time TASKS (all where none is named) by robustq and by the other libraries."""
    if weights is None and ":" not in model:
        raise click.UsageError("expected --weights for an architecture: a network that is not trained tells nothing")
    budget = Budget(eps, steps, eps / 4, batch_size)
    case = make_case(model, weights, dataset, examples, budget, torch.device(device))
    assert case.ready.replicas is not None
    rates = calibrate(case.ready.replicas.search, case.x[:64])
    click.echo(
        f"{case.ready.mode(budget.eps)}: {rates.forwards:.0f} forwards/s, {rates.gradients:.0f} gradients/s", err=True
    )
    rows: list[Row] = []
    for task in tasks or ("pgd", "curve", "deepfool", "autoattack"):
        if strict:
            with strict_float32():
                rows += measure(task, case, runs, libraries.split(","), rates)
        else:
            rows += measure(task, case, runs, libraries.split(","), rates)
    shown = (
        "task",
        "library",
        "seconds",
        "warmup_seconds",
        "ratio",
        "robust_accuracy",
        "distance_median",
        "floor_share",
    )
    click.echo(tabulate.tabulate([{k: asdict(row)[k] for k in shown} for row in rows], headers="keys", floatfmt=".4g"))
    out.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([asdict(row) for row in rows])
    facts = {"torch": torch.__version__, "numpy": np.__version__, "budget": json.dumps(asdict(budget))}
    with pa.ipc.new_file(str(out.with_suffix(".arrow")), table.schema.with_metadata(facts)) as file:
        file.write_table(table.replace_schema_metadata(facts))
    draw(rows, out.with_suffix(".png"))


if __name__ == "__main__":
    main()
