"""The speed of explanations beside captum's, in one process: `python benchmarks/explanations.py --dataset parquet:DIR`.

Both explain the same classes of the same network, in turn, so that a slow minute of the machine meets both. captum gets
the network as PyTorch makes it. It goes image by image where it fits a linear model (LIME, KernelSHAP), and so it is
given fewer images there; what is compared is milliseconds an image. Each method has two rows of captum: at its own
defaults, and with as many images in a pass as it is quickest with here (`--batch-size`). The ratio is to the quicker.
"""

import copy
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import tabulate
import torch
from captum_maps import CaptumMaps, same_draws
from pass_floor import PassFloor
from torch import Tensor

from robustlib.datasets import load
from robustlib.evaluation.explanation import explain
from robustlib.explanations import EXPLANATIONS
from robustlib.models import build
from robustlib.number_text import counted
from robustlib.rng import seeded

OURS, CAPTUM, BATCHED = "robustq", "captum", "captum, batched"
FLOOR, WHOLE = "convolutions alone", "with the first layer"
PASSES = "integrated-gradients"  # a method that is passes for gradients and nothing else
GOALS = {PASSES: 2.0, "kernel-shap": 3.0}  # times captum's speed
SHORT: dict[str, dict[str, Any]] = {}  # options of methods; those of the signatures where there are none


@dataclass(frozen=True)
class Row:
    """What a library took for a method. seconds: the median, least and most of `runs`, for so many images.

    times: milliseconds an image of the quicker captum over ours; times_defaults: of captum at its defaults.
    times_floor: the quicker captum over the convolutions and matrix products of the same passes behind the first
    layer, by PyTorch in float32; times_whole: with that layer.
    largest_difference: of an image's maps, over the largest entry of captum's, on `compared` images, of the same draws
    where a method draws; median_difference: of most images. Where a ReLU's input is all but zero, rounding alone
    decides whether its gradient counts: off_float64 is that of ours from captum's maps in float64, captum_off_float64
    that of captum's own in float32.
    """

    method: str
    library: str
    images: int
    seconds: float
    least_seconds: float
    most_seconds: float
    runs: int
    ms_an_image: float
    times: float | None = None
    times_defaults: float | None = None
    times_floor: float | None = None
    times_whole: float | None = None
    goal: float | None = None
    largest_difference: float | None = None
    median_difference: float | None = None
    off_float64: float | None = None
    captum_off_float64: float | None = None
    compared: int | None = None
    device: str = ""
    torch: str = torch.__version__


@dataclass(frozen=True)
class Case:
    """Images, shape (N, C, H, W), the network's class of each, and the library beside ours.

    few: images that captum is given where it goes one by one.  same: on which maps are compared.
    """

    peer: CaptumMaps
    x: Tensor
    target: Tensor
    few: int
    same: int


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def timed(call: Callable[[], Tensor], clock: Callable[[], float]) -> tuple[float, Tensor]:
    start = clock()
    found = call()
    return clock() - start, found


def measure(case: Case, method: str, runs: int, device: str, clock: Callable[[], float]) -> list[Row]:
    """Each library in turn, `runs` times over, after a first time on few images that does not count."""
    options = SHORT.get(method, {})
    ours = partial(explain, case.peer.model, method=method, **options)
    peers = {CAPTUM: partial(case.peer.maps, method, options, defaults=True)}
    peers[BATCHED] = partial(case.peer.maps, method, options)
    few = case.few if method in CaptumMaps.ONE_BY_ONE else len(case.x)
    counts = {OURS: len(case.x), CAPTUM: min(case.few, few), BATCHED: few}
    calls: dict[str, Callable[[int], Tensor]] = {OURS: lambda n: ours(case.x[:n], case.target[:n]).attribution}
    calls |= {name: lambda n, peer=peer: peer(case.x[:n], case.target[:n]) for name, peer in peers.items()}
    if method == PASSES:
        steps = options.get("steps", EXPLANATIONS[method].options["steps"].default)
        for name in (FLOOR, WHOLE):
            floor = PassFloor(case.peer.model, case.x, case.peer.size, whole=name == WHOLE)
            counts[name] = len(case.x)
            calls[name] = lambda n, floor=floor: floor.run(n * steps)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    maps: dict[str, Tensor] = {}
    for run in range(runs + 1):
        for name, call in calls.items():
            took, found = timed(partial(call, counts[name] if run else 2), clock)
            if run:
                seconds[name].append(took)
                maps[name] = found
                click.echo(f"{method} {name}: {took:.2f} s for {counted(counts[name], 'image')}", err=True)
    each = {name: 1000 * statistics.median(took) / counts[name] for name, took in seconds.items()}
    theirs = same_draws(case.peer, method, options, case.x[: case.same], case.target[: case.same])
    theirs = maps[BATCHED] if theirs is None else theirs
    quicker = min(each[CAPTUM], each[BATCHED])
    return [
        Row(
            method, name, counts[name], round(statistics.median(took), 3), round(min(took), 3), round(max(took), 3),
            runs, round(each[name], 3), device=device, **({} if name != OURS else {
                "times": round(quicker / each[OURS], 2), "goal": GOALS.get(method),
                "times_defaults": round(each[CAPTUM] / each[OURS], 2),
                "times_floor": round(quicker / each[FLOOR], 2) if FLOOR in each else None,
                "times_whole": round(quicker / each[WHOLE], 2) if WHOLE in each else None,
                **(from_float64(case, method, options, maps) if method == PASSES else {}),
                **differences(maps[OURS][: len(theirs)], theirs),
            }),
        )
        for name, took in seconds.items()
    ]  # fmt: skip


