"""The command line: the group that all commands hang from. Heavy imports wait until a command needs them."""

import atexit
import gc
import logging

import click

from robustlib import VERSION
from robustq.cluster.commands.one_model import COMMANDS as MODEL_COMMANDS
from robustq.cluster.commands.studies import COMMANDS as STUDY_COMMANDS
from robustq.cluster.remote.commands import COMMANDS as CLUSTER_COMMANDS
from robustq.cluster.remote.run_remotely import remotely
from robustq.cluster.serving.option import on_ray
from robustq.jobs.commands.base import IS_GONE, Commands, json_option
from robustq.jobs.commands.deployment.packages import COMMANDS as PACKAGE_COMMANDS
from robustq.jobs.commands.deployment.serving import COMMANDS as SERVING_COMMANDS
from robustq.jobs.commands.files import COMMANDS as FILE_COMMANDS
from robustq.jobs.commands.list_names import COMMANDS as NAME_COMMANDS
from robustq.jobs.commands.queue import COMMANDS as QUEUE_COMMANDS
from robustq.jobs.commands.results import COMMANDS as RESULT_COMMANDS
from robustq.jobs.commands.store import COMMANDS as STORE_COMMANDS
from robustq.jobs.commands.verification import COMMANDS as VERIFICATION_COMMANDS
from robustq.jobs.errors import JobsFailed, SpecError
from robustq.jobs.text.notes import set_level
from robustq.jobs.text.safe_text import say


def cite(ctx: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from robustq.jobs.text.citation import citation

        say(citation())
        ctx.exit()


@click.group(cls=Commands)
@click.version_option(VERSION)
@click.option("--cite", is_flag=True, is_eager=True, expose_value=False, callback=cite, help="Say how to cite robustq.")
@click.option(
    "--store",
    envvar="ROBUSTQ_STORE",
    default="sqlite:///.robustq/results.db",
    show_default=True,
    help="Database URL or SQLite file.",
)
@click.option("--quiet", "-q", is_flag=True, help="Say nothing beside the answer but errors.")
@click.option("--verbose", "-v", is_flag=True, help="Say what is done meanwhile too.")
@click.pass_context
def main(ctx: click.Context, store: str, quiet: bool, verbose: bool) -> None:
    """How robust are these networks, and which defence helps?

    \b
    robustq run studies/quickstart.yaml       train, attack and report on this machine
    robustq attack my_model.py:build          attack one model of your own
    robustq results                           what came of it

    \b
    Exit codes: 0 done; 1 some jobs failed, the run was interrupted, diff found a change, replay or db merge a
    difference, check something wrong;
    2 wrong usage or what you can mend, with one line that says how.
    """
    # Imports make objects that stay: looking for garbage among them costs a quick command a third of its time.
    gc.set_threshold(100_000, 50, 50)
    atexit.register(gc.freeze)  # nor is it looked for at the end, which takes 0.4 s where torch is loaded
    if quiet and verbose:
        raise SpecError("expected --quiet or --verbose, got both")
    set_level(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)
    ctx.obj, ctx.meta[IS_GONE] = store, is_gone


def is_gone(pid: int, process: str | None) -> bool:
    from robustq.cluster.process_identity import is_gone

    return is_gone(pid, process)


@main.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check this machine: versions, GPUs, Ray, the store, the cache.

    \b
    robustq doctor
    """
    from robustq.cluster.doctor import examine

    text, healthy = examine(ctx.obj, as_json=as_json)
    say(text)
    if not healthy:
        raise JobsFailed("something is wrong: see above")


for command in (*QUEUE_COMMANDS, *RESULT_COMMANDS):
    main.add_command(remotely(command))
RUNNING = (*STUDY_COMMANDS, *MODEL_COMMANDS)
STORED = (*FILE_COMMANDS, *STORE_COMMANDS, *VERIFICATION_COMMANDS, *PACKAGE_COMMANDS, *NAME_COMMANDS)
for command in (*RUNNING, *STORED, *CLUSTER_COMMANDS):
    main.add_command(command)
for command in SERVING_COMMANDS:
    main.add_command(on_ray(command))


if __name__ == "__main__":
    main()
