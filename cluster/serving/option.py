"""The options of `robustq serve` by which Ray carries what it serves. Ray is loaded when they are given."""

import copy
from functools import partial
from typing import Any

import click

from robustlib.arguments import Range
from robustq.jobs.commands.base import Counted, refuse_typed
from robustq.jobs.commands.deployment.serving import CARRIER, THREADS
from robustq.jobs.text.safe_text import say

OF_RAY = ("replicas", "cpus", "gpus")


def on_ray(command: click.Command) -> click.Command:
    """The command that serves, with --ray and what belongs to it."""
    callback = command.callback
    assert callback is not None  # a group has none

    @click.option("--ray", "with_ray", is_flag=True, help="Serve by replicas on Ray, behind Ray Serve.")
    @click.option(
        "--replicas",
        type=Counted(Range(least=1, most=1024)),
        default=2,
        show_default=True,
        help="With --ray: how many.",
    )
    @click.option("--cpus", type=Counted(THREADS), default=1, show_default=True, help="With --ray: cores a replica.")
    @click.option(
        "--gpus",
        type=click.FloatRange(0),
        default=0,
        show_default=True,
        help="With --ray: GPUs a replica, such as 0.5.",
    )
    @click.pass_context
    def on_ray_or_here(ctx: click.Context, with_ray: bool, replicas: int, cpus: int, gpus: float, **given: Any) -> Any:
        if with_ray:
            from robustq.cluster.serving import carrier

            asked = carrier.Replicas(replicas, cpus, gpus)
            carrier.import_serve()  # before the package is read, as is what comes next
            carrier.check_gpus(asked, smoothed=given["sigma"] is not None)
            ctx.meta[CARRIER] = partial(carrier.serve_on_ray, replicas=asked, tell=partial(say, err=True))
        else:
            refuse_typed(ctx, "without --ray", *OF_RAY)
        return ctx.invoke(callback, **given)

    found = copy.copy(command)
    options = click.command()(on_ray_or_here)
    found.params, found.callback = [*command.params, *options.params], options.callback
    return found
