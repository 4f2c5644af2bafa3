"""Commands that look after the store: `robustq db`."""

import click

from robustq.jobs.commands.base import emit, json_option
from robustq.jobs.text.safe_text import put, say


@click.group()
def db() -> None:
    """Look after the store itself.

    \b
    robustq db info
    robustq --store old.db db upgrade
    """


@db.command(name="upgrade")
@json_option
@click.pass_context
def db_upgrade(ctx: click.Context, as_json: bool) -> None:
    """Bring a store of an older schema to this one, keeping a copy of an SQLite file.

    \b
    robustq --store old.db db upgrade
    """
    from robustq.jobs.store.schema import SCHEMA_VERSION
    from robustq.jobs.store.upgrade import upgrade

    done = upgrade(ctx.obj)
    emit({"schema_version": SCHEMA_VERSION, "done": done}, done, as_json)


@db.command(name="info")
@json_option
@click.pass_context
def db_info(ctx: click.Context, as_json: bool) -> None:
    """Say which schema the store has, and what is in it.

    \b
    robustq db info --json
    """
    from robustq.jobs.commands import store_info
    from robustq.jobs.text import tables

    found = store_info.info(ctx.obj)
    say(tables.json_text(found) if as_json else tables.table([found]))


@db.command(name="snapshot")
@click.option("--artifacts", is_flag=True, help="With the weights and images that jobs left behind.")
@click.pass_context
def db_snapshot(ctx: click.Context, artifacts: bool) -> None:
    """Print a copy of an SQLite store as text, which `robustq fetch` reads.

    \b
    robustq db snapshot --artifacts
    """
    from robustq.jobs.store.snapshot import snapshot_text

    put(snapshot_text(ctx.obj, artifacts=artifacts))  # plain letters, and very many of them


COMMANDS = (db,)
