"""The command line: each command parses, calls one function, prints. Heavy imports wait until a command needs them."""

import gc
from functools import wraps
from pathlib import Path
from typing import Any

import click

from jobs.console import Commands, following, remote_words
from jobs.errors import JobsFailed

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout and nothing else there.")
sweep_option = click.option("--sweep", help="Only the latest sweep of this name.")
priority_option = click.option("--priority", type=int, default=0, show_default=True, help="Higher goes first.")
cpus_option = click.option("--cpus-per-job", type=click.IntRange(1), help="CPU threads a job; default: shared evenly.")


address_option = click.option("--address", help="Ray cluster to run on, auto for this machine's; default: none.")
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
            return ctx.invoke(command, **given)
        from cluster.remote import ask

        click.echo(ask(open_cluster(ctx, cluster, insecure), remote_words(ctx)), nl=False)

    return there_or_here


def open_cluster(ctx: click.Context, url: str, insecure: bool) -> Any:
    from cluster.remote import Cluster

    source = ctx.find_root().get_parameter_source("store")
    named = source is not click.core.ParameterSource.DEFAULT
    return Cluster(url, insecure=insecure, store=ctx.obj if named else None)


def study_options(command: Any) -> Any:
    """What replaces entries of a study from the command line."""
    for option in (
        click.option("--examples", help="Test examples to attack, or all."),
        click.option("--epochs", type=click.IntRange(1), help="Epochs of every training."),
        click.option("--dataset", help="Data set, such as digits or parquet:PATH."),
        click.argument("study", type=click.Path(dir_okay=False, path_type=Path)),
    ):
        command = option(command)
    return command


def open_store(ctx: click.Context, **how: bool) -> Any:
    from jobs.engine import open_store

    return open_store(ctx.obj, **how)


@click.group(cls=Commands)
@click.version_option(package_name="robustq")
@click.option(
    "--store",
    envvar="ROBUSTQ_STORE",
    default="sqlite:///.robustq/results.db",
    show_default=True,
    help="Database URL or SQLite file.",
)
@click.pass_context
def main(ctx: click.Context, store: str) -> None:
    """How robust are these networks, and which defence helps?

    \b
    robustq run studies/quickstart.yaml       train, attack and report on this machine
    robustq attack my_model.py:build          attack one model of your own
    robustq results                           what came of it
    """
    # Imports make objects that stay: looking for garbage among them costs a quick command a third of its time.
    gc.set_threshold(100_000, 50, 50)
    ctx.obj = store


@main.command()
@study_options
@click.option("--dry-run", is_flag=True, help="Only print what each job will cost on this machine.")
@priority_option
@address_option
@insecure_option
@cpus_option
@json_option
@click.pass_context
def run(
    ctx: click.Context,
    study: Path,
    dry_run: bool,
    priority: int,
    cpus_per_job: int | None,
    as_json: bool,
    address: str | None,
    insecure: bool,
    **changes: Any,
) -> None:
    """Submit a study, run it here or on a cluster and print its results. What is done already is not done again."""
    from jobs import ask

    if dry_run:
        from jobs import estimate

        click.echo(estimate.dry_run(ctx.obj, study, changes, as_json=as_json))
        return
    store, submitted = ask.submit_file(ctx.obj, study, changes, priority)
    click.echo(submitted.line, err=True)
    where = {"cpus_per_job": cpus_per_job, "address": address, "insecure": insecure}
    finish(store, submitted.sweep_id, as_json, summary=True, **where)


def finish(store: Any, sweep_id: int, as_json: bool, summary: bool = False, **where: Any) -> None:
    """Drive a sweep to its end and print what came of it."""
    from cluster.drive import drive_and_watch
    from jobs import flow

    drive_and_watch(store, sweep_id, **where)
    click.echo(flow.results_text(store, sweep_id, as_json=as_json, summary=summary))
    flow.raise_failures(store, sweep_id)


