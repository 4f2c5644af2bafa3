"""Commands of the store that run here or, with --cluster, on a cluster's head."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import click

from robustq.jobs.commands.base import refuse_typed, remote_words
from robustq.jobs.text.safe_text import say

insecure_option = click.option("--insecure", is_flag=True, help="Also a cluster that asks for no token.")
cluster_option = click.option("--cluster", envvar="ROBUSTQ_CLUSTER", help="Ray dashboard, such as http://HEAD:8265.")


def remotely(command: click.Command) -> click.Command:
    """The command of the store, with options by which it is asked on a cluster's head."""
    callback = command.callback
    assert callback is not None  # a group has none

    @click.pass_context
    def on_cluster_or_here(ctx: click.Context, cluster: str | None, insecure: bool, **given: Any) -> Any:
        if cluster is None:
            refuse_typed(ctx, "without --cluster", "insecure")
        if cluster is None or is_here(ctx):
            return ctx.invoke(callback, **given)
        from robustq.cluster.remote.ray_jobs_api import run_command

        run_command(
            open_cluster(ctx, cluster, insecure),
            remote_words(ctx),
            partial(say, nl=False, data=ctx.params.get("form") == "csv"),
        )

    found = copy.copy(command)
    options = click.command(cluster_option(insecure_option(on_cluster_or_here)))
    found.params, found.callback = [*command.params, *options.params], options.callback
    return found


def is_here(ctx: click.Context) -> bool:
    """Whether --store names a file on this machine, as one that was fetched, and --cluster is only set in general."""
    source, typed = ctx.get_parameter_source("cluster"), click.core.ParameterSource.COMMANDLINE
    named = ctx.find_root().get_parameter_source("store") is typed
    return source is not typed and named and Path(str(ctx.obj).removeprefix("sqlite:///")).is_file()


def open_cluster(ctx: click.Context, url: str, insecure: bool) -> Any:
    from robustq.cluster.remote.ray_jobs_api import Cluster

    # Not ROBUSTQ_STORE, which is this machine's; the head may have one of its own.
    named = ctx.find_root().get_parameter_source("store") is click.core.ParameterSource.COMMANDLINE
    return Cluster(url, insecure=insecure, store=ctx.obj if named else None)
