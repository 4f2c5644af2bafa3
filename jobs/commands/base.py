"""The base of all commands: the one place where errors become lines and exit codes."""

import errno
import math
import os
import re
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import click

from robustlib.arguments import Range, check_range
from robustlib.names import did_you_mean
from robustq.jobs.commands.shell import completion
from robustq.jobs.commands.shell.standard_streams import hold_streams, is_lost, leave_stdout
from robustq.jobs.errors import JobsFailed, RobustqError, SpecError, Unprinted
from robustq.jobs.text.number_parsing import written_whole
from robustq.jobs.text.safe_text import address, hide, one_line, plain, say

DISK_ERRORS = {
    errno.ENOSPC: "no room left on the disk: make room, then run the same command again",
    errno.EDQUOT: "the disk quota is used up: make room, then run the same command again",
    errno.EACCES: "permission denied: choose another folder, or change its permissions",
    errno.EPERM: "not permitted: choose another folder, or change its permissions",
    errno.EROFS: "the folder is read-only: choose another one",
    errno.EEXIST: "there is a file where a folder is needed: choose another place",
    errno.ENOTDIR: "there is a file where a folder is needed: choose another place",
    errno.EISDIR: "there is a folder where a file is needed: choose another place",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.ELOOP: "a link leads back to itself: choose another place",
    errno.ETXTBSY: "the file is a program that runs: choose another place",
    errno.EFBIG: "the file would be larger than this file system, or a limit, allows: choose another place",
    errno.EIO: "the disk fails to read or write it: choose another place",
    errno.EMFILE: "this process has too many files open: raise the limit (ulimit -n)",
    errno.ENFILE: "this machine has too many files open: close some programs",
}
MOST_LETTERS = 2000  # of a line: a name in it may have millions


class OneLine(click.ClickException):
    """What the user can mend, in one line."""

    exit_code = 2

    def __init__(self, message: str):
        super().__init__(shortened(" ".join(one_line(hide(message)).split())))

    def show(self, file: Any = None) -> None:
        say(f"robustq: {self.message}", err=True)


class Unfinished(OneLine):
    """The command was right, but not all of its work got done."""

    exit_code = 1


class Commands(click.Group):
    """A group whose commands exit 0 when done, 1 when jobs failed, 2 with one line for what the user can mend."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return self.invoke_told(ctx)
        except OneLine:
            if is_lost(sys.stdout):
                leave_stdout()
            raise
        except BrokenPipeError:  # click ends with 1, as Python's own tools do where nobody reads on
            leave_stdout()
            raise

    def invoke_told(self, ctx: click.Context) -> Any:
        try:
            os.getcwd()
        except FileNotFoundError as error:
            raise OneLine("the folder that this command is given in is gone: go to one that exists") from error
        try:
            return super().invoke(ctx)
        except (JobsFailed, Unprinted) as error:
            raise Unfinished(str(error)) from error
        except RobustqError as error:
            raise OneLine(str(error)) from error
        except OSError as error:
            raise told(error) from error
        except MemoryError as error:
            raise OneLine("there is not enough memory: ask for less, or use a machine with more") from error
        except KeyboardInterrupt:
            again = shlex.join(["robustq", *map(address, sys.argv[1:])])
            raise Unfinished(f"stopped; the queue is intact. Go on with: {again}") from None
        except click.ClickException as error:
            raise cleaned(error) from error

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        sys.excepthook = tell_bug
        hold_streams()
        try:
            return super().make_context(*args, **kwargs)
        except OSError as error:  # of printing the help
            found = told(error)
            leave_stdout()
            raise found from error
        except click.ClickException as error:
            raise cleaned(error) from error


def told(error: OSError) -> Exception:
    """The system's error as a line; itself where it is no user's doing."""
    if isinstance(error, BrokenPipeError):
        return error
    if any(frame.name == "echo" for frame in traceback.extract_tb(error.__traceback__)):  # click's own, of help
        return Unfinished(f"the answer cannot be printed: {error.strerror}")
    mend = DISK_ERRORS.get(error.errno or 0)
    return error if mend is None else OneLine(f"{error.filename or 'writing'}: {mend}")


def shortened(text: str) -> str:
    """A line without its middle where it is very long."""
    rest = MOST_LETTERS // 4
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - rest]} ... {text[-rest:]}"


def cleaned(error: click.ClickException) -> click.ClickException:
    """What click says of a command line, which it repeats: without a password."""
    said = error.message
    if isinstance(error, click.NoSuchOption) and error.option_name in GENERAL:
        said = f"{error.option_name} stands before the command, as in: robustq {error.option_name} results"
    message = re.sub(r"(?<=')[^']*(?=')|(?<=\()[^()]*(?=\))", lambda word: address(word[0]), said)
    error.message = shortened(one_line(hide(message)))  # pyright: ignore (declared final, and the only way)
    return error


def tell_bug(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """The traceback of what is no user's doing, in which values may stand as they came."""
    sys.stderr.write(plain(hide("".join(traceback.format_exception(kind, error, trace)))))


