"""Commands that print what studies may hold: `robustq list` and `robustq schema`."""

import click

from robustq.jobs.commands.base import Choice, json_option, refuse_typed
from robustq.jobs.text.safe_text import say


@click.command(name="list")
@click.argument("kind", type=Choice(["models", "attacks", "datasets", "objectives", "defences", "explanations"]))
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


@click.command()
def schema() -> None:
    """Print the JSON Schema of study files, by which editors complete and check them.

    \b
    robustq schema
    """
    from robustq.jobs.submission.study_schema import study_schema
    from robustq.jobs.text.tables import json_text

    say(json_text(study_schema()))


COMMANDS = (list_names, schema)
