"""The cost of every evaluation's checks beside PGD-20, in turn in one process: medians of several runs."""

import time
from functools import partial
from pathlib import Path
from statistics import median

import click
import torch

from robustlib.attacks import ATTACKS
from robustlib.checks.evaluation_checks import look_at_model, look_at_outcome
from robustlib.datasets import load
from robustlib.evaluation.batches import evaluate_batches, make_ready
from robustlib.inference.model_modes import as_images
from robustlib.models import build
from robustlib.number_text import counted
from robustlib.outcome import join


@click.command()
@click.option("--dataset", required=True, help="Such as parquet:PATH.")
@click.option("--arch", default="resnet18", show_default=True)
@click.option("--weights", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--examples", default=1000, show_default=True)
@click.option("--eps", default=8 / 255, show_default=True)
@click.option("--runs", default=3, show_default=True)
def main(dataset: str, arch: str, weights: Path, examples: int, eps: float, runs: int) -> None:
    """Print seconds of PGD-20, of the checks beside it, and their share."""
    test = load.load(dataset, "test")
    facts = {"in_channels": test.in_channels, "num_classes": test.num_classes, "image_size": test.image_size}
    model = build(arch=arch, weights=weights, **facts)
    x, y = torch.from_numpy(test.x[:examples]), torch.from_numpy(test.y[:examples])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ready = make_ready(model, x, test.num_classes, device)
    assert ready.replicas is not None
    attack = partial(ATTACKS["pgd"], norm="Linf", eps=eps, steps=20)
    took: dict[str, list[float]] = {"PGD-20": [], "checks": []}
    for run in range(runs):
        start = time.perf_counter()
        batches = list(
            evaluate_batches(ready.model, x, y, [("pgd", attack)], eps=eps, seed=run, device=device, ready=ready)
        )
        middle = time.perf_counter()
        images = as_images(x, device)
        look_at_model(ready.model.eval(), images[:64], randomised=False)
        outcome, x_adv = join([batch.outcome for batch in batches]), torch.cat([batch.x_adv for batch in batches])
        look_at_outcome(
            ready.replicas.exact,
            images,
            y.to(device),
            x_adv.to(device),
            outcome,
            norm="Linf",
            eps=eps,
            seed=run,
            search=ready.replicas.search,
        )
        took["PGD-20"].append(middle - start)
        took["checks"].append(time.perf_counter() - middle)
    attacked, checked = (median(seconds) for seconds in took.values())
    click.echo(
        f"{arch}, {counted(examples, 'image')}, {device}: PGD-20 {attacked:.2f} s, checks {checked:.2f} s, "
        f"{100 * checked / attacked:.1f} %"
    )


if __name__ == "__main__":
    main()
