"""Commands that ask the store or change its queue, here or, with --cluster, on a cluster's head."""

from functools import partial, wraps
from pathlib import Path
from typing import Any

import click

from jobs.console import (
    CSV,
    NUMBER,
    PRIORITY,
    Seconds,
    following,
    form_of,
    json_option,
    open_store,
    refuse_typed,
    remote_words,
    spreadsheet_option,
    sweep_option,
)
from jobs.options import question_options
from jobs.tables import FORMATS
from jobs.words import say

insecure_option = click.option("--insecure", is_flag=True, help="Also a cluster that asks for no token.")
cluster_option = click.option("--cluster", envvar="ROBUSTQ_CLUSTER", help="Ray dashboard, such as http://HEAD:8265.")


def remotely(command: Any) -> Any:
    """Let a command that asks the store be asked on a cluster's head too."""

    @cluster_option
    @insecure_option
    @click.pass_context
    @wraps(command)
    def there_or_here(ctx: click.Context, cluster: str | None, insecure: bool, **given: Any) -> Any:
        if cluster is None:
            refuse_typed(ctx, "without --cluster", "insecure")
        if cluster is None or is_here(ctx):
            return ctx.invoke(command, **given)
        from cluster.remote import ask

        ask(
            open_cluster(ctx, cluster, insecure),
            remote_words(ctx),
            partial(say, nl=False, data=ctx.params.get("form") == "csv"),
        )

    return there_or_here


def is_here(ctx: click.Context) -> bool:
    """Whether --store names a file on this machine, as one that was fetched, and --cluster is only set in general."""
    source, typed = ctx.get_parameter_source("cluster"), click.core.ParameterSource.COMMANDLINE
    named = ctx.find_root().get_parameter_source("store") is typed
    return source is not typed and named and Path(str(ctx.obj).removeprefix("sqlite:///")).is_file()


def open_cluster(ctx: click.Context, url: str, insecure: bool) -> Any:
    from cluster.remote import Cluster

    # Not ROBUSTQ_STORE, which is this machine's; the head may have one of its own.
    named = ctx.find_root().get_parameter_source("store") is click.core.ParameterSource.COMMANDLINE
    return Cluster(url, insecure=insecure, store=ctx.obj if named else None)


@click.command()
@sweep_option
@click.option("--watch", is_flag=True, help="Show it again every second, until all jobs have ended.")
@json_option
@remotely
@click.pass_context
def status(ctx: click.Context, sweep: str | None, watch: bool, as_json: bool) -> None:
    """Count the jobs by state, and say what runs and what failed.

    \b
    robustq status --watch
    robustq status --sweep mine --json
    """
    from jobs import flow

    store = open_store(ctx)
    if watch:
        following(lambda: flow.status_text(store, sweep, as_json=as_json), lambda: flow.all_ended(store, sweep))
    else:
        say(flow.status_text(store, sweep, as_json=as_json))


