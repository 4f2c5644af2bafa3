"""Metrics of several replicas put together, and the options that belong to Ray. Without Ray."""

import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from robustq import cli
from robustq.cluster.ray_connection import import_ray
from robustq.cluster.serving import all_replicas, carrier
from robustq.cluster.serving.all_replicas import Board, merged
from robustq.cluster.serving.carrier import (
    Replicas,
    asked_to_end,
    check_gpus,
    engine_of,
    import_serve,
    log_of_its_own,
    not_started,
)
from robustq.jobs.errors import RunError, SpecError
from robustq.jobs.serving.application import make_application
from robustq.jobs.serving.metrics import Metrics
from robustq.jobs.serving.server import Asked, doors
from robustq.jobs.serving.settings import Watching
from tests.helpers.served import FACTS, Colours, running


def counted(images: int, status: int) -> bytes:
    metrics = Metrics()
    metrics.batch(images)
    metrics.answered(status, 0.02)
    return metrics.text()


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found = [sample for family in text_string_to_metric_families(text.decode()) for sample in family.samples]
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in found}


def test_each_sample_is_there_once_under_its_replica():
    texts = {"a": counted(3, 200), "b": counted(5, 503)}
    expected = {}
    for name, text in texts.items():
        expected |= {(of, tuple(sorted([*labels, ("replica", name)]))): v for (of, labels), v in samples(text).items()}
    assert samples(merged(texts)) == expected
    assert expected["robustq_images_total", (("replica", "b"),)] == 5
    assert merged(texts).count(b"# TYPE robustq_images_total counter") == 1


def test_a_replica_that_is_silent_is_left_out(monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr(all_replicas.time, "monotonic", lambda: clock[0])
    board = Board()
    board.put_up("a", b"1")
    clock[0] = all_replicas.FRESH_SECONDS / 2
    assert board.put_up("b", b"2") == {"a": b"1", "b": b"2"}
    clock[0] = all_replicas.FRESH_SECONDS
    assert board.put_up("b", b"3") == {"b": b"3"}


@pytest.mark.parametrize(
    ("count", "share", "needed"),
    [(2, 0.0, 0), (2, 0.5, 1), (3, 0.5, 2), (3, 0.6, 3), (10, 0.1, 1), (2, 1.0, 2), (2, 2.0, 4)],
)
def test_shares_lie_on_one_gpu_each(count: int, share: float, needed: int):
    assert Replicas(count, gpus=share).gpus_needed == needed


def test_gpus_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(carrier, "gpu_count", lambda: 1)
    check_gpus(Replicas(2, gpus=0.5), smoothed=True)
    check_gpus(Replicas(2), smoothed=False)
    with pytest.raises(SpecError, match=r"^--gpus 0.6 for 2 replicas needs 2 GPUs, this machine has 1: ask for less"):
        check_gpus(Replicas(2, gpus=0.6), smoothed=True)
    with pytest.raises(SpecError, match=r"^--gpus: expected a share of one GPU or whole ones, got 1.5$"):
        check_gpus(Replicas(2, gpus=1.5), smoothed=True)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--gpus", "9", "--sigma", "0.1"], "--gpus 9 for 2 replicas needs 18 GPUs, this machine has 1: ask for less"),
        (["--gpus", "1"], "--gpus has no effect without --sigma: a program is computed on CPUs by ONNX Runtime"),
    ],
)
def test_gpus_are_refused_before_the_package_is_read(monkeypatch: pytest.MonkeyPatch, words: list[str], line: str):
    monkeypatch.setattr(carrier, "gpu_count", lambda: 1)
    monkeypatch.setattr(carrier, "import_serve", lambda: None)
    done = CliRunner().invoke(cli.main, ["serve", "no-such.zip", "--ray", *words])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1) and done.stderr.startswith(f"robustq: {line}")


def test_each_replica_logs_signals_into_a_file_of_its_own():
    asked = Asked(Path("net.zip"), watching=Watching(log=Path("/logs/signals.jsonl")))
    assert log_of_its_own(asked, "a1") == replace(asked, watching=Watching(log=Path("/logs/signals.a1.jsonl")))
    assert log_of_its_own(Asked(Path("net.zip")), "a1") == Asked(Path("net.zip"))


