"""Commands that attack, audit, explain or train one model without a study."""

from pathlib import Path
from typing import Any

import click

from robustlib.arguments import RANGES
from robustq.cluster.commands.options import (
    epochs_option,
    examples_option,
    model_options,
    norm_option,
    run_options,
    seed_option,
)
from robustq.cluster.commands.sweep_run import choose_device, finish
from robustq.jobs.commands.base import Counted
from robustq.jobs.commands.shell import completion
from robustq.jobs.text.notes import note
from robustq.jobs.text.output_paths import Output
from robustq.jobs.text.safe_text import say


@click.command()
@model_options("attack")
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
@examples_option("1000")
@seed_option
@click.option("--per-example", type=Output(replaced=True), help="Write one row an example here.")
@run_options
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


@click.command()
@model_options("attack")
@norm_option
@click.option("--eps", required=True, help="Radius, such as 8/255.")
@click.option(
    "--queries", type=Counted(RANGES["queries"]), default=1000, show_default=True, help="Of attacks without gradients."
)
@examples_option("200")
@seed_option
@click.option("--out", type=Output(), help="Write the page here too, as one HTML file that looks like the report.")
@run_options
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

        write_page(out, audit_html(found, store.url))
    say(tables.json_text(found) if as_json else audit_text.audit_page(found))


@click.command()
@model_options("explain")
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
@norm_option
@click.option("--eps", default="8/255", show_default=True, help="Radius, such as 8/255.")
@examples_option("100")
@click.option("--images", type=click.IntRange(0, 8), default=6, show_default=True, help="Whose maps are shown.")
@seed_option
@click.option("--out", type=Output(), help="Write the page here, as one HTML file with the maps.")
@run_options
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
        write_page(out, html)
    say(explanations_text.of_sweep(store, submitted.sweep_id, as_json=as_json))


@click.command()
@model_options("train and test", trained=True)
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
@epochs_option(default=10, show_default=True)
@seed_option
@click.option("--out", type=Output(), help="Write the weights here, as safetensors.")
@run_options
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


def write_page(path: Path, html: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    note(f"wrote {path}")


COMMANDS = (attack, audit, explain, train)
