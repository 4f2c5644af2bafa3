"""Commands that check results: against another store, by running them again, and in a bundle for others."""

from functools import partial
from pathlib import Path
from typing import Any

import click

from robustlib.number_text import counted
from robustq.jobs.commands.base import (
    CSV,
    JOB_NUMBER,
    SEED,
    Choice,
    Unfinished,
    form_of,
    json_option,
    open_store,
    refuse_typed,
    spreadsheet_option,
)
from robustq.jobs.commands.options import FILTER_NAMES, filter_options
from robustq.jobs.text.notes import note
from robustq.jobs.text.output_paths import Output
from robustq.jobs.text.safe_text import say
from robustq.jobs.text.tables import FORMATS

format_option = click.option(
    "--format", "form", type=Choice(FORMATS), default="table", show_default=True, help="How to print."
)


@click.command()
@click.argument("old")
@click.argument("new")
@click.option(
    "--versions",
    type=Choice(["kernel", "robustq", "torch", "numpy", "python"]),
    help="OLD and NEW are versions of this, of rows in --store.",
)
@click.option("--explanations", is_flag=True, help="What became of explanations, instead of accuracies.")
@filter_options
@format_option
@spreadsheet_option
@json_option
@click.pass_context
def diff(
    ctx: click.Context,
    old: str,
    new: str,
    versions: str | None,
    explanations: bool,
    form: str,
    spreadsheet: bool,
    as_json: bool,
    filters: Any,
) -> None:
    """Say which results of the store OLD came out otherwise in the store NEW, beyond their intervals.

    Results belong together that agree in data set, model, attack, recipe, norm, eps, seed and n, explanations also in
    what was done to the images. A table has both, one below the other, other forms have results, or explanations with
    --explanations. Exit code 1 where one of those changed beyond its interval.

    \b
    robustq diff before.db after.db
    robustq diff --model resnet18 before.db after.db --format markdown
    robustq diff --explanations before.db after.db --json
    robustq --store results.db diff --versions kernel 3 4
    """
    from robustq.jobs.commands import verification_text
    from robustq.jobs.verification.diff import CHANGED, changes_text

    form = form_of(ctx, form, as_json, spreadsheet)
    found = verification_text.changes_between(ctx.obj, old, new, versions, filters, explanations=explanations)
    say(verification_text.diff_text(found, form, explanations=explanations), data=form in CSV)
    told = {"results": found.results, "explanations": found.explanations}
    printed = verification_text.printed_in(form, explanations=explanations)
    for what, rows in told.items():
        if rows:
            line = changes_text(rows) if what == "results" else f"{what}: {changes_text(rows)}"
            note(line if what in printed else f"{line}; --{what} prints them")
    changed = {what: sum(row["change"] == CHANGED for row in told[what]) for what in printed}
    if lines := [counted(n, what.removesuffix("s"), what) for what, n in changed.items() if n]:
        beyond = "its interval" if sum(changed.values()) == 1 else "their intervals"
        raise Unfinished(f"{' and '.join(lines)} changed beyond {beyond}")


@click.command()
@click.argument("number", type=click.IntRange(1), default=1)
@click.option(
    "--job", "job_ids", type=JOB_NUMBER, multiple=True, help="Run this one, instead of any; may be given often."
)
@click.option("--draw", type=SEED, default=0, show_default=True, help="Seed by which results are drawn.")
@click.option("--device", type=Choice(["cpu", "cuda"]), help="Run on this; default: what each result was made on.")
@click.option("--threads", type=click.IntRange(1, 4096), default=1, show_default=True, help="CPU threads.")
@filter_options
@format_option
@spreadsheet_option
@json_option
@click.pass_context
def replay(
    ctx: click.Context,
    number: int,
    job_ids: tuple[int, ...],
    draw: int,
    device: str | None,
    threads: int,
    form: str,
    spreadsheet: bool,
    as_json: bool,
    filters: Any,
) -> None:
    """Run NUMBER stored evaluations again, drawn at random, and compare: the store is not written to.

    On the same CPU with the same versions all must be equal to the bit; on a GPU, and elsewhere, a result may move
    within its interval. Exit code 1 where one does not come out so.

    \b
    robustq replay 3
    robustq replay 5 --attack 'apgd-*' --draw 7
    robustq replay --job 17 --job 21
    """  # fmt: skip
    from robustq.jobs.commands import verification_text
    from robustq.jobs.verification.replay import count_wrong, replay

    if job_ids:
        refuse_typed(ctx, "with --job, which says what to run", "number", "draw", *FILTER_NAMES)
    form = form_of(ctx, form, as_json, spreadsheet)
    how = {"seed": draw, "threads": threads, "device": device, "tell": note}
    rows = replay(open_store(ctx), number, filters=filters, job_ids=job_ids, **how)
    say(verification_text.replay_text(rows, form), data=form in CSV)
    if wrong := count_wrong(rows):
        raise Unfinished(f"{wrong} of {counted(len(rows), 'result')} did not come out as they were stored")


