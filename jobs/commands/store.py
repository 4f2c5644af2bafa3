"""Commands that look after the store: `robustq db`."""

import click

from robustlib.number_text import counted
from robustq.jobs.commands.base import Unfinished, emit, json_option, open_store
from robustq.jobs.text.safe_text import put, say


@click.group()
def db() -> None:
    """Look after the store itself.

    \b
    robustq db info
    robustq --store old.db db upgrade
    robustq db size
    robustq db prune --sweep old
    robustq db merge theirs.db
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


@db.command(name="size")
@json_option
@click.pass_context
def db_size(ctx: click.Context, as_json: bool) -> None:
    """Say what each sweep takes up on the disk, and what its removal would free.

    \b
    robustq db size
    """
    from robustq.jobs.commands import store_info
    from robustq.jobs.text import tables

    found = store_info.sizes(open_store(ctx))
    say(tables.json_text(found) if as_json else store_info.sizes_text(found))


@db.command(name="prune")
@click.option("--sweep", "names", multiple=True, help="Remove all versions of this sweep; may be given several times.")
@click.option("--yes", is_flag=True, help="Do it; otherwise only say what would go.")
@json_option
@click.pass_context
def db_prune(ctx: click.Context, names: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Remove sweeps with their results, weights and images, and files that nothing rests on any more.

    Jobs that another sweep has too stay, and so do files that another store in the same folder knows. Without --yes
    nothing is removed: what would be is listed, with its bytes.

    \b
    robustq db prune                          what killed runs left behind
    robustq db prune --sweep old --sweep try
    robustq db prune --sweep old --yes
    """
    from robustq.jobs.commands import store_info
    from robustq.jobs.text import tables

    told = store_info.prune(open_store(ctx, write=yes), names, yes=yes)
    say(tables.json_text(told) if as_json else store_info.prune_text(told))


@db.command(name="merge")
@click.argument("others", nargs=-1, required=True)
@click.option("--artifacts", "places", multiple=True, help="Where their weights and images lie, if not beside them.")
@click.option("--dry-run", is_flag=True, help="Only say what would come.")
@json_option
@click.pass_context
def db_merge(
    ctx: click.Context, others: tuple[str, ...], places: tuple[str, ...], dry_run: bool, as_json: bool
) -> None:
    """Take the sweeps, jobs, results and artifacts of OTHERS, files or URLs of stores, into the store.

    A job that both have is kept once. Where both have finished it with different results, the store's own stays, and
    both are listed with where they come from: exit code 1. The others are only read.

    \b
    robustq db merge cluster-b.db
    robustq --store all.db db merge a.db postgresql+psycopg://me@server/robustq --artifacts s3://BUCKET/robustq
    """
    from robustq.jobs.commands import store_info
    from robustq.jobs.text import tables

    told = store_info.merge(ctx.obj, others, places, dry_run=dry_run)
    say(tables.json_text(told) if as_json else store_info.merge_text(told))
    if wrong := sum(len(one["differing"]) + len(one["lost"]) for one in told):
        raise Unfinished(f"{counted(wrong, 'result differs', 'results differ')}, or artifacts are lost: see above")


COMMANDS = (db,)
