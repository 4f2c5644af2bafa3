"""The reference page of all commands, from what click knows of them: `python -m tests.docs.make_commands` writes it."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from robustq.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
HEAD = """\
# Commands

Every command says the same with `--help`. Those with `--json` print JSON to stdout and nothing else there; progress and
messages go to stderr: progress as one line that is rewritten on a terminal, as a line every ten seconds in a log file,
and as JSON, a line each, where `run`, `drive`, `attack`, `train`, `audit` and `explain` are given `--json`. This page is written by `python -m tests.docs.make_commands`, and a test compares it with the
commands.
"""


def page() -> str:
    """The whole page: the program itself, then its commands by name."""
    top = click.Context(main, info_name="robustq")
    return "\n".join([HEAD, *sections(main, top)])


def sections(command: click.Command, context: click.Context) -> Iterator[str]:
    """A command's section, and those of the commands below it. Of groups that only hold commands, no usage line."""
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f"## {context.command_path}\n\n```text\n{usage}\n```\n"
    yield from paragraphs(command)
    yield from options(command, context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from sections(below, click.Context(below, info_name=name, parent=context))


def paragraphs(command: click.Command) -> Iterator[str]:
    r"""The command's help. What click is told not to wrap (`\b`) are examples where it begins with `robustq`."""
    for text in inspect.cleandoc(command.help or "").split("\n\n"):
        lines = text.removeprefix("\b\n")
        examples = text.startswith("\b\n") and lines.startswith("robustq ")
        yield f"```sh\n{as_comments(lines)}\n```\n" if examples else f"{lines}\n"


def as_comments(lines: str) -> str:
    """Examples with what is said of them, which stands after some spaces, as a comment of the shell."""
    return re.sub(r"(?m)(?<=\S)( {2,})(?=\S)", r"\1# ", lines)


def options(command: click.Command, context: click.Context) -> Iterator[str]:
    """A table of the command's options, but for --help, which every command has."""
    known = [each for each in command.params if isinstance(each, click.Option)]
    records = [(option, record) for option in known if (record := option.get_help_record(context))]
    if records:
        rows = [f"| `{cell(name)}` | {cell(what)}{variable(option)} |" for option, (name, what) in records]
        yield "\n".join(["| option | |", "|---|---|", *rows, ""])


def variable(option: click.Option) -> str:
    """The environment variable that stands in for an option."""
    return f" Or `{option.envvar}`." if option.envvar else ""


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


if __name__ == "__main__":
    PAGE.write_text(page())