def test_why_replicas_do_not_start_is_a_line_or_all_of_it():
    trace = 'The deployment failed to start 2 times:\n  File "server.py", line 1, in application_of\n'
    found = not_started(f"{trace}robustq.jobs.errors.SpecError: net.zip: it has no file golden.npz\n\n")
    assert (type(found), str(found)) == (RunError, "the replicas do not start: net.zip: it has no file golden.npz")
    found = not_started(f"{trace}ZeroDivisionError: division by zero")
    assert type(found) is RuntimeError and str(found).endswith(f"{trace}ZeroDivisionError: division by zero")


def test_a_proxy_has_time_to_start_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch):
    """Ray Serve kills one that is not up in 5 seconds; at a load of 45 on two cores that was a traceback."""
    name = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"
    monkeypatch.setenv(name, "")  # so that what is set in here goes with the test
    monkeypatch.delenv(name)
    constants = pytest.importorskip("ray.serve._private.constants")
    assert name in Path(constants.__file__).read_text()  # it is none of Ray's public interface
    import_serve()
    assert float(os.environ[name]) == 60
    told = "The actor died unexpectedly before finishing this task.\n\tclass_name: ProxyActor\n\tpid: 22145\n"
    found = not_started(f"{told}The actor is dead because it was killed by `ray.kill`.\nThe actor never ran.")
    assert type(found) is RunError and str(found).endswith(
        "60 seconds: give the same command again when the machine is less busy"
    )
    monkeypatch.setenv(name, "5")  # of the user's own
    import_serve()
    assert "not up in 5 seconds" in str(not_started(f"{told}The actor is dead because it was killed by `ray.kill`."))


@pytest.mark.slow
def test_the_command_itself_takes_no_gpu(place: Path, monkeypatch: pytest.MonkeyPatch):
    """Votes are the replicas' affair: the process that starts them would hold memory of the card beside them."""
    carried: list[Any] = []
    monkeypatch.setattr(carrier, "import_serve", lambda: None)
    monkeypatch.setattr(carrier, "serve_on_ray", lambda asked, ready, announce, **how: carried.append(ready))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    words = ["serve", str(place), "--ray", "--sigma", "0.25", "--votes", "300", "--port", "0"]
    done = CliRunner().invoke(cli.main, words)
    assert done.exit_code == 0, done.output
    (ready,) = carried
    assert ready.service.engine.device.type == "cpu"
    ready.service.close()
    ready.listening.close()


@pytest.mark.slow
def test_how_replicas_compute_is_asked_of_one(monkeypatch: pytest.MonkeyPatch):
    with running(make_application(Colours(), FACTS, doors=doors("0.0.0.0", "of-tests-0123456"))) as port:
        assert engine_of("0.0.0.0", port, Event()) == Colours().mode
    with asked_to_end() as ended:  # while nobody answers
        signal.raise_signal(signal.SIGTERM)
        assert engine_of("127.0.0.1", port, ended) is None
    monkeypatch.setattr(carrier, "ANSWER_SECONDS", 0.1)
    with pytest.raises(RunError, match=rf"^the replicas do not answer on port {port}: .*refused"):
        engine_of("127.0.0.1", port, Event())


def test_options_of_ray_are_refused_without_it():
    done = CliRunner().invoke(cli.main, ["serve", "none.zip", "--replicas", "3", "--gpus", "0.5"])
    assert (done.exit_code, done.stderr) == (2, "robustq: --replicas and --gpus have no effect without --ray\n")


def test_a_ray_without_serve_or_with_open_ports_is_refused(monkeypatch: pytest.MonkeyPatch):
    ray = import_ray()
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "ray.serve", None)
        without.delattr(ray, "serve", raising=False)
        done = CliRunner().invoke(cli.main, ["serve", "none.zip", "--ray"])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert re.fullmatch(r"robustq: --ray needs Ray Serve \(.*\): pip install 'robustq\[serve\]'\n", done.stderr)
    monkeypatch.setitem(sys.modules, "ray.serve", SimpleNamespace())
    monkeypatch.setattr(ray, "__version__", "2.59.1")
    with pytest.raises(
        SpecError, match=r"^--ray needs Ray 2.60 or newer, got 2.59.1: pip install -U 'robustq\[serve\]'$"
    ):
        import_serve()
