"""The run of a sweep by a command: on which device, to its end, and what came of it in print."""

from functools import partial
from typing import Any

import click

from robustq.jobs.commands.base import refuse_typed
from robustq.jobs.text.safe_text import say


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
