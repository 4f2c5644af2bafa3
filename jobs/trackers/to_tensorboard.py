"""Runs in TensorBoard: a folder a run below the place, with its scalars and its settings for the HPARAMS page."""

from collections.abc import Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore
from tensorboard.plugins.hparams import summary_v2 as hparams  # pyright: ignore[reportMissingImports]
from tensorboard.summary.writer.event_file_writer import EventFileWriter  # pyright: ignore[reportMissingImports]

from robustq.jobs.trackers.runs import Run, plain


def write(runs: Sequence[Run], place: str) -> list[Run]:
    """Write the runs that are not there; returns those."""
    return [run for run in runs if write_run(run, Path(place))]


def write_run(run: Run, place: Path) -> bool:
    """Write one run, unless it is there already: its folder is named by what is in it."""
    folder = place / plain(run.sweep) / f"{plain(run.name)}-{run.id[:8]}"
    if folder.exists():
        return False
    unfinished = folder.with_name(f".{folder.name}.part")
    writer = EventFileWriter(str(unfinished))
    for name, value in run.metrics.items():
        writer.add_event(scalar(run, name, value, 0))
    for name, values in run.history.items():
        for epoch, value in enumerate(values, 1):
            writer.add_event(scalar(run, name, value, epoch))
    chosen = {
        name: value if isinstance(value, int | float | bool) else str(value) for name, value in run.settings.items()
    }
    for summary in (hparams.hparams_pb(chosen, trial_id=run.id, start_time_secs=run.at), hparams_end()):
        writer.add_event(Event(wall_time=run.at, summary=summary))
    writer.close()
    unfinished.rename(folder)
    return True


def scalar(run: Run, name: str, value: float, step: int) -> Event:
    return Event(wall_time=run.at, step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)]))


def hparams_end() -> Summary:
    """What tells the HPARAMS page that a run has ended."""
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2  # pyright: ignore[reportMissingImports]

    end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS)  # pyright: ignore
    data = plugin_data_pb2.HParamsPluginData(session_end_info=end)  # pyright: ignore
    about = metadata.create_summary_metadata(data)
    return Summary(value=[Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=about)])