@click.command()
@click.argument("sweep")
@click.argument("file", type=Output(replaced=True))
@click.pass_context
def bundle(ctx: click.Context, sweep: str, file: Path) -> None:
    """Write the latest sweep of this name to one FILE, for whoever is to check it: `robustq check`.

    It holds the study, the rows, what became of each example, the weights, the source of the study's own models, and a
    manifest with the SHA-256 of each; the data are not in it. The fingerprint that is printed tells this bundle from
    every other. Paths of this machine are cut down to the names of files, but for those in options of models.

    \b
    robustq bundle quickstart quickstart.zip
    """
    from robustq.jobs.verification.bundle import write_bundle

    fingerprint = write_bundle(open_store(ctx), sweep, file, partial(say, err=True))
    say(f"{file}: {file.stat().st_size / 2**20:.1f} MB, fingerprint {fingerprint}")


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--replay", "number", type=click.IntRange(0), default=1, show_default=True, help="Evaluations to run again."
)
@click.option("--draw", type=SEED, default=0, show_default=True, help="Seed by which they are drawn.")
@click.option("--threads", type=click.IntRange(1, 4096), default=1, show_default=True, help="CPU threads.")
@click.option("--dataset", help="Where the data lie here, such as parquet:PATH.")
@click.option("--trust-code", is_flag=True, help="Also run models that are code of the bundle, as its author could.")
@click.option("--fingerprint", metavar="SHA256", help="That its author gave: any other bundle is refused.")
@click.option("--most-mb", type=click.IntRange(1), default=2048, show_default=True, help="Most that it may unpack to.")
@json_option
@click.pass_context
def check(ctx: click.Context, file: Path, as_json: bool, fingerprint: str | None, most_mb: int, **how: Any) -> None:
    """Check a bundle FILE without its store: every hash, whether its numbers follow from its outcomes, and a sample of
    its evaluations, run again.

    On the same CPU with the same versions these must be equal to the bit; elsewhere a result may move within its
    interval. Code of the bundle is never run without --trust-code. Exit code 1 where a file was tampered with, numbers
    contradict one another, or a result does not come out so.

    \b
    robustq check quickstart.zip
    robustq check quickstart.zip --replay 5 --draw 7
    robustq check theirs.zip --replay 3 --dataset parquet:PATH --trust-code
    """
    from robustq.jobs.commands import verification_text
    from robustq.jobs.verification.bundle_check import check_bundle
    from robustq.jobs.verification.bundled_jobs import How

    if not how["number"]:
        refuse_typed(ctx, "with --replay 0, which runs nothing", "draw", "threads", "dataset", "trust_code")
    given = How(seed=how.pop("draw"), **how)
    tell = partial(say, err=True)
    found = check_bundle(file, given, most_bytes=most_mb * 2**20, fingerprint=fingerprint, tell=tell)
    say(verification_text.check_text(found, as_json=as_json))
    if found.wrong:
        things = "1 thing is not as it" if found.wrong == 1 else f"{found.wrong} things are not as they"
        raise Unfinished(f"{file}: {things} should be: see above")


COMMANDS = (diff, replay, bundle, check)
