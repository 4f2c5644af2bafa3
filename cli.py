"""The command line: each command parses, calls one function, prints. Heavy imports wait until a command needs them."""

import gc
from functools import partial
from pathlib import Path
from typing import Any

import click

from robustlib import VERSION
from robustlib.arguments import RANGES
from robustq.cluster.remote.commands import COMMANDS as CLUSTER_COMMANDS
from robustq.cluster.remote.run_remotely import cluster_option, insecure_option, open_cluster, remotely
from robustq.jobs.commands.base import (
    PRIORITY,
    SEED,
    Budgeted,
    Commands,
    Counted,
    json_option,
    open_store,
    refuse_typed,
    remote_words,
    sweep_option,
)
from robustq.jobs.commands.files import COMMANDS as FILE_COMMANDS
from robustq.jobs.commands.list_names import list_names
from robustq.jobs.commands.options import dataset_options
from robustq.jobs.commands.queue import COMMANDS as QUEUE_COMMANDS
from robustq.jobs.commands.results import COMMANDS as RESULT_COMMANDS
from robustq.jobs.commands.store import COMMANDS as STORE_COMMANDS
from robustq.jobs.commands.verification import COMMANDS as VERIFICATION_COMMANDS
from robustq.jobs.errors import JobsFailed
from robustq.jobs.text.output_paths import Output
from robustq.jobs.text.safe_text import address, say

address_option = click.option("--address", help="Ray cluster to run on, auto for this machine's; default: none.")
priority_option = click.option("--priority", type=PRIORITY, default=0, show_default=True, help="Higher goes first.")
budget_option = click.option(
    "--budget",
    type=Budgeted(),
    help="Queue what is worth the most of what fits into 2h, 90m or 3600s; the rest stays out of the queue.",
)
cpus_option = click.option(
    "--cpus-per-job", type=click.IntRange(1, 4096), help="CPU threads a job; default: shared evenly."
)


def study_options(command: Any) -> Any:
    """What replaces entries of a study from the command line."""
    for option in (
        dataset_options,
        click.option("--examples", help="Test examples to attack, or all."),
        click.option("--epochs", type=Counted(RANGES["epochs"]), help="Epochs of every training."),
        click.option("--dataset", help="Data set, such as digits or parquet:PATH."),
        click.argument("study", type=click.Path(dir_okay=False, path_type=Path)),
    ):
        command = option(command)
    return command


def normalize_options(command: Any) -> Any:
    """How images are normalised before the model, as its first layer."""
    for option in (
        click.option("--std", metavar="NUMBERS", help="Standard deviations, as --mean."),
        click.option(
            "--mean", metavar="NUMBERS", help="Instead: means, by channel or one for all, on the scale [0, 1]."
        ),
        click.option("--normalize", metavar="NAME", help="Of the first layer: dataset, cifar10, cifar100 or imagenet."),
    ):
        command = option(command)
    return command


