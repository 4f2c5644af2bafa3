"""Commands that run a study or what is queued: here, on a Ray cluster, or sent to one."""

from functools import partial
from pathlib import Path
from typing import Any

import click

from robustq.cluster.commands.options import (
    address_option,
    budget_option,
    cpus_option,
    device_option,
    on_end_option,
    priority_option,
    study_options,
)
from robustq.cluster.commands.sweep_run import choose_device, finish
from robustq.cluster.remote.run_remotely import cluster_option, insecure_option, open_cluster
from robustq.jobs.commands.base import emit, json_option, open_store, refuse_typed, remote_words, sweep_option
from robustq.jobs.text.notes import note
from robustq.jobs.text.safe_text import address, say


@click.command()
@study_options
@click.option("--dry-run", is_flag=True, help="Only print what each job will cost on this machine.")
@priority_option
@budget_option
@address_option
@insecure_option
@device_option
@cpus_option
@on_end_option
@json_option
@click.pass_context
def run(
    ctx: click.Context,
    study: Path,
    dry_run: bool,
    priority: int,
    budget: str | None,
    cpus_per_job: int | None,
    as_json: bool,
    address: str | None,
    insecure: bool,
    device: str | None,
    on_end: str | None,
    **changes: Any,
) -> None:
    """Submit a study, run it here or on a cluster and print its results. What is done already is not done again.

    \b
    robustq run study.yaml
    robustq run study.yaml --dry-run
    robustq run study.yaml --examples 100 --dataset parquet:PATH --json
    robustq run study.yaml --budget 2h

    With --budget clean evaluations come first, then one attack on every model, then the rest, as far as they are
    expected to fit into so much time on this machine; with --address, so many hours of all its slots together. What is
    left out stays in the sweep; the same command without --budget queues it.
    """
    from robustq.cluster.study_slots import make_budget, slots_here
    from robustq.jobs.submission import study_sources

    choose_device(ctx, device, address)
    if dry_run:
        from robustq.jobs.submission.dry_run import dry_run as costs

        typed = ("priority", "cpus_per_job", "address", "insecure", "on_end")
        refuse_typed(ctx, "with --dry-run, which runs nothing", *typed)

        say(costs(ctx.obj, study, changes, as_json=as_json, find_slots=slots_here, budget=make_budget(budget)))
        return
    within = make_budget(budget, cpus_per_job, on_cluster=address is not None)
    store, submitted = study_sources.submit_file(ctx.obj, study, changes, priority, within)
    note(submitted.line)
    where = {"cpus_per_job": cpus_per_job, "address": address, "insecure": insecure}
    finish(store, submitted.sweep_id, as_json, summary=True, on_end=on_end, **where)


@click.command()
@study_options
@priority_option
@budget_option
@cluster_option
@insecure_option
@click.option("--dry-run", is_flag=True, help="With --cluster: only list what would be sent.")
@click.option(
    "--send", multiple=True, metavar="PATH", help="With --cluster: also send what git ignores or looks like a secret."
)
@json_option
@click.pass_context
def submit(
    ctx: click.Context,
    study: Path,
    priority: int,
    budget: str | None,
    cluster: str | None,
    insecure: bool,
    dry_run: bool,
    send: tuple[str, ...],
    as_json: bool,
    **changes: Any,
) -> None:
    """Queue a study's jobs; `robustq drive` runs them. Submitting twice queues nothing twice.

    \b
    robustq submit study.yaml                              into the store, for drivers that come later
    robustq submit study.yaml --cluster http://HEAD:8265   to a cluster, where it runs at once

    With --cluster the study goes there with its folder, and a driver on the head runs it to its end, also while this
    machine is off; --store is then a store there. Of the folder goes what git knows and does not ignore; links out of
    it do not, and names that look like secrets are refused.
    """
    if cluster is None:
        from robustq.cluster.study_slots import make_budget
        from robustq.jobs.submission import study_sources

        refuse_typed(ctx, "without --cluster", "insecure", "dry_run", "send")

        found = study_sources.submit_file(ctx.obj, study, changes, priority, make_budget(budget))[1]
        told = {"sweep": found.name, "jobs": found.jobs, "new": found.new, "left_out": found.out}
        emit(told, found.line, as_json)
        return
    if dry_run:
        from robustq.cluster.remote.upload import upload_contents, upload_listing

        refuse_typed(ctx, "with --dry-run, which sends nothing", "priority", "budget", "insecure", "as_json")
        say(upload_listing(upload_contents(study, send)))
        return
    from robustq.cluster.remote import ray_jobs_api
    from robustq.jobs.submission.study_sources import READING_NAMES

    options = remote_words(ctx, only=("examples", "epochs", "dataset", "priority", "budget", "choose", *READING_NAMES))[
        1:
    ]
    there, tell = open_cluster(ctx, cluster, insecure), note
    number, what = ray_jobs_api.submit_study(there, study, options, send, tell)
    follow = f"{number} {what}; follow it with: robustq attach {number} --cluster {address(cluster)}"
    emit({"number": number, "what": what, "cluster": address(cluster)}, follow, as_json)


@click.command()
@sweep_option
@cpus_option
@address_option
@insecure_option
@device_option
@on_end_option
@json_option
@click.pass_context
def drive(
    ctx: click.Context, sweep: str | None, device: str | None, on_end: str | None, as_json: bool, **where: Any
) -> None:
    """Run the queue until it is empty, on this machine or on a Ray cluster.

    \b
    robustq drive
    robustq drive --sweep mine --address auto

    Of several versions of a study --sweep takes the latest; a line says where an earlier one has jobs left.
    """
    from robustq.cluster.driver.drive import drive_and_watch
    from robustq.jobs.commands import queue_actions
    from robustq.jobs.queue.end_hook import told_at_the_end

    choose_device(ctx, device, where["address"])
    store = open_store(ctx, write=True)
    sweep_id = queue_actions.sweep_id(store, sweep)
    if earlier := queue_actions.earlier_words(store, sweep_id):
        note(earlier)
    with told_at_the_end(on_end, store, sweep_id, partial(say, err=True)):
        found = drive_and_watch(store, sweep_id, as_json=as_json, **where)
    emit(found, queue_actions.counts_text(found), as_json)
    queue_actions.raise_failures(store, sweep_id)


COMMANDS = (run, submit, drive)
