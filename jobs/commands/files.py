"""Commands that read the store into files, look after it, or list names."""

from functools import partial
from pathlib import Path
from typing import Any

import click

from robustlib.number_text import counted
from robustq.jobs.commands.base import open_store, process_check, refuse_typed, spreadsheet_option
from robustq.jobs.commands.options import filter_options
from robustq.jobs.commands.shell import completion
from robustq.jobs.errors import SpecError
from robustq.jobs.text.notes import note
from robustq.jobs.text.output_paths import Output
from robustq.jobs.text.safe_text import address, put, say


@click.command()
@click.argument("path")
@click.option(
    "--to",
    "tracker",
    type=click.Choice(["mlflow", "tensorboard", "wandb"]),
    help="A tracker: PATH is then its tracking URI, its folder, or its project.",
)
@filter_options
@click.option("--per-example", is_flag=True, help="One row an example instead of one a result.")
@click.option("--explanations", is_flag=True, help="What became of explanations, instead of accuracies.")
@click.option(
    "--partition",
    shell_complete=completion.columns,
    metavar="COLUMNS",
    help="Write a folder of Parquet files, such as by model,attack.",
)
@spreadsheet_option
@click.pass_context
def export(
    ctx: click.Context,
    path: str,
    tracker: str | None,
    filters: Any,
    per_example: bool,
    explanations: bool,
    partition: str | None,
    spreadsheet: bool,
) -> None:
    """Write the results to PATH: .arrow (IPC), .parquet or .csv, or a folder of Parquet files by columns, hive style.

    docs/schema.md describes the columns. With --to they go to a tracker, a run for each model and seed: a run that is
    there already is not written twice.

    \b
    robustq export results.arrow
    robustq export --per-example --model 'b-*' --attack pgd images.parquet
    robustq export --per-example --partition model,attack outcomes
    robustq export --explanations --per-example maps.parquet
    robustq export --to mlflow http://HOST:5000 --sweep mine
    robustq export --to tensorboard runs
    robustq export --to wandb ENTITY/PROJECT
    """
    if tracker is not None:
        from robustq.jobs.trackers.export import export_runs

        refuse_typed(ctx, "with --to", "per_example", "explanations", "partition", "spreadsheet")
        if tracker == "tensorboard":
            Output(folder=True).convert(path, None, ctx)
        with open_store(ctx).begin() as db:
            written = export_runs(db, tracker, path, filters, partial(say, err=True))
        say(f"{counted(written, 'run')} in {address(path)}", err=True)
        return
    if explanations:
        refuse_typed(ctx, "with --explanations", "partition")
        write_explanations(ctx, Output(replaced=True).convert(path, None, ctx), filters, per_example, spreadsheet)
        return
    write_file(
        ctx, Output(folder=None, replaced=True).convert(path, None, ctx), filters, per_example, partition, spreadsheet
    )


def write_file(
    ctx: click.Context, path: Path, filters: Any, per_example: bool, partition: str | None, spreadsheet: bool
) -> None:
    """The results in a file, or a folder of some."""
    from robustq.jobs.results import export

    if path.suffix != ".csv" or per_example or partition:
        refuse_typed(ctx, "but on results in a .csv file", "spreadsheet")
    columns = partition.split(",") if partition else ()
    how = {"per_example": per_example, "partition": columns, "spreadsheet": spreadsheet}
    with open_store(ctx).begin() as db:
        tell = note
        rows = export.export(db, path, filters=filters, tell=tell, **how)
    note(f"{counted(rows, 'row')} in {path}")


def write_explanations(ctx: click.Context, path: Path, filters: Any, per_example: bool, spreadsheet: bool) -> None:
    """Explanations in a file."""
    from robustq.jobs.results.explanations import export

    if path.suffix != ".csv" or per_example:
        refuse_typed(ctx, "but on results in a .csv file", "spreadsheet")
    how = {"per_example": per_example, "spreadsheet": spreadsheet}
    with open_store(ctx).begin() as db:
        rows = export.export(db, path, filters=filters, **how)
    note(f"{counted(rows, 'row')} in {path}")


@click.command()
@click.option(
    "--sweep", shell_complete=completion.sweeps, required=True, help="The sweep to report on; the latest of this name."
)
@click.option("--out", type=Output(), default=Path("report/report.html"), show_default=True)
@click.option("--figures", type=Output(folder=True), help="Folder for the pictures as files too.")
@click.option(
    "--figure-format",
    "forms",
    multiple=True,
    type=click.Choice(["png", "svg", "pdf"]),
    default=("png",),
    show_default=True,
    help="Of those files; several are several of each.",
)
@click.pass_context
def report(ctx: click.Context, sweep: str, out: Path, figures: Path | None, forms: tuple[str, ...]) -> None:
    """Write one self-contained HTML file: the most robust models, curves, attacks, images, how to repeat it.

    \b
    robustq report --sweep mine --out mine.html --figures pictures
    robustq report --sweep mine --figures pictures --figure-format pdf --figure-format svg
    """
    from robustq.jobs.report.write import write_report

    if figures is None:
        refuse_typed(ctx, "without --figures FOLDER", "forms")
    chosen = tuple(dict.fromkeys(forms))
    for path in write_report(open_store(ctx), sweep, out, figures, note, chosen, process_check(ctx)):
        note(f"wrote {path}")


@click.command()
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8501, show_default=True, help="0 takes any that is free."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--insecure", is_flag=True, help="Listen where others on the network can read the results too.")
@click.pass_context
def ui(ctx: click.Context, port: int, host: str, insecure: bool) -> None:
    """Serve the report as a page that follows the store while sweeps run. It only reads; Ctrl-C ends it.

    Where there is no store yet, the page waits for it.

    The address that it prints has a token, without which the page does not open. ROBUSTQ_UI_TOKEN sets it, for an
    address that stays the same: 16 letters and digits or more.

    \b
    robustq ui --port 8080
    """
    from robustq.jobs.store.connection import connect_store, store_exists

    waits = not store_exists(ctx.obj)
    store = connect_store(ctx.obj, awaited=True) if waits else open_store(ctx)
    try:
        from robustq.jobs.report import server
        from robustq.jobs.web import access_token
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "h11"):
            raise
        raise SpecError(f"robustq ui needs the package {error.name}: pip install starlette uvicorn") from error

    token, shown = access_token.make_token()
    listening = server.listen(host, port, insecure=insecure)
    where = f"[{host}]" if ":" in host else host
    place = f"http://{where}:{listening.getsockname()[1]}/?token={shown}"
    put(place, err=True, nl=False)  # what is said elsewhere has no tokens
    yet = ", which is not there yet" if waits else ""
    say(f" shows {store.url}{yet}; Ctrl-C ends it", err=True)
    server.serve(store, listening, token, insecure=insecure, is_gone=process_check(ctx))


COMMANDS = (export, report, ui)