@main.command()
@study_options
@priority_option
@cluster_option
@insecure_option
@click.pass_context
def submit(ctx: click.Context, study: Path, priority: int, cluster: str | None, insecure: bool, **changes: Any) -> None:
    """Queue a study's jobs; `robustq drive` runs them. Submitting twice queues nothing twice.

    \b
    robustq submit study.yaml                              into the store, for drivers that come later
    robustq submit study.yaml --cluster http://HEAD:8265   to a cluster, where it runs at once

    With --cluster the study goes there with its folder, and a driver on the head runs it to its end, also while this
    machine is off; --store is then a store there.
    """
    if cluster is None:
        from jobs import ask

        click.echo(ask.submit_file(ctx.obj, study, changes, priority)[1].line)
        return
    from cluster import remote

    options = remote_words(ctx, only=("examples", "epochs", "dataset", "priority"))[1:]
    number, what = remote.submit_study(open_cluster(ctx, cluster, insecure), study, options)
    click.echo(f"{number} {what}; follow it with: robustq attach {number} --cluster {cluster}")


@main.command()
@click.argument("name", required=False)
@cluster_option
@insecure_option
@click.pass_context
def attach(ctx: click.Context, name: str | None, cluster: str | None, insecure: bool) -> None:
    """Follow a study on a cluster to its end: the latest, or by NAME or number. Ctrl-C leaves it running."""
    from cluster import remote

    there = open_cluster(ctx, required(cluster), insecure)
    remote.attach(there, name, lambda text: click.echo(text, nl=False))


@main.command()
@click.argument("name", required=False)
@cluster_option
@insecure_option
@click.pass_context
def stop(ctx: click.Context, name: str | None, cluster: str | None, insecure: bool) -> None:
    """End the driver of a study on a cluster: its jobs go back to the queue. Submitting it again goes on."""
    from cluster import remote

    click.echo(f"{remote.stop(open_cluster(ctx, required(cluster), insecure), name)} stopped")


@main.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("results.db"), show_default=True)
@click.option("--artifacts", is_flag=True, help="With the weights and images that jobs left behind.")
@cluster_option
@insecure_option
@click.pass_context
def fetch(ctx: click.Context, out: Path, artifacts: bool, cluster: str | None, insecure: bool) -> None:
    """Copy the store from a cluster's head, as it is now, to a file here: `robustq --store FILE results` reads it."""
    from cluster.remote import ask
    from jobs.snapshot import unpack

    words = ["db", "snapshot", *(["--artifacts"] if artifacts else [])]
    written = unpack(ask(open_cluster(ctx, required(cluster), insecure), words), out)
    click.echo(f"{out}, with {len(written) - 1} artifacts", err=True)


def required(cluster: str | None) -> str:
    if cluster is None:
        raise click.UsageError("expected --cluster URL or ROBUSTQ_CLUSTER, got neither")
    return cluster


@main.command()
@sweep_option
@cpus_option
@address_option
@insecure_option
@click.pass_context
def drive(ctx: click.Context, sweep: str | None, **where: Any) -> None:
    """Run the queue until it is empty, on this machine or on a Ray cluster."""
    from cluster.drive import drive_and_watch
    from jobs import flow

    store = open_store(ctx, write=True)
    sweep_id = flow.sweep_id(store, sweep)
    click.echo(flow.counts_text(drive_and_watch(store, sweep_id, **where)))
    flow.raise_failures(store, sweep_id)


@main.command()
@sweep_option
@click.option("--watch", is_flag=True, help="Show it again every second, until all jobs have ended.")
@json_option
@remotely
@click.pass_context
def status(ctx: click.Context, sweep: str | None, watch: bool, as_json: bool) -> None:
    """Count the jobs by state, and say what runs and what failed."""
    from jobs import flow

    store = open_store(ctx)
    if watch:
        following(lambda: flow.status_text(store, sweep, as_json=as_json), lambda: flow.all_ended(store, sweep))
    else:
        click.echo(flow.status_text(store, sweep, as_json=as_json))


@main.command()
@sweep_option
@click.option("--summary", is_flag=True, help="One line a model instead of one a result.")
@json_option
@remotely
@click.pass_context
def results(ctx: click.Context, sweep: str | None, summary: bool, as_json: bool) -> None:
    """Print the results: accuracies with their 95 % intervals, in percent; as fractions with --json."""
    from jobs import flow

    store = open_store(ctx)
    click.echo(flow.results_text(store, flow.sweep_id(store, sweep), as_json=as_json, summary=summary))


