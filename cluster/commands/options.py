"""Options that commands which run jobs share: where they run, what of a study is replaced, which model is meant."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from robustlib.arguments import RANGES
from robustq.jobs.commands.base import PRIORITY, SEED, Budgeted, Choice, Counted, json_option
from robustq.jobs.commands.options import dataset_options, normalize_options, with_options
from robustq.jobs.commands.shell import completion

Command = Callable[..., Any]

address_option = click.option("--address", help="Ray cluster to run on, auto for this machine's; default: none.")
priority_option = click.option("--priority", type=PRIORITY, default=0, show_default=True, help="Higher goes first.")
budget_option = click.option(
    "--budget",
    type=Budgeted(),
    help="Queue what is worth the most of what fits into 2h, 90m or 3600s; the rest stays out of the queue.",
)
cpus_option = click.option(
    "--cpus-per-job", type=click.IntRange(1, 4096), help="CPU threads a job; default: shared evenly."
)
device_option = click.option(
    "--device", type=Choice(["cpu", "cuda"]), help="Compute on this; default: GPUs where there are some."
)
on_end_option = click.option(
    "--on-end", metavar="CMD", help="Run this when the sweep ends or fails; ROBUSTQ_STATUS and others tell it how."
)
seed_option = click.option("--seed", type=SEED, default=0, show_default=True)
norm_option = click.option(
    "--norm", shell_complete=completion.NORM, default="Linf", show_default=True, help="Linf, L2 or L1."
)
weights_option = click.option(
    "--weights", help="File of weights: safetensors or a state dict; FILE:KEY for one of several in it."
)


def epochs_option(**how: Any) -> Callable[[Command], Command]:
    return click.option("--epochs", type=Counted(RANGES["epochs"]), **how)


def examples_option(default: str) -> Callable[[Command], Command]:
    text = "Test examples, the first of the file, or all."
    return click.option("--examples", default=default, show_default=True, help=text)


def study_options(command: Command) -> Command:
    """What replaces entries of a study from the command line."""
    options = (
        click.argument("study", type=click.Path(dir_okay=False, path_type=Path)),
        click.option("--dataset", shell_complete=completion.DATASETS, help="Data set, such as digits or parquet:PATH."),
        epochs_option(help="Epochs of every training."),
        click.option("--examples", help="Test examples to attack, or all."),
        dataset_options,
    )
    return with_options(command, options)


def model_options(purpose: str, *, trained: bool = False) -> Callable[[Command], Command]:
    """A MODEL with its weights, how its images are normalised, and the data set that it meets.

    purpose: what is done on the data set, as its help says it.  trained: the command makes the weights itself.
    """
    dataset = click.option(
        "--dataset",
        shell_complete=completion.DATASETS,
        default="digits",
        show_default=True,
        help=f"Data set to {purpose} on.",
    )
    weights = () if trained else (weights_option,)
    model = click.argument("model", shell_complete=completion.MODEL)
    return lambda command: with_options(command, (model, *weights, normalize_options, dataset, dataset_options))


def run_options(command: Command) -> Command:
    """What computes here, with how many cores, and in which form the answer is printed."""
    return with_options(command, (device_option, cpus_option, json_option))
