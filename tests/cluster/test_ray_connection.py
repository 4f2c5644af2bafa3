"""Which clusters are gone to, and what is sent there: without Ray."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from robustq.cluster import ray_connection
from robustq.cluster.ray_connection import check_token, import_ray, is_loopback, quiet_stdout, quieten, started
from robustq.cluster.remote.ray_jobs_api import CommandOutput
from robustq.cluster.remote.upload import prepared_upload, staging_folder
from robustq.cluster.slots import Slots
from robustq.jobs.errors import RunError, SpecError


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("address", "here"),
    [
        ("http://127.0.0.1:8265", True),
        ("localhost:6379", True),
        ("http://[::1]:8265", True),
        ("127.8.9.1:1", True),
        ("http://10.0.0.1:8265", False),
        ("head:6379", False),
        ("http://localhost.evil.org:8265", False),
        ("http://127.0.0.1.evil.org", False),
        ("http://127.0.0.1@evil.org", False),
        ("auto", False),
        ("", False),
    ],
)
def test_loopback(address, here):
    assert is_loopback(address) == here


def test_a_cluster_elsewhere_needs_a_token(monkeypatch, tmp_path):
    with pytest.raises(
        RunError, match=r"^expected a token for the Ray cluster http://head:8265, found none: set RAY_A"
    ):
        check_token("http://head:8265", insecure=False)
    check_token("http://head:8265", insecure=True)
    check_token("http://127.0.0.1:8265", insecure=False)
    (tmp_path / "none").write_text("abc\n")
    check_token("http://head:8265", insecure=False)
    (tmp_path / "none").write_text("\n")
    with pytest.raises(RunError):
        check_token("http://head:8265", insecure=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "abc")
    check_token("http://head:8265", insecure=False)


@pytest.mark.slow
@pytest.mark.parametrize("left", ["all jobs are still queued", "nothing is served"])
def test_a_ray_that_does_not_start_leaves_what_it_leaves(left: str, monkeypatch: pytest.MonkeyPatch):
    """As on a machine of high load, where Ray waits half a minute for its own processes: who serves has no queue."""
    starts: list[int] = []

    def start(*_: object) -> None:
        starts.append(1)
        raise TimeoutError("The current node timed out during startup.")

    monkeypatch.setattr(ray_connection, "start", start)
    ray = SimpleNamespace(shutdown=lambda: None)
    how: Any = {"left": left} if left == "nothing is served" else {}
    told = f"timed out during startup.; {left}: run the same command again, `robustq doctor` tries it alone"
    with pytest.raises(RunError) as error, started(ray, Slots(1, 0, 1), **how):
        raise AssertionError("it runs")
    assert str(error.value).endswith(told) and len(starts) == 2


def test_what_ray_says_of_its_workers_is_kept_from_stdout(capsys):
    """By Ray's own printer, of a message as its raylet sends it: --json prints JSON there and nothing else."""
    ended = []
    ray = SimpleNamespace(shutdown=lambda: ended.append(True))
    printer = import_ray()._private.worker.print_to_stdstream
    with quiet_stdout(ray) as given:
        printer({"lines": ["A worker died."], "pid": "raylet", "is_err": False}, ignore_prefix=False)
        assert given is ray and not ended
    print("[]")
    out, err = capsys.readouterr()
    assert (out, ended) == ("[]\n", [True])
    assert "A worker died." in err


@pytest.mark.parametrize("own", [True, False])
def test_what_ray_says_of_its_own_node_that_died_is_left_out(own, monkeypatch, capsys):
    """robustq tells that in a line; of a node of somebody's cluster Ray alone knows."""
    ray = import_ray()
    worker = ray._private.worker
    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)
    quieten(ray)  # another test may have imported Ray by itself
    monkeypatch.setattr(worker, "_global_node", SimpleNamespace(head=own, node_ip_address="192.0.2.1"))
    text = "The node with node id: 954926b0 and address: 192.0.2.2 has been marked dead because the detector has missed"
    worker.print_to_stdstream({"lines": [text], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    assert ("marked dead" in "".join(capsys.readouterr())) is not own


STUDY = "models: {{mine: {{file: '{file}:make'}}}}\nattacks: [{{name: fgsm}}]\n"


@pytest.mark.slow
def test_a_parcel_holds_the_code_and_the_studys_folder(tmp_path):
    folder = tmp_path / "mine"
    (folder / ".venv").mkdir(parents=True)
    (folder / ".venv" / "big").write_text("x")
    (folder / "results.db").write_text("x")
    (folder / "m.py").write_text("def make(): ...\n")
    (folder / "s.yaml").write_text(STUDY.format(file="m.py"))
    with prepared_upload(folder / "s.yaml") as (place, first):
        assert sorted(path.name for path in place.iterdir()) == ["robustlib", "robustq", "study"]
        assert sorted(path.name for path in (place / "study").iterdir()) == ["m.py", "s.yaml"]
        jobs = place / "robustq" / "jobs"
        assert (jobs / "store" / "migrations" / "env.py").exists()
        assert list((jobs / "report" / "page" / "templates").glob("*.html"))
        assert not list(place.rglob("__pycache__"))
    (folder / "m.py").write_text("def make(): return 1\n")
    with prepared_upload(folder / "s.yaml") as (_, second):
        assert first != second
    with staging_folder() as place:
        assert not (place / "study").exists()


def test_what_would_not_be_there_is_found_before_it_is_sent(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "m.py").write_text("")
    study = tmp_path / "mine" / "s.yaml"
    study.write_text(STUDY.format(file="../m.py"))
    with pytest.raises(SpecError, match=r"s.yaml:1: ../m.py lies outside of the study's folder, which is what is sent"):
        prepared_upload(study).__enter__()
    (tmp_path / "w.pt").write_bytes(b"")
    (tmp_path / "mine" / "w.pt").write_bytes(b"")
    for weights, ok in (("w.pt:ema", True), ("../w.pt:ema", False)):
        study.write_text(f"models: {{a: {{arch: lenet5, weights: '{weights}'}}}}\nattacks: [{{name: fgsm}}]\n")
        if ok:
            with prepared_upload(study):
                pass
        else:
            with pytest.raises(SpecError, match=rf"{weights} lies outside of the study's folder"):
                prepared_upload(study).__enter__()
    monkeypatch.setattr("robustq.cluster.remote.upload.LIMIT_BYTES", 10)
    study.write_text(STUDY.format(file="m.py"))
    with pytest.raises(
        SpecError, match=r"holds 5.72e-05 MB, of which 9.54e-06 can be sent: put the study and the files that it names"
    ):
        prepared_upload(study).__enter__()


def test_an_answer_is_what_the_command_printed_and_nothing_else():
    told: list[str] = []
    answer = CommandOutput(told.append)
    for text in (
        "Ray says\nrobustq-be",
        "gins\n6 do",
        "ne\nRunning entrypoint for job x: y\n",
        "\nlast",
        "\nrobustq: no\n",
    ):
        answer.feed(text)
    assert "".join(told) == "6 done\n\nlast\n"
    assert "".join(answer.lines) == "6 done\n\nlast\nrobustq: no\n"