@main.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@sweep_option
@click.option("--per-example", is_flag=True, help="One row an example instead of one a result.")
@click.pass_context
def export(ctx: click.Context, path: Path, sweep: str | None, per_example: bool) -> None:
    """Write the results to PATH: .arrow (IPC), .parquet or .csv. docs/schema.md describes the columns."""
    from jobs import export, flow

    store = open_store(ctx)
    with store.begin() as db:
        rows = export.export(db, path, sweep_id=flow.sweep_id(store, sweep), per_example=per_example)
    click.echo(f"{rows} rows in {path}", err=True)


@main.command()
@click.option("--sweep", required=True, help="The sweep to report on; the latest of this name.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("report/report.html"), show_default=True
)
@click.option(
    "--figures", type=click.Path(file_okay=False, path_type=Path), help="Folder for the pictures as PNG files too."
)
@click.pass_context
def report(ctx: click.Context, sweep: str, out: Path, figures: Path | None) -> None:
    """Write one self-contained HTML file: tables, eps curves, confusion matrices, pictures."""
    from jobs.report import write_report

    for path in write_report(open_store(ctx), sweep, out, figures):
        click.echo(f"wrote {path}", err=True)


@main.command()
@click.argument("job_ids", nargs=-1, type=int)
@sweep_option
@remotely
@click.pass_context
def cancel(ctx: click.Context, job_ids: tuple[int, ...], sweep: str | None) -> None:
    """Cancel jobs by number, or all of a sweep."""
    from jobs import flow

    click.echo(f"{flow.cancel(open_store(ctx, write=True), job_ids, sweep)} jobs cancelled")


@main.command()
@click.argument("job_ids", nargs=-1, type=int)
@sweep_option
@remotely
@click.pass_context
def retry(ctx: click.Context, job_ids: tuple[int, ...], sweep: str | None) -> None:
    """Queue failed and cancelled jobs again, by number or all of a sweep."""
    from jobs import flow

    click.echo(f"{flow.retry(open_store(ctx, write=True), job_ids, sweep)} jobs queued again")


@main.command()
@click.option("--sweep", required=True, help="The latest sweep of this name.")
@remotely
@click.pass_context
def pause(ctx: click.Context, sweep: str) -> None:
    """Start no more jobs of a sweep; what runs goes on to its end. Drivers wait until it is resumed."""
    from jobs import flow

    click.echo(f"{flow.pause(open_store(ctx, write=True), sweep, paused=True)} jobs wait until the sweep is resumed")


@main.command()
@click.option("--sweep", required=True, help="The latest sweep of this name.")
@remotely
@click.pass_context
def resume(ctx: click.Context, sweep: str) -> None:
    """Go on with a sweep that was paused."""
    from jobs import flow

    click.echo(f"{flow.pause(open_store(ctx, write=True), sweep, paused=False)} jobs go on")


@main.command()
@click.argument("priority", type=int)
@click.argument("job_ids", nargs=-1, type=int)
@sweep_option
@remotely
@click.pass_context
def prioritise(ctx: click.Context, priority: int, job_ids: tuple[int, ...], sweep: str | None) -> None:
    """Set the PRIORITY of jobs by number, or of all of a sweep: higher goes first, new jobs have 0."""
    from jobs import flow

    n = flow.prioritise(open_store(ctx, write=True), job_ids, sweep, priority)
    click.echo(f"{n} jobs have priority {priority}")


@main.command()
@click.argument("job_id", type=int)
@click.option("--follow", "-f", is_flag=True, help="Show it again as it changes, until the job has ended.")
@json_option
@remotely
@click.pass_context
def logs(ctx: click.Context, job_id: int, follow: bool, as_json: bool) -> None:
    """All that is known of a job: spec, attempts with tracebacks, events, training history."""
    from jobs import flow

    store = open_store(ctx)
    if follow:
        following(lambda: flow.log_text(store, job_id, as_json=as_json), lambda: flow.has_ended(store, job_id))
    else:
        click.echo(flow.log_text(store, job_id, as_json=as_json))


@main.command(name="list")
@click.argument("kind", type=click.Choice(["models", "attacks", "datasets", "objectives"]))
@click.option("--torchvision", is_flag=True, help="With models: torchvision's too.")
@json_option
def list_names(kind: str, torchvision: bool, as_json: bool) -> None:
    """Print the names that studies may use, with their parameters."""
    from jobs.names import names_text

    click.echo(names_text(kind, torchvision=torchvision, as_json=as_json))


