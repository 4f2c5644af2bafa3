"""Verdicts of a served package beside those of its program and of its network, under Square with the same draws.

    robustq package JOB --out convnet3.zip
    python benchmarks/served_attacks.py convnet3.zip --dataset parquet:DIR --examples 500 --eps 8/255 --queries 5000

Square attacks the package's program in this process, what `robustq serve` answers over HTTP, and the network in strict
float32, each in a thread of its own: the same images, queries and seed. Then all attacked images are shown to all
three. An image with another verdict is attacked once more by itself, to the first query at which the two decide
otherwise about a candidate, or the one at which they come nearest to it. The command ends with 1 where a logit differs
by more than a card allows, or where no decision is as close as rounding. Figures are lines of JSON in `--out` as they
come; `cpu_seconds` are those of the attack and of what answers it.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import click
import numpy as np
import tabulate
import torch
from serving import processor_seconds, started
from torch import Tensor, nn

from robustlib.attacks.square import square
from robustlib.datasets import load
from robustlib.datasets.lazy_images import LazyImages
from robustlib.evaluation.batches import Ready, evaluate_batches, make_ready
from robustlib.export.comparison import tolerance
from robustlib.inference.model_modes import as_images, strict_float32
from robustlib.losses import margin
from robustlib.model_calls import ask
from robustlib.models.black_box import BlackBoxModel, endpoint
from robustlib.models.onnx_model import onnx_model
from robustlib.outcome import Outcome, join
from robustlib.packages.manifest import ONNX, Package, open_package
from robustlib.rng import Draws
from robustq.jobs.running.package_models import network_of

CPU = torch.device("cpu")
PROGRAM, SERVED, NETWORK = "program", "served", "network"


@dataclass(frozen=True)
class Case:
    """What is attacked, and how. models: by name.  x: uint8, (N, C, H, W).  served: the server's processor seconds."""

    models: Mapping[str, BlackBoxModel]
    x: Tensor
    y: Tensor
    eps: float
    queries: int
    seed: int
    served: Callable[[], float] = lambda: 0.0


@dataclass(frozen=True)
class Attacked:
    """What Square did to one of the models. x_adv: float32, shape (N, C, H, W)."""

    outcome: Outcome
    x_adv: Tensor
    seconds: float
    cpu_seconds: float


def attack(case: Case, name: str, ready: Ready) -> Attacked:
    """Square on all images of the case, in one thread, which is called for that."""
    torch.set_num_threads(1)  # of this thread
    began, used = time.perf_counter(), processor(case, name)
    how = partial(square, eps=case.eps, queries=case.queries)
    options: Any = {"eps": case.eps, "seed": case.seed, "device": CPU, "ready": ready}
    found = list(evaluate_batches(ready.model, case.x, case.y, [("square", how)], **options))
    x_adv = torch.cat([batch.x_adv for batch in found])
    outcome = join([batch.outcome for batch in found])
    return Attacked(outcome, x_adv, time.perf_counter() - began, processor(case, name) - used)


def processor(case: Case, name: str) -> float:
    """Processor seconds that this thread, and what answers it, has used."""
    return time.thread_time() + (case.served() if name == SERVED else 0.0)


def figures(name: str, one: Attacked) -> dict[str, Any]:
    """What is told of one model."""
    found = one.outcome
    return {
        "model": name,
        "images": len(found.label),
        "clean_accuracy": float((found.clean_prediction == found.label).mean()),
        "robust_accuracy": float((~found.success).mean()),
        "queries": int(found.queries.clip(0).sum()),
        "seconds": round(one.seconds, 1),
        "cpu_seconds": round(one.cpu_seconds, 1),
    }


@torch.no_grad()
def shown(case: Case, images: Tensor) -> dict[str, Tensor]:
    """Logits of the same images by each model, shape (N, classes)."""
    with strict_float32():
        return {name: torch.cat([ask(model, part) for part in images.split(64)]) for name, model in case.models.items()}


def beside(case: Case, found: Mapping[str, Attacked], one: str, other: str, logits: Mapping[str, Tensor]) -> Any:
    """Two models' verdicts, and their answers to the images that were attacked on any of the three."""
    ours, theirs = found[one].outcome, found[other].outcome
    mine, its = logits[one], logits[other]
    y = case.y.repeat(len(found))
    turned = (mine.argmax(1) != its.argmax(1)).nonzero().squeeze(1)
    return {
        "pair": f"{one}, {other}",
        "verdicts": np.flatnonzero(ours.success != theirs.success).tolist(),
        "walks": int((ours.queries != theirs.queries).sum()),
        "shown": len(y),
        "classes": [
            {"image": int(k) % len(case.y), "margins": [float(margin(z[k : k + 1], y[k : k + 1])) for z in (mine, its)]}
            for k in turned
        ],
        "largest_difference": float((mine - its).abs().max()),
        "tolerance": tolerance(its.numpy()),
    }


