"""The command line: each command parses, calls one function, prints. Heavy imports wait until a command needs them."""

import atexit
import gc
import logging
from functools import partial
from pathlib import Path
from typing import Any

import click

from robustlib import VERSION
from robustlib.arguments import RANGES
from robustq.cluster.remote.commands import COMMANDS as CLUSTER_COMMANDS
from robustq.cluster.remote.run_remotely import cluster_option, insecure_option, open_cluster, remotely
from robustq.cluster.serving.option import on_ray
from robustq.jobs.commands.base import (
    IS_GONE,
    PRIORITY,
    SEED,
    Budgeted,
    Choice,
    Commands,
    Counted,
    emit,
    json_option,
    open_store,
    refuse_typed,
    remote_words,
    sweep_option,
)
from robustq.jobs.commands.deployment.packages import COMMANDS as PACKAGE_COMMANDS
from robustq.jobs.commands.deployment.serving import COMMANDS as SERVING_COMMANDS
from robustq.jobs.commands.files import COMMANDS as FILE_COMMANDS
from robustq.jobs.commands.list_names import COMMANDS as NAME_COMMANDS
from robustq.jobs.commands.options import dataset_options, normalize_options
from robustq.jobs.commands.queue import COMMANDS as QUEUE_COMMANDS
from robustq.jobs.commands.results import COMMANDS as RESULT_COMMANDS
from robustq.jobs.commands.shell import completion
from robustq.jobs.commands.store import COMMANDS as STORE_COMMANDS
from robustq.jobs.commands.verification import COMMANDS as VERIFICATION_COMMANDS
from robustq.jobs.errors import JobsFailed, SpecError
from robustq.jobs.text.notes import note, set_level
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
        click.option("--dataset", shell_complete=completion.DATASETS, help="Data set, such as digits or parquet:PATH."),
        click.argument("study", type=click.Path(dir_okay=False, path_type=Path)),
    ):
        command = option(command)
    return command


device_option = click.option(
    "--device", type=Choice(["cpu", "cuda"]), help="Compute on this; default: GPUs where there are some."
)


on_end_option = click.option(
    "--on-end", metavar="CMD", help="Run this when the sweep ends or fails; ROBUSTQ_STATUS and others tell it how."
)


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


def choose_device(ctx: click.Context, device: str | None, address: str | None = None) -> None:
    """Compute on this device; on a cluster its nodes decide."""
    if address is None:
        refuse_typed(ctx, "without --address", "insecure")
    else:
        refuse_typed(ctx, "with --address: a cluster computes on what its nodes have", "device")
    if device is not None:
        from robustq.cluster.device import use_device

        use_device(device)


def finish(
    store: Any, sweep_id: int, as_json: bool, summary: bool = False, on_end: str | None = None, **where: Any
) -> None:
    """Drive a sweep to its end and print what came of it."""
    from robustq.cluster.driver.drive import drive_and_watch
    from robustq.jobs.commands import queue_actions, results_text
    from robustq.jobs.queue.end_hook import told_at_the_end

    with told_at_the_end(on_end, store, sweep_id, partial(say, err=True)):
        drive_and_watch(store, sweep_id, as_json=as_json, **where)
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