@main.command()
@click.argument("statement")
@click.option("--limit", type=click.IntRange(1), default=10_000, show_default=True, help="Most rows to print.")
@click.option("--seconds", type=click.FloatRange(min=0), default=10.0, show_default=True, help="Most time to take.")
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
    click.echo(answer_text(answer, as_json=as_json))
    if not answer.whole:
        click.echo(f"the first {limit} rows; --limit prints more", err=True)


@main.group()
def db() -> None:
    """Look after the store itself."""


@db.command(name="upgrade")
@click.pass_context
def db_upgrade(ctx: click.Context) -> None:
    """Bring a store of an older schema to this one, keeping a copy of an SQLite file."""
    from jobs.upgrade import upgrade

    click.echo(upgrade(ctx.obj))


@db.command(name="info")
@json_option
@click.pass_context
def db_info(ctx: click.Context, as_json: bool) -> None:
    """Say which schema the store has, and what is in it."""
    from jobs import show, upgrade

    found = upgrade.info(ctx.obj)
    click.echo(show.json_text(found) if as_json else show.table([found]))


@db.command(name="snapshot")
@click.option("--artifacts", is_flag=True, help="With the weights and images that jobs left behind.")
@click.pass_context
def db_snapshot(ctx: click.Context, artifacts: bool) -> None:
    """Print a copy of an SQLite store as text, which `robustq fetch` reads."""
    from jobs.snapshot import snapshot_text

    click.echo(snapshot_text(ctx.obj, artifacts=artifacts))


@main.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check this machine: versions, GPUs, Ray, the store, the cache."""
    from cluster.doctor import examine

    text, healthy = examine(ctx.obj, as_json=as_json)
    click.echo(text)
    if not healthy:
        raise JobsFailed("something is wrong: see above")


@main.command()
@click.argument("model")
@click.option("--weights", help="File of weights: safetensors or a state dict.")
@click.option("--dataset", default="digits", show_default=True, help="Data set to attack on.")
@click.option(
    "--attack", "attacks", multiple=True, default=["pgd"], show_default=True, help="May be given several times."
)
@click.option("--norm", help="Linf, L2 or L1; default: the attack's own.")
@click.option("--eps", multiple=True, help="Radius, such as 8/255; may be given several times.")
@click.option("--param", "params", multiple=True, help="A parameter of the attack, such as steps=20 or restarts=2.")
@click.option("--examples", default="1000", show_default=True, help="Test examples, the first of the file, or all.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--per-example", type=click.Path(dir_okay=False, path_type=Path), help="Write one row an example here.")
@cpus_option
@json_option
@click.pass_context
def attack(
    ctx: click.Context, per_example: Path | None, cpus_per_job: int | None, as_json: bool, **options: Any
) -> None:
    """Attack one MODEL without a study: FILE.py:factory, package.module:factory, or an architecture with --weights."""
    from jobs import ask, export

    store, submitted = ask.submit_attack(ctx.obj, options)
    finish(store, submitted.sweep_id, as_json, cpus_per_job=cpus_per_job)
    if per_example:
        with store.begin() as db:
            export.export(db, per_example, sweep_id=submitted.sweep_id, per_example=True)


@main.command()
@click.argument("model")
@click.option("--dataset", default="digits", show_default=True, help="Data set to train and test on.")
@click.option("--objective", default="standard", show_default=True, help="See `robustq list objectives`.")
@click.option(
    "--param", "params", multiple=True, help="A setting or attack parameter, such as eps=8/255 or optimizer=adam."
)
@click.option("--epochs", type=click.IntRange(1), default=10, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the weights here, as safetensors.")
@cpus_option
@json_option
@click.pass_context
def train(ctx: click.Context, out: Path | None, cpus_per_job: int | None, as_json: bool, **options: Any) -> None:
    """Train one MODEL without a study and print its clean test accuracy."""
    from jobs import ask, flow

    store, submitted = ask.submit_training(ctx.obj, options)
    finish(store, submitted.sweep_id, as_json, cpus_per_job=cpus_per_job)
    if out:
        flow.write_weights(store, submitted.sweep_id, out)


if __name__ == "__main__":
    main()
