"""Commands for a study that runs on a cluster: follow it, end it, bring its results home."""

from functools import partial
from pathlib import Path

import click

from robustlib.number_text import counted
from robustq.cluster.remote.run_remotely import cluster_option, insecure_option, open_cluster
from robustq.jobs.text.notes import note
from robustq.jobs.text.output_paths import Output
from robustq.jobs.text.safe_text import say


@click.command()
@click.argument("name", required=False)
@cluster_option
@insecure_option
@click.pass_context
def attach(ctx: click.Context, name: str | None, cluster: str | None, insecure: bool) -> None:
    """Follow a study on a cluster to its end: the latest, or by NAME or number. Ctrl-C leaves it running.

    \b
    robustq attach --cluster http://HEAD:8265
    """
    from robustq.cluster.remote import ray_jobs_api

    head = open_cluster(ctx, required(cluster), insecure)
    ray_jobs_api.attach(head, name, partial(say, nl=False))


@click.command()
@click.argument("name", required=False)
@cluster_option
@insecure_option
@click.pass_context
def stop(ctx: click.Context, name: str | None, cluster: str | None, insecure: bool) -> None:
    """End the driver of a study on a cluster: its jobs go back to the queue. Submitting it again goes on.

    \b
    robustq stop mine --cluster http://HEAD:8265
    """
    from robustq.cluster.remote import ray_jobs_api

    say(ray_jobs_api.stop(open_cluster(ctx, required(cluster), insecure), name))


@click.command()
@click.option("--out", type=Output(replaced=True), default=Path("results.db"), show_default=True)
@click.option("--artifacts", is_flag=True, help="With the weights and images that jobs left behind.")
@click.option("--most-mb", type=click.IntRange(1), default=2048, show_default=True, help="Refuse more than this.")
@cluster_option
@insecure_option
@click.pass_context
def fetch(ctx: click.Context, out: Path, artifacts: bool, most_mb: int, cluster: str | None, insecure: bool) -> None:
    """Copy the store from a cluster's head, as it is now, to a file here: `robustq --store FILE results` reads it.

    \b
    robustq fetch --out mine.db --cluster http://HEAD:8265
    """
    from robustq.cluster.remote.ray_jobs_api import run_command
    from robustq.jobs.store.snapshot import unpack

    command = ["db", "snapshot", *(["--artifacts"] if artifacts else [])]
    head = open_cluster(ctx, required(cluster), insecure)
    written = unpack(run_command(head, command, most=2 * most_mb << 20), out, most_bytes=most_mb << 20)
    note(f"{out}, with {counted(len(written) - 1, 'artifact')}")


def required(cluster: str | None) -> str:
    if cluster is None:
        raise click.UsageError("expected --cluster URL or ROBUSTQ_CLUSTER, got neither")
    return cluster


COMMANDS = (attach, stop, fetch)
