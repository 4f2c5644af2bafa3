"""The command `robustq list`."""

import click

from robustq.jobs.commands.base import json_option, refuse_typed
from robustq.jobs.text.safe_text import say


@click.command(name="list")
@click.argument("kind", type=click.Choice(["models", "attacks", "datasets", "objectives", "defences"]))
@click.option("--torchvision", is_flag=True, help="With models: torchvision's too.")
@json_option
@click.pass_context
def list_names(ctx: click.Context, kind: str, torchvision: bool, as_json: bool) -> None:
    """Print the names that studies may use, with their parameters.

    \b
    robustq list attacks
    robustq list models --torchvision --json
    """
    from robustq.jobs.commands.names_text import names_text

    if kind != "models":
        refuse_typed(ctx, f"on {kind}: it is for models", "torchvision")
    say(names_text(kind, torchvision=torchvision, as_json=as_json))