def refuse_typed(ctx: click.Context, why: str, *names: str) -> None:
    """Raise SpecError for options that were typed and have no effect. why: after "has no effect"."""
    typed = [
        parameter.opts[0] if isinstance(parameter, click.Option) else parameter.human_readable_name
        for parameter in ctx.command.params
        if parameter.name in names
        and ctx.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE
    ]
    if typed:
        raise SpecError(f"{' and '.join(typed)} {'have' if len(typed) > 1 else 'has'} no effect {why}")


def form_of(ctx: click.Context, form: str, as_json: bool, spreadsheet: bool) -> str:
    """In which form to print: --json is short for --format json, and no other goes with it."""
    if form != "csv":
        refuse_typed(ctx, "without --format csv", "spreadsheet")
    if spreadsheet:
        form = SPREADSHEET
    if as_json and form != "json":
        refuse_typed(ctx, "with --json: expected one of them", "form")
    return "json" if as_json else form


def remote_words(ctx: click.Context, only: Sequence[str] | None = None) -> list[str]:
    """The command that was given, as words for another shell: without what says where to run it."""
    words, arguments = [str(ctx.command.name)], []
    for parameter in ctx.command.params:
        name, value = str(parameter.name), ctx.params.get(str(parameter.name))
        if name in ("cluster", "insecure") or (only is not None and name not in only):
            continue
        if ctx.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        if isinstance(parameter, click.Option) and parameter.nargs > 1:  # such as --compare A B
            words += [parameter.opts[0], *map(str, value or ())]
            continue
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(parameter, click.Argument):
                arguments.append(str(one))
            else:
                words += [parameter.opts[0], *([] if getattr(parameter, "is_flag", False) else [str(one)])]
    return [*words, "--", *arguments] if arguments else words


def following(text: Callable[[], str], ended: Callable[[], bool], seconds: float = 1.0) -> None:
    """Show a text again whenever it has changed, in place on a terminal, until there is nothing more to come."""
    shown = None
    while True:
        last = ended()  # before the text, which then holds the end
        now = text()
        if now != shown:
            if sys.stdout.isatty():
                click.clear()
            say(now)
            shown = now
        if last:
            return
        time.sleep(seconds)


class Choice(click.Choice):
    """One of some words, with the one that was meant where another comes near."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            meant = did_you_mean(value, self.choices).removeprefix(": did")
            raise click.BadParameter(f"{error.message}{meant and f' Did{meant}'}", ctx, param) from error


class WholeNumber(click.IntRange):
    """Whole numbers as studies have them, such as 10 or 1e1."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return super().convert(self.read(value), param, ctx)

    def read(self, value: Any) -> Any:
        found = written_whole(value) if isinstance(value, str) else None
        return value if found is None else found


class Counted(WholeNumber):
    """Whole numbers in a range of the kernels' table, which says so in its own words."""

    def __init__(self, known: Range) -> None:
        super().__init__(min=int(known.least), max=int(known.most) if math.isfinite(known.most) else None)
        self.known = known

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        found = click.INT.convert(self.read(value), param, ctx)
        try:
            check_range("", param.name, found, self.known)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return found


class Budgeted(click.ParamType):
    """A length of time as it is typed, such as 2h or 90m."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        from robustq.jobs.text.durations import read_duration

        try:
            read_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return value


class Seconds(click.FloatRange):
    """A finite time above 0."""

    name = "seconds"

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True, max=MOST_SECONDS)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        found = super().convert(value, param, ctx)
        return found if found == found else self.fail(f"{value} is no time.", param, ctx)


MOST_SECONDS = 1e9  # thirty years
JOB_NUMBER = click.IntRange(1, 2**31 - 1)  # of a job: what a store can hold
SEED = WholeNumber(-(2**31), 2**31 - 1)
PRIORITY = click.IntRange(-1000, 1000)

CSV = ("csv", SPREADSHEET := "csv for spreadsheets")
spreadsheet_option = click.option(
    "--spreadsheet", is_flag=True, help="With CSV: texts that begin like a formula get a ' before them."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout and nothing else there.")
GENERAL = ("-q", "--quiet", "-v", "--verbose", "--store")  # options of robustq itself
IS_GONE = "robustq.is_gone"  # in a context's `meta`: how to tell a process that has ended, which cluster/ knows
sweep_option = click.option("--sweep", shell_complete=completion.sweeps, help="Only the latest sweep of this name.")
versions_option = click.option(
    "--sweep", shell_complete=completion.sweeps, help="All versions of the sweep of this name."
)


def process_check(ctx: click.Context) -> Any:
    """How to tell a process that has ended; where nobody can, none has."""
    return ctx.meta.get(IS_GONE, lambda pid, process: False)


def emit(found: dict[str, Any], text: str, as_json: bool) -> None:
    """Print what an action did: for people, or as JSON."""
    from robustq.jobs.text.tables import json_text

    say(json_text(found) if as_json else text)


def open_store(ctx: click.Context, **how: bool) -> Any:
    from robustq.jobs.store.connection import open_store

    return open_store(ctx.obj, **how)