@click.group(cls=Commands)
@click.version_option(VERSION)
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

    \b
    Exit codes: 0 done; 1 some jobs failed, the run was interrupted, diff found a change or replay a difference;
    2 wrong usage or what you can mend, with one line that says how.
    """
    # Imports make objects that stay: looking for garbage among them costs a quick command a third of its time.
    gc.set_threshold(100_000, 50, 50)
    ctx.obj = store


@main.command()
@study_options
@click.option("--dry-run", is_flag=True, help="Only print what each job will cost on this machine.")
@priority_option
@budget_option
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
    budget: str | None,
    cpus_per_job: int | None,
    as_json: bool,
    address: str | None,
    insecure: bool,
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

    if address is None:
        refuse_typed(ctx, "without --address", "insecure")
    if dry_run:
        from robustq.jobs.submission.dry_run import dry_run as costs

        refuse_typed(ctx, "with --dry-run, which runs nothing", "priority", "cpus_per_job", "address", "insecure")

        say(costs(ctx.obj, study, changes, as_json=as_json, find_slots=slots_here, budget=make_budget(budget)))
        return
    within = make_budget(budget, cpus_per_job, on_cluster=address is not None)
    store, submitted = study_sources.submit_file(ctx.obj, study, changes, priority, within)
    say(submitted.line, err=True)
    where = {"cpus_per_job": cpus_per_job, "address": address, "insecure": insecure}
    finish(store, submitted.sweep_id, as_json, summary=True, **where)


def finish(store: Any, sweep_id: int, as_json: bool, summary: bool = False, **where: Any) -> None:
    """Drive a sweep to its end and print what came of it."""
    from robustq.cluster.driver.drive import drive_and_watch
    from robustq.jobs.commands import queue_actions, results_text

    drive_and_watch(store, sweep_id, **where)
    say(results_text.results_text(store, sweep_id, as_json=as_json, summary=summary))
    if summary and not as_json and (closing := results_text.closing_lines(store, sweep_id)):
        say(f"\n{closing}")
    queue_actions.raise_failures(store, sweep_id)


@main.command()
@study_options
@priority_option
@budget_option
@cluster_option
@insecure_option
@click.option("--dry-run", is_flag=True, help="With --cluster: only list what would be sent.")
@click.option(
    "--send", multiple=True, metavar="PATH", help="With --cluster: also send what git ignores or looks like a secret."
)
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

        say(study_sources.submit_file(ctx.obj, study, changes, priority, make_budget(budget))[1].line)
        return
    if dry_run:
        from robustq.cluster.remote.upload import upload_contents, upload_listing

        refuse_typed(ctx, "with --dry-run, which sends nothing", "priority", "budget", "insecure")
        say(upload_listing(upload_contents(study, send)))
        return
    from robustq.cluster.remote import ray_jobs_api
    from robustq.jobs.submission.study_sources import READING_NAMES

    options = remote_words(ctx, only=("examples", "epochs", "dataset", "priority", "budget", "choose", *READING_NAMES))[
        1:
    ]
    there, tell = open_cluster(ctx, cluster, insecure), partial(say, err=True)
    number, what = ray_jobs_api.submit_study(there, study, options, send, tell)
    say(f"{number} {what}; follow it with: robustq attach {number} --cluster {address(cluster)}")


@main.command()
@sweep_option
@cpus_option
@address_option
@insecure_option
@click.pass_context
def drive(ctx: click.Context, sweep: str | None, **where: Any) -> None:
    """Run the queue until it is empty, on this machine or on a Ray cluster.

    \b
    robustq drive
    robustq drive --sweep mine --address auto
    """
    from robustq.cluster.driver.drive import drive_and_watch
    from robustq.jobs.commands import queue_actions

    if where["address"] is None:
        refuse_typed(ctx, "without --address", "insecure")
    store = open_store(ctx, write=True)
    sweep_id = queue_actions.sweep_id(store, sweep)
    say(queue_actions.counts_text(drive_and_watch(store, sweep_id, **where)))
    queue_actions.raise_failures(store, sweep_id)


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


@main.command()
@click.argument("model")
@click.option("--weights", help="File of weights: safetensors or a state dict; FILE:KEY for one of several in it.")
@normalize_options
@click.option("--dataset", default="digits", show_default=True, help="Data set to attack on.")
@dataset_options
@click.option(
    "--attack", "attacks", multiple=True, default=["pgd"], show_default=True, help="May be given several times."
)
@click.option("--norm", help="Linf, L2 or L1; default: the attack's own.")
@click.option("--eps", multiple=True, help="Radius, such as 8/255; may be given several times.")
@click.option("--param", "params", multiple=True, help="A parameter of the attack, such as steps=20 or restarts=2.")
@click.option("--examples", default="1000", show_default=True, help="Test examples, the first of the file, or all.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--per-example", type=Output(replaced=True), help="Write one row an example here.")
@cpus_option
@json_option
@click.pass_context
def attack(
    ctx: click.Context, per_example: Path | None, cpus_per_job: int | None, as_json: bool, **options: Any
) -> None:
    """Attack one MODEL without a study: FILE.py:factory, package.module:factory, or an architecture with --weights.

    \b
    robustq attack my_model.py:build --dataset digits --attack pgd --eps 8/255
    robustq attack resnet18 --weights FILE --dataset cifar10 --attack autoattack --eps 8/255 --per-example out.parquet
    """
    from robustq.jobs.results import export
    from robustq.jobs.results.filters import Filters
    from robustq.jobs.submission import study_sources

    if per_example:
        export.check_ending(per_example)  # before anything runs
    store, submitted = study_sources.submit_attack(ctx.obj, options)
    finish(store, submitted.sweep_id, as_json, cpus_per_job=cpus_per_job)
    if per_example:
        with store.begin() as db:
            export.export(db, per_example, filters=Filters(submitted.sweep_id), per_example=True)


@main.command()
@click.argument("model")
@click.option("--weights", help="File of weights: safetensors or a state dict; FILE:KEY for one of several in it.")
@normalize_options
@click.option("--dataset", default="digits", show_default=True, help="Data set to attack on.")
@dataset_options
@click.option("--norm", default="Linf", show_default=True, help="Linf, L2 or L1.")
@click.option("--eps", required=True, help="Radius, such as 8/255.")
@click.option(
    "--queries", type=Counted(RANGES["queries"]), default=1000, show_default=True, help="Of attacks without gradients."
)
@click.option("--examples", default="200", show_default=True, help="Test examples, the first of the file, or all.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@cpus_option
@json_option
@click.pass_context
def audit(ctx: click.Context, cpus_per_job: int | None, as_json: bool, **options: Any) -> None:
    """Say whether a MODEL's robust accuracy deserves trust: what was tried, what breaks it, what to mend.

    \b
    robustq audit my_model.py:build --dataset digits --norm Linf --eps 8/255 --examples 200
    robustq audit resnet18 --weights FILE --dataset cifar10 --eps 8/255 --json

    Exits 0 whatever the verdict: --json has it as `verdict`: pass, warn or fail.
    """
    from robustq.cluster.driver.drive import drive_and_watch
    from robustq.jobs.commands import audit_text, queue_actions
    from robustq.jobs.results import audits
    from robustq.jobs.submission import study_sources
    from robustq.jobs.text import tables

    store, submitted = study_sources.submit_audit(ctx.obj, options)
    drive_and_watch(store, submitted.sweep_id, cpus_per_job=cpus_per_job)
    queue_actions.raise_failures(store, submitted.sweep_id)
    with store.begin() as db:
        found = audits.audit_of(db, submitted.sweep_id)
    say(tables.json_text(found) if as_json else audit_text.audit_page(found))


@main.command()
@click.argument("model")
@normalize_options
@click.option("--dataset", default="digits", show_default=True, help="Data set to train and test on.")
@dataset_options
@click.option("--objective", default="standard", show_default=True, help="See `robustq list objectives`.")
@click.option(
    "--param", "params", multiple=True, help="A setting or attack parameter, such as eps=8/255 or optimizer=adam."
)
@click.option("--epochs", type=Counted(RANGES["epochs"]), default=10, show_default=True)
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--out", type=Output(), help="Write the weights here, as safetensors.")
@cpus_option
@json_option
@click.pass_context
def train(ctx: click.Context, out: Path | None, cpus_per_job: int | None, as_json: bool, **options: Any) -> None:
    """Train one MODEL without a study and print its clean test accuracy.

    \b
    robustq train convnet3 --objective pgd --param eps=8/255 --epochs 10 --out robust.safetensors
    """
    from robustq.jobs.commands import queue_actions
    from robustq.jobs.submission import study_sources

    store, submitted = study_sources.submit_training(ctx.obj, options)
    finish(store, submitted.sweep_id, as_json, cpus_per_job=cpus_per_job)
    if out:
        queue_actions.write_weights(store, submitted.sweep_id, out)


for command in (*QUEUE_COMMANDS, *RESULT_COMMANDS):
    main.add_command(remotely(command))
for command in (*FILE_COMMANDS, *STORE_COMMANDS, *VERIFICATION_COMMANDS, *CLUSTER_COMMANDS, list_names):
    main.add_command(command)


if __name__ == "__main__":
    main()
