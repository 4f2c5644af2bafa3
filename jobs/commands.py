"""Commands that read the store into files, look after it, or list names."""

from pathlib import Path

import click

from jobs.console import json_option, open_store, sweep_option


@click.command()
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


@click.command()
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


@click.command(name="list")
@click.argument("kind", type=click.Choice(["models", "attacks", "datasets", "objectives"]))
@click.option("--torchvision", is_flag=True, help="With models: torchvision's too.")
@json_option
def list_names(kind: str, torchvision: bool, as_json: bool) -> None:
    """Print the names that studies may use, with their parameters."""
    from jobs.names import names_text

    click.echo(names_text(kind, torchvision=torchvision, as_json=as_json))


@click.group()
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


COMMANDS = (export, report, list_names, db)
