"""Checks and timings for which a GPU is needed, in one command each: JSON lines as they come, and a table at the end.

`python benchmarks/gpu.py all` says whether the kernels' numbers are right there, and how fast attacks and certificates
are beside other libraries. Ends with 1 where a number is wrong, whatever the speed.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import tabulate
import torch
from attacks import Case, device_name, make_case
from gpu_attacks import Attacks
from gpu_checks import correctness
from gpu_figures import GOALS, Figure, Log, measured, table
from gpu_smoothing import Certificates
from gpu_training import Lesson
from gpu_training import steps as training_steps
from peers import Budget

from robustlib.datasets import load

CHECKED = 300  # images of `correctness` that DeepFool and AutoAttack are checked on
SECONDS = {"attacks": 240.0, "smoothing": 30.0, "training": 120.0, "all": 330.0}
OUT = Path("benchmarks/out")
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def options(*, part: str, examples: int, verdicts: bool = False, weights: bool = True) -> Callable[[Any], Any]:
    """The options of a command, with its defaults."""
    found = [
        click.option("--model", default="resnet18", show_default=True, help="Architecture."),
        click.option("--dataset", required=True, help="Such as parquet:PATH."),
        click.option("--examples", type=int, default=examples, show_default=True),
        click.option("--eps", type=float, default=8 / 255, show_default=True),
        click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True),
        click.option("--out", type=click.Path(path_type=Path), default=OUT / f"gpu-{part}.jsonl", show_default=True),
    ]
    if weights:
        found.append(click.option("--weights", required=True, type=FILE))
    if verdicts:
        words = "A reference's verdicts: .npy, uint8, 1 for each image that still is right."
        found.append(click.option("--verdicts", type=FILE, help=words))
    if part in SECONDS:
        words = "After which nothing more is begun."
        found.append(click.option("--seconds", type=float, default=SECONDS[part], show_default=True, help=words))
    if part in ("attacks", "all"):
        words = "Of the other libraries."
        found.append(click.option("--batch-size", type=int, default=500, show_default=True, help=words))

    def decorate(command: Any) -> Any:
        for option in reversed(found):
            command = option(command)
        return command

    return decorate


def case_of(model: str, weights: Path, dataset: str, examples: int, eps: float, device: str, size: int = 500) -> Case:
    case = make_case(model, weights, dataset, examples, Budget(eps, 20, eps / 4, size), torch.device(device))
    case = replace(case, budget=replace(case.budget, classes=case.ready.classes))
    click.echo(f"{device_name(case.device)}: {case.ready.mode(eps)}, made in {case.ready.seconds:.1f} s", err=True)
    return case


def told(figures: Iterable[Figure], case: Case) -> Iterator[Figure]:
    """The figures, each said as it comes, with model and device."""
    for figure in figures:
        value = "-" if figure.value is None else f"{figure.value:.4g}"
        click.echo(f"{figure.task} {figure.library}: {value} {figure.unit} {figure.note}", err=True)
        yield replace(figure, model=case.name, device=device_name(case.device))


def show(log: Log, device: str) -> None:
    """The tables: checks, figures, goals. Ends with 1 where something is wrong."""
    words = {True: "right", False: "WRONG", None: "-"}
    if log.checks:
        rows = [[check.name, check.value, check.expected, words[check.right], check.note] for check in log.checks]
        click.echo(tabulate.tabulate(rows, headers=["check", "value", "expected", "", "note"], floatfmt=".4g"))
    if log.figures:
        heads = ["task", "library", "value", "unit", "times the fastest peer", "", "note"]
        click.echo(tabulate.tabulate(table(log.figures), headers=heads, floatfmt=".4g"))
        goals = [goal.said(log.figures, torch.device(device).type == "cuda") for goal in GOALS]
        click.echo(tabulate.tabulate(goals, headers=["goal", "value", ""], floatfmt=".4g"))
    if log.wrong:
        raise SystemExit(1)


@click.group()
def main() -> None:
    """Measure the kernels on a GPU."""


@main.command("correctness")
@options(part="correctness", examples=CHECKED, verdicts=True)
def correctness_command(model: str, weights: Path, dataset: str, verdicts: Path | None, examples: int, eps: float,
                        device: str, out: Path) -> None:  # fmt: skip
    """Whether the numbers are right: DeepFool, AutoAttack, recorded gradients, drift, float16's range."""
    case = case_of(model, weights, dataset, examples, eps, device)
    with Log(out) as log:
        log.write(correctness(case, verdicts))
    show(log, device)


