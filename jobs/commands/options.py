"""Options that several commands share: how data are read, which results are meant, and what is asked of them."""

from collections.abc import Callable, Collection, Sequence
from functools import wraps
from typing import Any

import click

from robustlib.arguments import COUNT
from robustq.jobs.commands.base import Choice, Counted
from robustq.jobs.commands.shell import completion
from robustq.jobs.errors import SpecError
from robustq.jobs.results.columns import FILTER_COLUMNS

READING = (
    click.option("--split", type=Choice(["train", "test", "validation"]), help="Evaluated; default: test."),
    click.option("--label", metavar="COLUMN", help="Column of the data set that is the label."),
    click.option("--image", metavar="COLUMN", help="Column of the data set that is the image."),
    click.option("--classes", type=Choice(["remap"]), help="Number labels that have holes from 0 on."),
    click.option("--size", metavar="PIXELS", help="Resize images: the shorter side, or HEIGHTxWIDTH."),
    click.option("--crop", type=Counted(COUNT), metavar="PIXELS", help="Then cut this square from their middle."),
    click.option("--exif-transpose", is_flag=True, default=None, help="Turn images as their EXIF data say."),
)  # fmt: skip
NORMALIZE = (
    click.option(
        "--normalize",
        shell_complete=completion.NORMALIZE,
        metavar="NAME",
        help="Of the first layer: dataset, cifar10, cifar100 or imagenet.",
    ),
    click.option("--mean", metavar="NUMBERS", help="Instead: means, by channel or one for all, on the scale [0, 1]."),
    click.option("--std", metavar="NUMBERS", help="Standard deviations, as --mean."),
)
CHOOSE = click.option(
    "--choose", type=Choice(["first", "stratified"]), help="Which examples; stratified: as many of each class."
)

FILTERS = (
    click.option(
        "--sweep", shell_complete=completion.sweeps,
        help="Only the latest sweep of this name, or of every name that fits a pattern.",
    ),
    *(
        click.option(f"--{name}", multiple=True, help=text, shell_complete=completion.FILTERS.get(name))
        for name, text in FILTER_COLUMNS.items()
    ),
    click.option(
        "--where", multiple=True, shell_complete=completion.columns, metavar="COLUMN=VALUE",
        help="A condition on any column, also with !=, <, <=, > or >=, such as 'robust_accuracy<0.5' or "
        "'versions.kernel=3'.",
    ),
)  # fmt: skip
TRUSTED = click.option("--only-trusted", is_flag=True, help="Leave out what failed a check or an audit.")
FILTER_NAMES = ("sweep", *FILTER_COLUMNS, "where", "only_trusted")

QUESTIONS = (
    click.option(
        "--group", metavar="COLUMNS", shell_complete=completion.columns,
        help="Means over rows that agree in these, such as model,attack,eps.",
    ),
    click.option("--over-seeds", is_flag=True, help="Means over rows that differ only by their seed; of a pivot too."),
    click.option("--pivot", is_flag=True, help="A line a model, a column an attack: robust accuracy."),
    click.option(
        "--sort", metavar="COLUMNS", shell_complete=completion.columns,
        help="Order of the rows; -COLUMN from the highest.",
    ),
    click.option(
        "--best", metavar="COLUMN", shell_complete=completion.columns,
        help="Only the best row of each data set, attack, norm and radius: the highest, of seconds the lowest.",
    ),
    click.option(
        "--compare", nargs=2, metavar="A B", shell_complete=completion.stored_models,
        help="Two models, or two numbers of jobs, over the same examples: difference and McNemar's test; of "
        "explanations two models, or two things done to images, and Wilcoxon's.",
    ),
)  # fmt: skip


def dataset_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How the data set is read, and which of its examples are evaluated."""
    return with_options(command, (*READING, CHOOSE))


def normalize_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How images are normalised before the model, as its first layer."""
    return with_options(command, NORMALIZE)


def reading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How the data set is read."""
    return with_options(command, READING)


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options by which results are chosen, as one argument `filters`. Given several times, one of them must fit."""

    @wraps(command)
    def with_filters(*args: Any, sweep: str | None, where: tuple[str, ...], only_trusted: bool, **given: Any) -> Any:
        from robustq.jobs.results.columns import RESULT_COLUMNS
        from robustq.jobs.results.explanations.columns import EXPLANATION_COLUMNS
        from robustq.jobs.results.filters import make_filters

        where = (*where, "verdict!=fail") if only_trusted else where
        named = {name: given.pop(name) for name in FILTER_COLUMNS}
        explained = given.get("explanations")  # None of a command that has no such option
        known = EXPLANATION_COLUMNS if explained else RESULT_COLUMNS
        if explained is not None:
            other = RESULT_COLUMNS if explained else EXPLANATION_COLUMNS
            refuse_other_columns(where, known, other, explained=explained)
        return command(*args, filters=make_filters(sweep, named, where, known), **given)

    return with_options(with_filters, (*FILTERS, TRUSTED))


def refuse_other_columns(
    where: Sequence[str], known: Collection[str], other: Collection[str], *, explained: bool
) -> None:
    """Raise SpecError for a condition on a column that only rows of the other kind have, with the option that asks for
    these.
    """
    from robustq.jobs.results.filters import parse_condition

    for text in where:
        column = parse_condition(text).column.partition(".")[0]
        if column in known or column not in other:
            continue
        if explained:
            raise SpecError(f"explanations have no column {column!r}, but results do: leave --explanations out")
        raise SpecError(f"results have no column {column!r}, but explanations do: --explanations asks for them")


def question_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Filters and what is asked of the rows that they leave, as one argument `question`."""

    @wraps(command)
    def with_question(*args: Any, filters: Any, **given: Any) -> Any:
        from robustq.jobs.results.questions import make_question

        asked = {name: given.pop(name) for name in ("group", "over_seeds", "pivot", "sort", "best", "compare")}
        return command(*args, question=make_question(filters, **asked), **given)

    return filter_options(with_options(with_question, QUESTIONS))


def with_options(command: Callable[..., Any], options: Any) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command