@main.command()
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
@click.argument("model", shell_complete=completion.MODEL)
@click.option("--weights", help="File of weights: safetensors or a state dict; FILE:KEY for one of several in it.")
@normalize_options
@click.option(
    "--dataset", shell_complete=completion.DATASETS, default="digits", show_default=True, help="Data set to attack on."
)
@dataset_options
@click.option(
    "--attack",
    "attacks",
    shell_complete=completion.ATTACKS,
    multiple=True,
    default=["pgd"],
    show_default=True,
    help="May be given several times.",
)
@click.option("--norm", shell_complete=completion.NORM, help="Linf, L2 or L1; default: the attack's own.")
@click.option("--eps", multiple=True, help="Radius, such as 8/255; may be given several times.")
@click.option("--param", "params", multiple=True, help="A parameter of the attack, such as steps=20 or restarts=2.")
@click.option("--examples", default="1000", show_default=True, help="Test examples, the first of the file, or all.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--per-example", type=Output(replaced=True), help="Write one row an example here.")
@device_option
@cpus_option
@json_option
@click.pass_context
def attack(
    ctx: click.Context,
    per_example: Path | None,
    device: str | None,
    cpus_per_job: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Attack one MODEL without a study: FILE.py:factory, package.module:factory, an architecture with --weights,
    FILE.onnx, or a package of `robustq package`.

    \b
    robustq attack my_model.py:build --dataset digits --attack pgd --eps 8/255
    robustq attack robust.zip --attack autoattack --eps 0.1
    robustq attack resnet18 --weights FILE --dataset cifar10 --attack autoattack --eps 8/255 --per-example out.parquet
    """
    from robustq.cluster.early_child import early_child

    choose_device(ctx, device)
    is_one = len(options["attacks"]) == 1 and len(options["eps"]) <= 1
    with early_child(cpus_per_job, is_one=is_one) as early:
        from robustq.jobs.submission import study_sources

        if per_example:
            from robustq.jobs.results import export

            export.check_ending(per_example)  # before anything runs
        store, submitted = study_sources.submit_attack(ctx.obj, options, early.load)
        finish(store, submitted.sweep_id, as_json, cpus_per_job=cpus_per_job, early=early)
    if per_example:
        from robustq.jobs.results import export
        from robustq.jobs.results.filters import Filters

        with store.begin() as db:
            export.export(db, per_example, filters=Filters(submitted.sweep_id), per_example=True)


@main.command()
@click.argument("model", shell_complete=completion.MODEL)
@click.option("--weights", help="File of weights: safetensors or a state dict; FILE:KEY for one of several in it.")
@normalize_options
@click.option(
    "--dataset", shell_complete=completion.DATASETS, default="digits", show_default=True, help="Data set to attack on."
)
@dataset_options
@click.option("--norm", shell_complete=completion.NORM, default="Linf", show_default=True, help="Linf, L2 or L1.")
@click.option("--eps", required=True, help="Radius, such as 8/255.")
@click.option(
    "--queries", type=Counted(RANGES["queries"]), default=1000, show_default=True, help="Of attacks without gradients."
)
@click.option("--examples", default="200", show_default=True, help="Test examples, the first of the file, or all.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--out", type=Output(), help="Write the page here too, as one HTML file that looks like the report.")
@device_option
@cpus_option
@json_option
@click.pass_context
def audit(
    ctx: click.Context, out: Path | None, device: str | None, cpus_per_job: int | None, as_json: bool, **options: Any
) -> None:
    """Say whether a MODEL's robust accuracy deserves trust: what was tried, what breaks it, what to mend.

    \b
    robustq audit my_model.py:build --dataset digits --norm Linf --eps 8/255 --examples 200
    robustq audit resnet18 --weights FILE --dataset cifar10 --eps 8/255 --json
    robustq audit my_model.py:build --eps 8/255 --out audit.html

    Exits 0 whatever the verdict: --json has it as `verdict`: pass, warn or fail.
    """
    from robustq.cluster.early_child import early_child

    choose_device(ctx, device)
    with early_child(cpus_per_job) as early:
        from robustq.cluster.driver.drive import drive_and_watch
        from robustq.jobs.submission import study_sources

        store, submitted = study_sources.submit_audit(ctx.obj, options, early.load)
        drive_and_watch(store, submitted.sweep_id, as_json=as_json, cpus_per_job=cpus_per_job, early=early)

    from robustq.jobs.commands import audit_text, queue_actions
    from robustq.jobs.results import audits
    from robustq.jobs.text import tables

    queue_actions.raise_failures(store, submitted.sweep_id)
    with store.begin() as db:
        found = audits.audit_of(db, submitted.sweep_id)
    if out is not None:
        from robustq.jobs.report.audit_page import audit_html

        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(audit_html(found, store.url), encoding="utf-8")
        note(f"wrote {out}")
    say(tables.json_text(found) if as_json else audit_text.audit_page(found))


@main.command()
@click.argument("model", shell_complete=completion.MODEL)
@click.option("--weights", help="File of weights: safetensors or a state dict; FILE:KEY for one of several in it.")
@normalize_options
@click.option(
    "--dataset", shell_complete=completion.DATASETS, default="digits", show_default=True, help="Data set to explain on."
)
@dataset_options
@click.option(
    "--method",
    "methods",
    shell_complete=completion.EXPLANATIONS,
    multiple=True,
    default=["integrated-gradients"],
    show_default=True,
    help="Explanation; may be given several times.",
)
@click.option("--param", "params", multiple=True, help="A parameter of the explanation, such as steps=20.")
@click.option(
    "--against",
    multiple=True,
    default=["noise", "pgd", "explanation-attack"],
    show_default=True,
    help="What is done to the images: noise, an attack by its name, or explanation-attack, which keeps the class.",
)
@click.option("--norm", shell_complete=completion.NORM, default="Linf", show_default=True, help="Linf, L2 or L1.")
@click.option("--eps", default="8/255", show_default=True, help="Radius, such as 8/255.")
@click.option("--examples", default="100", show_default=True, help="Test examples, the first of the file, or all.")
@click.option("--images", type=click.IntRange(0, 8), default=6, show_default=True, help="Whose maps are shown.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--out", type=Output(), help="Write the page here, as one HTML file with the maps.")
@device_option
@cpus_option
@json_option
@click.pass_context
def explain(
    ctx: click.Context, out: Path | None, device: str | None, cpus_per_job: int | None, as_json: bool, **options: Any
) -> None:
    """Say what attacks do to a MODEL's explanations, with noise of the same size beside them.

    \b
    robustq explain my_model.py:build --dataset digits --eps 0.1 --out page.html
    robustq explain convnet3 --weights FILE --dataset cifar10 --method saliency --method grad-cam --json

    Each map is compared with the clean image's. An explanation that does not depend on the weights, or orders pixels no
    better than chance, is marked.
    """
    from robustq.cluster.early_child import early_child

    choose_device(ctx, device)
    with early_child(cpus_per_job) as early:
        from robustq.cluster.driver.drive import drive_and_watch
        from robustq.jobs.submission import study_sources

        store, submitted = study_sources.submit_explanation(ctx.obj, options, early.load)
        drive_and_watch(store, submitted.sweep_id, as_json=as_json, cpus_per_job=cpus_per_job, early=early)

    from robustq.jobs.commands import explanations_text, queue_actions

    queue_actions.raise_failures(store, submitted.sweep_id)
    if out is not None:
        from robustq.jobs.report.explain_page import explain_html

        with store.begin() as db:
            html = explain_html(db, store.artifacts, submitted.sweep_id, store.url)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(html, encoding="utf-8")
        note(f"wrote {out}")
    say(explanations_text.of_sweep(store, submitted.sweep_id, as_json=as_json))


@main.command()
@click.argument("model", shell_complete=completion.MODEL)
@normalize_options
@click.option(
    "--dataset",
    shell_complete=completion.DATASETS,
    default="digits",
    show_default=True,
    help="Data set to train and test on.",
)
@dataset_options
@click.option(
    "--objective",
    shell_complete=completion.OBJECTIVES,
    default="standard",
    show_default=True,
    help="See `robustq list objectives`.",
)
@click.option(
    "--param", "params", multiple=True, help="A setting or attack parameter, such as eps=8/255 or optimizer=adam."
)
@click.option("--epochs", type=Counted(RANGES["epochs"]), default=10, show_default=True)
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--out", type=Output(), help="Write the weights here, as safetensors.")
@device_option
@cpus_option
@json_option
@click.pass_context
def train(
    ctx: click.Context, out: Path | None, device: str | None, cpus_per_job: int | None, as_json: bool, **options: Any
) -> None:
    """Train one MODEL without a study and print its clean test accuracy.

    \b
    robustq train convnet3 --objective pgd --param eps=8/255 --epochs 10 --out robust.safetensors
    """
    from robustq.cluster.early_child import early_child

    choose_device(ctx, device)
    with early_child(cpus_per_job) as early:
        from robustq.jobs.submission import study_sources

        store, submitted = study_sources.submit_training(ctx.obj, options, early.load)
        finish(store, submitted.sweep_id, as_json, cpus_per_job=cpus_per_job, early=early)
    if out:
        from robustq.jobs.commands import queue_actions

        queue_actions.write_weights(store, submitted.sweep_id, out)


for command in (*QUEUE_COMMANDS, *RESULT_COMMANDS):
    main.add_command(remotely(command))
MORE_COMMANDS = (*FILE_COMMANDS, *STORE_COMMANDS, *VERIFICATION_COMMANDS, *PACKAGE_COMMANDS)
for command in (*MORE_COMMANDS, *NAME_COMMANDS, *CLUSTER_COMMANDS):
    main.add_command(command)
for command in SERVING_COMMANDS:
    main.add_command(on_ray(command))


if __name__ == "__main__":
    main()