@main.command("attacks")
@options(part="attacks", examples=10_000, verdicts=True)
def attacks_command(model: str, weights: Path, dataset: str, verdicts: Path | None, examples: int, eps: float,
                    device: str, out: Path, seconds: float, batch_size: int) -> None:  # fmt: skip
    """PGD-20, eight radii of it as one search, DeepFool and AutoAttack, each beside its peers; passes, launches."""
    case = case_of(model, weights, dataset, examples, eps, device, batch_size)
    with Log(out) as log:
        log.write(told(measured("attacks", Attacks(case, verdicts).steps(), seconds), case))
    show(log, device)


@main.command("smoothing")
@options(part="smoothing", examples=1000)
@click.option("--votes", type=int, default=10_000, show_default=True, help="An image, besides the first hundred.")
@click.option("--sigma", type=float, default=0.25, show_default=True)
def smoothing_command(model: str, weights: Path, dataset: str, examples: int, eps: float, device: str, out: Path,
                      seconds: float, votes: int, sigma: float) -> None:  # fmt: skip
    """Votes a second of certificates, and whether they are those of strict float32."""
    case = case_of(model, weights, dataset, examples, eps, device)
    part = Certificates(case, sigma, votes, seconds=seconds)
    with Log(out) as log:
        log.write(told(measured("smoothing", part.steps(), seconds), case))
    show(log, device)


@main.command("training")
@options(part="training", examples=45_000, weights=False)
@click.option("--steps", type=int, default=10, show_default=True, help="Of PGD.")
def training_command(model: str, dataset: str, examples: int, eps: float, device: str, out: Path, seconds: float,
                     steps: int) -> None:  # fmt: skip
    """Seconds an epoch of standard training and training on PGD, beside the loop that people write."""
    lesson = Lesson(model, load.load(dataset, "train"), examples, torch.device(device), eps, steps)
    with Log(out) as log:
        for figure in measured("training", training_steps(lesson), seconds):
            named = replace(figure, model=model, device=device_name(lesson.device))
            click.echo(f"{named.task} {named.library}: {named.value} {named.unit} {named.note}", err=True)
            log.write([named])
    show(log, device)


@main.command("all")
@options(part="all", examples=10_000, verdicts=True)
def all_command(model: str, weights: Path, dataset: str, verdicts: Path | None, examples: int, eps: float,
                device: str, out: Path, seconds: float, batch_size: int) -> None:  # fmt: skip
    """Correctness, attacks and smoothing, one after the other: made for six minutes on a GPU."""
    start = time.perf_counter()

    def left(most: float) -> float:
        return max(0.0, min(most, seconds - (time.perf_counter() - start)))

    case = case_of(model, weights, dataset, examples, eps, device, batch_size)
    few = replace(case, x=case.x[:CHECKED], y=case.y[:CHECKED])
    with Log(out) as log:
        log.write(correctness(few, verdicts, left(seconds)))
        # Certificates before attacks: they are short, and what comes last is what a limit of time leaves out.
        certificates = Certificates(case, seconds=SECONDS["smoothing"])
        parts: dict[str, Callable[[], Any]] = {
            "smoothing": certificates.steps,
            "attacks": Attacks(case, verdicts).steps,
        }
        for name, steps in parts.items():
            log.write(told(measured(name, steps(), left(SECONDS[name])), case))
    show(log, device)


if __name__ == "__main__":
    main()