def differences(ours: Tensor, theirs: Tensor) -> dict[str, Any]:
    """The largest difference of each image's maps over the largest entry of theirs: of all, and of the middle one."""
    each = (ours - theirs).flatten(1).abs().amax(1) / theirs.flatten(1).abs().amax(1)
    largest, middle = (float(f"{value.item():.3g}") for value in (each.max(), each.median()))
    return {"largest_difference": largest, "median_difference": middle, "compared": len(each)}


def from_float64(case: Case, method: str, options: dict[str, Any], maps: dict[str, Tensor]) -> dict[str, Any]:
    """How far the maps of both libraries lie from captum's in float64, on the images that are compared."""
    n = min(case.same, len(maps[BATCHED]))
    exact = CaptumMaps(copy.deepcopy(case.peer.model).double(), case.peer.size)
    known = exact.maps(method, options, case.x[:n].double(), case.target[:n])
    ours, theirs = (differences(maps[name][:n], known)["largest_difference"] for name in (OURS, BATCHED))
    return {"off_float64": ours, "captum_off_float64": theirs}


def make_case(weights: Path | None, dataset: str, model: str, examples: int, size: int, few: int, same: int) -> Case:
    data = load.load(dataset, "test")
    facts = {"in_channels": data.in_channels, "num_classes": data.num_classes, "image_size": data.image_size}
    with seeded(0, "weights", torch.device("cpu")):
        net = build(arch=model, weights=weights, normalize=(data.mean, data.std), **facts)
    x = torch.from_numpy(data.x[:examples]).float() / 255
    with torch.no_grad():
        target = torch.cat([net(part).argmax(1) for part in x.split(100)])
    return Case(CaptumMaps(net, size), x, target, min(few, examples), min(same, examples))


@click.command()
@click.argument("methods", nargs=-1, type=click.Choice(list(EXPLANATIONS)))
@click.option("--dataset", required=True, help="Such as parquet:PATH.")
@click.option("--model", default="convnet3", show_default=True)
@click.option("--weights", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Default: fresh ones.")
@click.option("--examples", default=200, show_default=True)
@click.option("--few", default=16, show_default=True, help="Images of captum where it goes image by image.")
@click.option("--same", default=4, show_default=True, help="Images whose maps of the same draws are compared.")
@click.option("--runs", default=3, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option(
    "--clock",
    type=click.Choice(list(CLOCKS)),
    default="wall",
    show_default=True,
    help="cpu: of this process alone, on one thread, where others work too.",
)
@click.option("--batch-size", default=64, show_default=True, help="Images in a pass of captum's.")
@click.option("--samples", type=int, help="Of smoothgrad, lime and kernel-shap, instead of their own.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/out/explanations.jsonl"))
def main(methods: tuple[str, ...], dataset: str, model: str, weights: Path | None, examples: int, few: int, same: int,
         runs: int, threads: int, clock: str, batch_size: int, samples: int | None, out: Path) -> None:  # fmt: skip
    """Time METHODS (all where none is named) by robustq and by captum, and compare their maps."""
    warnings.filterwarnings("ignore", module="captum")
    if clock == "cpu" and threads > 1:
        raise click.UsageError("--clock cpu: expected --threads 1, since threads that wait count too")
    torch.set_num_threads(threads)
    if samples is not None:
        SHORT.update({name: {"samples": samples} for name in ("smoothgrad", "lime", "kernel-shap")})
    case = make_case(weights, dataset, model, examples, batch_size, few, same)
    device = f"{platform.machine()} CPU, {counted(threads, 'thread')}, {clock} clock"
    out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with out.open("w") as file:
        for method in methods or EXPLANATIONS:
            rows += (found := measure(case, method, runs, device, CLOCKS[clock]))
            file.writelines(json.dumps(asdict(row)) + "\n" for row in found)
            file.flush()
    shown = (
        "method",
        "library",
        "images",
        "seconds",
        "ms_an_image",
        "times",
        "times_defaults",
        "times_floor",
        "times_whole",
        "goal",
    )
    shown += ("largest_difference", "median_difference", "off_float64", "captum_off_float64")
    click.echo(tabulate.tabulate([{name: asdict(row)[name] for name in shown} for row in rows], headers="keys"))


if __name__ == "__main__":
    main()
