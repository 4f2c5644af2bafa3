"""Commands that ask the queue or change it."""

import click

from robustlib.number_text import counted
from robustq.jobs.commands.base import (
    JOB_NUMBER,
    PRIORITY,
    emit,
    following,
    json_option,
    open_store,
    process_check,
    sweep_option,
    versions_option,
)
from robustq.jobs.commands.shell import completion
from robustq.jobs.text.safe_text import say


@click.command()
@sweep_option
@click.option("--watch", is_flag=True, help="Show it again every second, until all jobs have ended.")
@json_option
@click.pass_context
def status(ctx: click.Context, sweep: str | None, watch: bool, as_json: bool) -> None:
    """Count the jobs by state, and say what runs and what failed.

    \b
    robustq status --watch
    robustq status --sweep mine --json
    """
    from robustq.jobs.commands import queue_actions

    store = open_store(ctx)
    how = {"as_json": as_json, "is_gone": process_check(ctx)}
    if watch:
        following(
            lambda: queue_actions.status_text(store, sweep, **how),
            lambda: queue_actions.all_ended(store, sweep),
        )
    else:
        say(queue_actions.status_text(store, sweep, **how))


@click.command()
@click.argument("job_ids", nargs=-1, type=JOB_NUMBER)
@versions_option
@json_option
@click.pass_context
def cancel(ctx: click.Context, job_ids: tuple[int, ...], sweep: str | None, as_json: bool) -> None:
    """Cancel jobs by number, or all of a sweep but those that another sweep wants too.

    \b
    robustq cancel 17 18
    robustq cancel --sweep mine
    """
    from robustq.jobs.commands import queue_actions

    found = queue_actions.cancelled(open_store(ctx, write=True), job_ids, sweep)
    emit(found, queue_actions.cancelled_text(found), as_json)


@click.command()
@click.argument("job_ids", nargs=-1, type=JOB_NUMBER)
@versions_option
@json_option
@click.pass_context
def retry(ctx: click.Context, job_ids: tuple[int, ...], sweep: str | None, as_json: bool) -> None:
    """Queue failed and cancelled jobs again, by number or all of a sweep.

    \b
    robustq retry 17
    robustq retry --sweep mine
    """
    from robustq.jobs.commands import queue_actions

    n = queue_actions.retry(open_store(ctx, write=True), job_ids, sweep)
    emit({"queued": n}, f"{counted(n, 'job')} queued again", as_json)


@click.command()
@click.option(
    "--sweep", shell_complete=completion.sweeps, required=True, help="The sweep of this name, in all its versions."
)
@json_option
@click.pass_context
def pause(ctx: click.Context, sweep: str, as_json: bool) -> None:
    """Start no more jobs of a sweep; what runs goes on to its end. Drivers wait until it is resumed.

    \b
    robustq pause --sweep mine
    """
    from robustq.jobs.commands import queue_actions

    n = queue_actions.pause(open_store(ctx, write=True), sweep, paused=True)
    emit(
        {"paused": True, "unfinished": n}, f"{counted(n, 'job waits', 'jobs wait')} until the sweep is resumed", as_json
    )


@click.command()
@click.option(
    "--sweep", shell_complete=completion.sweeps, required=True, help="The sweep of this name, in all its versions."
)
@json_option
@click.pass_context
def resume(ctx: click.Context, sweep: str, as_json: bool) -> None:
    """Go on with a sweep that was paused.

    \b
    robustq resume --sweep mine
    """
    from robustq.jobs.commands import queue_actions

    n = queue_actions.pause(open_store(ctx, write=True), sweep, paused=False)
    emit({"paused": False, "unfinished": n}, counted(n, "job goes on", "jobs go on"), as_json)


@click.command()
@click.argument("priority", type=PRIORITY)
@click.argument("job_ids", nargs=-1, type=JOB_NUMBER)
@versions_option
@json_option
@click.pass_context
def prioritise(ctx: click.Context, priority: int, job_ids: tuple[int, ...], sweep: str | None, as_json: bool) -> None:
    """Set the PRIORITY of jobs by number, or of all of a sweep: higher goes first, new jobs have 0.

    \b
    robustq prioritise 5 17 18
    robustq prioritise --sweep mine -- -1
    """
    from robustq.jobs.commands import queue_actions

    n = queue_actions.prioritise(open_store(ctx, write=True), job_ids, sweep, priority)
    emit({"changed": n, "priority": priority}, f"{counted(n, 'job has', 'jobs have')} priority {priority}", as_json)


@click.command()
@click.argument("job_id", type=JOB_NUMBER)
@click.option("--follow", "-f", is_flag=True, help="Show it again as it changes, until the job has ended.")
@json_option
@click.pass_context
def logs(ctx: click.Context, job_id: int, follow: bool, as_json: bool) -> None:
    """All that is known of a job: spec, attempts with tracebacks, events, training history.

    \b
    robustq logs 17
    robustq logs 17 --follow
    """
    from robustq.jobs.commands import queue_actions

    store = open_store(ctx)
    if follow:
        following(
            lambda: queue_actions.log_text(store, job_id, as_json=as_json),
            lambda: queue_actions.has_ended(store, job_id),
        )
    else:
        say(queue_actions.log_text(store, job_id, as_json=as_json))


COMMANDS = (status, cancel, retry, pause, resume, prioritise, logs)