@dataclass
class Beside:
    """One model, asked about one image at a time, and the decision that another comes nearest to taking otherwise.

    A decision is whether a candidate's margin is larger than the largest so far, or above 0. fork: whether the two take
    one otherwise.  query, gap: of the first such, else of the nearest.  rounding: largest difference of a margin.
    """

    one: nn.Module
    other: nn.Module
    y: Tensor
    asked: int = 0
    fork: bool = False
    query: int = 0
    gap: float = float("inf")
    rounding: float = 0.0
    best: list[float] = field(default_factory=list)

    def __call__(self, x: Tensor) -> Tensor:
        logits = ask(self.one, x)
        if self.fork or not len(x):  # a candidate that changes nothing is not asked about
            return logits
        self.asked += 1
        a, b = float(margin(logits, self.y)), float(margin(ask(self.other, x), self.y))
        self.rounding = max(self.rounding, abs(a - b))
        limits = [(0.0, 0.0), *([(self.best[0], self.best[1])] if self.best else [])]
        for mine, its in limits:
            differs = (a > mine) != (b > its)
            if differs or abs(a - mine) < self.gap:
                self.query, self.gap, self.fork = self.asked, abs(a - mine), self.fork or differs
            if differs:
                break
        if not self.best or a > self.best[0]:
            self.best = [a, b]
        return logits

    @property
    def explained(self) -> bool:
        """Whether rounding may turn the decision: that of the candidate's margin and of the largest so far."""
        return self.gap <= 2 * self.rounding


@torch.no_grad()
def followed(case: Case, one: str, other: str, image: int) -> Beside:
    """Square on one image alone, answered by one model, with another asked about the same candidates."""
    at = slice(image, image + 1)
    x, y = as_images(case.x[at], CPU), case.y[at]
    found = Beside(case.models[one], case.models[other], y)
    with strict_float32():
        square(found, x, y, eps=case.eps, queries=case.queries, draws=Draws(case.seed, torch.tensor([image])))  # pyright: ignore
    return found


def compare(case: Case, write: Callable[[dict[str, Any]], None]) -> list[str]:
    """Attack each model, set their verdicts side by side, and say what is wrong."""
    with strict_float32(), ThreadPoolExecutor(len(case.models)) as pool:
        # One after the other: while a model is traced, torch.fx holds what every thread calls.
        ready = {name: make_ready(model, case.x, model.num_classes or 0, CPU) for name, model in case.models.items()}
        attacks = {name: pool.submit(attack, case, name, ready[name]) for name in case.models}
        for each in as_completed(attacks.values()):
            write(figures(next(name for name in attacks if attacks[name] is each), each.result()))
    found = {name: each.result() for name, each in attacks.items()}
    logits, wrong = shown(case, torch.cat([one.x_adv for one in found.values()])), []
    for one, other in combinations(found, 2):
        pair = beside(case, found, one, other, logits)
        write(pair)
        if pair["largest_difference"] > pair["tolerance"]:
            wrong.append(f"{pair['pair']}: a logit differs by {pair['largest_difference']:.3g}")
        for image in pair["verdicts"]:
            walk = followed(case, one, other, image)
            told = {key: getattr(walk, key) for key in ("fork", "query", "gap", "rounding", "explained")}
            write({"pair": pair["pair"], "image": image, **told})
            if not walk.explained:
                wrong.append(f"{pair['pair']}: image {image} has another verdict, and no decision is near")
    return wrong


def models_of(package: Package, dataset: load.Dataset, url: str) -> dict[str, BlackBoxModel]:
    """The program, what is served at an address, and the network, each asked for logits alone."""
    facts: dict[str, Any] = {
        "in_channels": dataset.in_channels, "num_classes": dataset.num_classes, "image_size": dataset.image_size,
    }  # fmt: skip
    network = network_of(package, facts, None)
    return {
        PROGRAM: onnx_model(package.read(ONNX), ONNX, **facts),
        SERVED: endpoint(url, num_classes=dataset.num_classes),
        NETWORK: BlackBoxModel(lambda x: network(x), dataset.num_classes),
    }


@contextmanager
def case_of(place: Path, dataset: load.Dataset, examples: int, **how: Any) -> Iterator[Case]:
    """The case of a package, which is served while the block runs."""
    command = [sys.executable, "-m", "robustq", "serve", str(place), "--port", "0"]
    with started(command) as (port, path, pid):
        models = models_of(open_package(place), dataset, f"http://127.0.0.1:{port}{path}")
        x, y = LazyImages(dataset.images)[:examples], torch.from_numpy(dataset.y[:examples])
        yield Case(models, x, y, served=lambda: processor_seconds(pid), **how)


@click.command()
@click.argument("package", type=click.Path(path_type=Path, exists=True))
@click.option("--dataset", default="digits", show_default=True, help="Such as parquet:PATH.")
@click.option("--examples", default=500, show_default=True)
@click.option("--eps", default="8/255", show_default=True, help="In Linf.")
@click.option("--queries", default=5000, show_default=True, help="Of an image.")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/out/served_attacks.jsonl"))
def main(package: Path, dataset: str, examples: int, eps: str, out: Path, **how: Any) -> None:
    """Print what Square does to a program, to what serves it, and to its network, and each difference."""
    torch.set_num_threads(1)
    out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with (
        out.open("w") as file,
        case_of(package, load.load(dataset, "test"), examples, eps=float(Fraction(eps)), **how) as case,
    ):

        def write(row: dict[str, Any]) -> None:
            rows.append(row)
            print(json.dumps(row), file=file, flush=True)

        wrong = compare(case, write)
    for key in ("model", "shown", "image"):
        part = [{name: len(v) if isinstance(v, list) else v for name, v in row.items()} for row in rows if key in row]
        if part:
            click.echo(tabulate.tabulate(part, headers="keys", floatfmt=".4g") + "\n")
    for line in wrong:
        click.echo(f"wrong: {line}", err=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