@click.command()
@question_options
@click.option("--summary", is_flag=True, help="One line a model instead of one a result.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True, help="How to print.")
@spreadsheet_option
@json_option
@remotely
@click.pass_context
def results(ctx: click.Context, question: Any, summary: bool, form: str, spreadsheet: bool, as_json: bool) -> None:
    """Print the results: accuracies with their 95 % intervals, in percent; as fractions with --json and in CSV.

    \b
    robustq results --sweep mine --attack autoattack --eps 8/255
    robustq results --over-seeds --sort -robust_accuracy
    robustq results --group model,attack,eps --format latex
    robustq results --pivot --model 'b-*'
    robustq results --best robust_accuracy --where n>=1000
    robustq results --compare plain robust --attack pgd
    """
    from jobs import flow

    form, tell = form_of(ctx, form, as_json, spreadsheet), partial(say, err=True)
    text = flow.answer_text(open_store(ctx), question, form, summary=summary, tell=tell)
    say(text, data=form in CSV)


@click.command()
@click.argument("job_ids", nargs=-1, type=NUMBER)
@sweep_option
@remotely
@click.pass_context
def cancel(ctx: click.Context, job_ids: tuple[int, ...], sweep: str | None) -> None:
    """Cancel jobs by number, or all of a sweep but those that another sweep wants too.

    \b
    robustq cancel 17 18
    robustq cancel --sweep mine
    """
    from jobs import flow

    say(flow.cancel(open_store(ctx, write=True), job_ids, sweep))


@click.command()
@click.argument("job_ids", nargs=-1, type=NUMBER)
@sweep_option
@remotely
@click.pass_context
def retry(ctx: click.Context, job_ids: tuple[int, ...], sweep: str | None) -> None:
    """Queue failed and cancelled jobs again, by number or all of a sweep.

    \b
    robustq retry 17
    robustq retry --sweep mine
    """
    from jobs import flow

    say(f"{flow.retry(open_store(ctx, write=True), job_ids, sweep)} jobs queued again")


@click.command()
@click.option("--sweep", required=True, help="The latest sweep of this name.")
@remotely
@click.pass_context
def pause(ctx: click.Context, sweep: str) -> None:
    """Start no more jobs of a sweep; what runs goes on to its end. Drivers wait until it is resumed.

    \b
    robustq pause --sweep mine
    """
    from jobs import flow

    say(f"{flow.pause(open_store(ctx, write=True), sweep, paused=True)} jobs wait until the sweep is resumed")


@click.command()
@click.option("--sweep", required=True, help="The latest sweep of this name.")
@remotely
@click.pass_context
def resume(ctx: click.Context, sweep: str) -> None:
    """Go on with a sweep that was paused.

    \b
    robustq resume --sweep mine
    """
    from jobs import flow

    say(f"{flow.pause(open_store(ctx, write=True), sweep, paused=False)} jobs go on")


@click.command()
@click.argument("priority", type=PRIORITY)
@click.argument("job_ids", nargs=-1, type=NUMBER)
@sweep_option
@remotely
@click.pass_context
def prioritise(ctx: click.Context, priority: int, job_ids: tuple[int, ...], sweep: str | None) -> None:
    """Set the PRIORITY of jobs by number, or of all of a sweep: higher goes first, new jobs have 0.

    \b
    robustq prioritise 5 17 18
    robustq prioritise --sweep mine -- -1
    """
    from jobs import flow

    n = flow.prioritise(open_store(ctx, write=True), job_ids, sweep, priority)
    say(f"{n} jobs have priority {priority}")


@click.command()
@click.argument("job_id", type=NUMBER)
@click.option("--follow", "-f", is_flag=True, help="Show it again as it changes, until the job has ended.")
@json_option
@remotely
@click.pass_context
def logs(ctx: click.Context, job_id: int, follow: bool, as_json: bool) -> None:
    """All that is known of a job: spec, attempts with tracebacks, events, training history.

    \b
    robustq logs 17
    robustq logs 17 --follow
    """
    from jobs import flow

    store = open_store(ctx)
    if follow:
        following(lambda: flow.log_text(store, job_id, as_json=as_json), lambda: flow.has_ended(store, job_id))
    else:
        say(flow.log_text(store, job_id, as_json=as_json))


@click.command()
@click.argument("statement")
@click.option("--limit", type=click.IntRange(1), default=10_000, show_default=True, help="Most rows to print.")
@click.option("--seconds", type=Seconds(), default=10.0, show_default=True, help="Most time to take.")
@json_option
@remotely
@click.pass_context
def sql(ctx: click.Context, statement: str, limit: int, seconds: float, as_json: bool) -> None:
    """Ask the store with one SELECT of your own, which can change nothing.

    \b
    robustq sql "SELECT model, attack, eps, robust_accuracy FROM v_results ORDER BY robust_accuracy"
    """
    from jobs.sql import answer_text, ask

    answer = ask(ctx.obj, statement, limit=limit, seconds=seconds)
    say(answer_text(answer, as_json=as_json))
    if not answer.whole:
        say(f"the first {limit} rows; --limit prints more", err=True)


COMMANDS = (status, results, cancel, retry, pause, resume, prioritise, logs, sql)
