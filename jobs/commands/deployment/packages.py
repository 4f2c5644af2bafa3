"""Commands that make a model into a package, and look at one."""

from functools import partial
from pathlib import Path
from typing import Any

import click

from robustlib.arguments import COUNT, RANGES
from robustq.jobs.commands.base import Counted, Unfinished, json_option, refuse_typed
from robustq.jobs.commands.options import normalize_options, reading_options
from robustq.jobs.text.output_paths import Output
from robustq.jobs.text.safe_text import say

OF_MODELS = ("weights", "normalize", "mean", "std", "dataset")
READING_NAMES = ("split", "label", "image", "classes", "size", "crop", "exif_transpose")


@click.command()
@click.argument("model")
@click.option("--out", type=Output(folder=None, replaced=True), required=True, help="Folder, or FILE.zip.")
@click.option("--weights", help="File of weights: safetensors or a state dict; FILE:KEY for one of several in it.")
@normalize_options
@click.option("--dataset", default="digits", show_default=True, help="Data set that it is for, and was evaluated on.")
@reading_options
@click.option(
    "--queries",
    type=Counted(RANGES["queries"]),
    default=1000,
    show_default=True,
    help="Of Square, on each image, against the program itself.",
)
@click.option(
    "--examples",
    type=Counted(COUNT),
    default=500,
    show_default=True,
    help="Images of the stored evaluation that the program is attacked on, at most.",
)
@click.option("--int8", is_flag=True, help="With a program in 8 bits too, calibrated on training images.")
@click.option("--no-monitoring", is_flag=True, help="Without the rates of the signals that a server watches.")
@click.option("--anyway", is_flag=True, help="Also a model whose evaluation failed a check: the card says so first.")
@json_option
@click.pass_context
def package(
    ctx: click.Context,
    model: str,
    out: Path,
    queries: int,
    examples: int,
    int8: bool,
    no_monitoring: bool,
    anyway: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make MODEL, or the network of the job of this number, into a package: program, weights, card.

    \b
    robustq package 17 --out robust.zip
    robustq package my_model.py:build --dataset digits --out robust
    robustq package convnet3 --weights FILE --dataset parquet:PATH --out robust.zip --queries 5000 --int8

    MODEL is what `robustq attack` takes; the card's numbers are what the store holds of it. The program is attacked
    again: with the attacked images of the stored evaluation, and by Square. Needs pip install 'robustq[deploy]'.
    """  # fmt: skip
    from robustq.jobs.packages import texts
    from robustq.jobs.packages.make import Asked, make_package

    if model.isdecimal():
        refuse_typed(ctx, "with the number of a job, which has its own", *OF_MODELS, *READING_NAMES)
    store, chosen = texts.choose(ctx.obj, model, options)
    asked = Asked(queries, examples, int8, anyway, monitored=0 if no_monitoring else Asked.monitored)
    made = make_package(store, chosen, out, asked, partial(say, err=True))
    say(texts.made_text(made, as_json=as_json))


@click.command()
@click.argument("place", metavar="PACKAGE", type=click.Path(path_type=Path))
@click.option("--digest", metavar="HEX", help="That `robustq package` printed.")
@json_option
@click.pass_context
def verify(ctx: click.Context, place: Path, digest: str | None, as_json: bool) -> None:
    """Say whether PACKAGE is what its card says, and gives its golden answers on this machine.

    \b
    robustq verify robust.zip --digest 1f0c...
    robustq verify robust --json

    Exit code 1 where a hash is not the card's, an answer lies beyond its tolerance, or the digest is another. Nothing
    is unpickled: of model.pt2 the hash alone is looked at.
    """
    from robustq.jobs.packages import texts
    from robustq.jobs.packages.verify import verify as look

    found = look(place, digest)
    say(texts.verified_text(found, as_json=as_json))
    if found.failed:
        raise Unfinished(f"{place} is not what it ought to be: {'; '.join(one.line for one in found.failed)}")


COMMANDS = (package, verify)
