"""`robustq serve` with a package: verified first, judged over HTTP as on the disk, ended in peace."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from http.client import RemoteDisconnected
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from robustlib.packages.golden import read_golden
from robustlib.packages.manifest import open_package
from robustq import cli
from robustq.jobs.packages.make import Made
from robustq.jobs.results.rows import result_rows
from robustq.jobs.serving.answers import Answer
from robustq.jobs.serving.server import Asked, application_of
from robustq.jobs.serving.settings import Settings, Smoothing, Watching
from robustq.jobs.serving.watching import make_watcher
from robustq.jobs.store.connection import open_store
from tests.helpers.packaged import altered, zipped
from tests.helpers.serve_process import command, serving
from tests.helpers.served import Reply, ask, instances, npy, picture, running

KIND = "application/x-npy"
SQUARE = ["--dataset", "digits", "--attack", "square", "--eps", "0.05", "--param", "queries=20", "--examples", "10"]


def golden(place: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8, and what the program gives for them."""
    found = read_golden((place / "golden.npz").read_bytes())
    return found.images, found.logits["model.onnx"]


def attacked(model: str, store: Path) -> list[dict]:
    done = CliRunner().invoke(cli.main, ["--store", str(store), "attack", model, *SQUARE, "--json"])
    assert done.exit_code == 0, done.output
    opened = open_store(str(store))
    with opened.begin() as db:
        rows = [dict(row) for row in result_rows(db)]
    opened.engine.dispose()
    return rows


def test_what_is_served_is_what_the_package_is(made: Made, place: Path, tmp_path: Path):
    """Golden images in each form; Square over HTTP finds what it finds in the package itself; SIGTERM ends it with 0."""
    images, logits = golden(place)
    with serving(zipped(place, tmp_path / "net.zip"), tmp_path, "--digest", made.digest) as served:
        assert served.said[1] == f"package {made.digest}\n"
        assert served.said[2] == "engine  model.onnx in ONNX Runtime, 1 thread\n"
        answers = ask(served.port, "/predict", npy(images[:8]), KIND).json["answers"]
        assert np.allclose([answer["scores"] for answer in answers], logits[:8], atol=1e-4)
        assert [answer["label"] for answer in answers] == logits[:8].argmax(1).tolist()
        rows = ask(served.port, f"/v1/models/{served.name}:predict", instances(images[:8] / 255), "application/json")
        assert np.allclose(rows.json["predictions"], logits[:8], atol=1e-4)
        (one,) = ask(served.port, "/predict", picture(images[0]), "image/png").json["answers"]
        assert np.allclose(one["scores"], logits[0], atol=1e-4)
        assert ask(served.port, "/card").body == (place / "card.json").read_bytes()
        assert ask(served.port, "/card.md").body == (place / "card.md").read_bytes()
        near, far = (attacked(model, tmp_path / name) for model, name in ((str(place), "near"), (served.url, "far")))
        for name in ("attack", "clean_accuracy", "robust_accuracy"):
            assert [row[name] for row in near] == [row[name] for row in far]
        assert served.end() == (0, "")


def test_sigterm_in_the_middle_answers_every_request_that_was_accepted(place: Path, tmp_path: Path):
    """Clients that ask without end get answers, then the word that it stops, then no connection; never half an answer."""
    images, logits = golden(place)
    found: list[list[Reply | OSError]] = [[] for _ in range(6)]

    def client(k: int, port: int) -> None:
        while not found[k] or isinstance(found[k][-1], Reply):
            try:
                found[k].append(ask(port, "/predict", npy(images[8 * k : 8 * k + 8]), KIND))
            except OSError as error:
                found[k].append(error)

    with serving(place, tmp_path, "--batch-size", "8", "--batch-seconds", "0.02") as served:
        clients = [threading.Thread(target=client, args=(k, served.port)) for k in range(6)]
        for each in clients:
            each.start()
        while min(map(len, found)) < 5:
            time.sleep(0.01)
        assert served.end(signal.SIGTERM) == (0, "")
        for each in clients:
            each.join()
    for k, each in enumerate(found):
        statuses = [reply.status for reply in each if isinstance(reply, Reply)]
        n = statuses.count(200)
        assert n >= 5 and statuses == [200] * n + [503] * (len(statuses) - n) and 503 in statuses
        # A connection that came last of all was refused, or never taken up.
        assert [
            type(reply) in (ConnectionRefusedError, ConnectionResetError, RemoteDisconnected)
            for reply in each[len(statuses) :]
        ] == [True]
        for reply in each[:n]:
            assert isinstance(reply, Reply)
            scores = [answer["scores"] for answer in reply.json["answers"]]
            assert np.allclose(scores, logits[8 * k : 8 * k + 8], atol=1e-4)


def test_a_package_that_is_not_its_card_is_not_served(made: Made, place: Path, tmp_path: Path):
    golden_file = (place / "golden.npz").read_bytes()
    changed = altered(place, tmp_path / "changed", files={"model.onnx": b"x" + (place / "model.onnx").read_bytes()[1:]})
    other = altered(place, tmp_path / "other", files={}, card={"name": "another"})
    cases = [
        ([str(changed)], "model.onnx: another content than the card's, by its hash"),
        ([str(other)], "card.json says something else than when card.md"),
        ([str(place), "--digest", "0" * 64], "expected " + "0" * 64 + ": this is another package"),
        ([str(place), "--digest", "0"], "--digest: expected 64 digits and letters from a to f"),
        ([str(tmp_path / "none")], "there is no package"),
        ([str(place), "--int8"], "has no model.int8.onnx: `robustq package --int8` makes one with it"),
        ([str(place), "--token", "short"], "--token or ROBUSTQ_SERVE_TOKEN: expected 16 to 200 letters"),
        ([str(place), "--host", "192.0.2.1", "--port", "9"], "--port 9 of 192.0.2.1 cannot be used"),
        ([str(place), "--radius", "0.25", "--votes", "9"], "--radius and --votes have no effect without --sigma"),
        (
            [str(place), "--sigma", "0.25", "--radius", "0.1;2"],
            "--radius: expected numbers such as 0.25,0.5, got '0.1;2'",
        ),
        ([str(place), "--sigma", "-1"], "expected sigma above 0, got -1.0"),
        ([str(place), "--watch-every", "2"], "--watch-every has no effect without --watch"),
        ([str(place), "--watch"], f"--watch: the card of {place} has no signals that were measured"),
        ([str(place), "--sigma", "0.1", "--radius", "9"], "no number of votes shows that a class has all of them"),
        ([str(place), "--sigma", "0.1", "--radius", "0.5"], "radius 0.5 at sigma 0.1: expected at least"),
    ]
    for words, line in cases:
        done = CliRunner().invoke(cli.main, ["serve", *words])
        assert done.exit_code == 2 and done.stderr.count("\n") == 1 and line in done.stderr, done.output
    assert (place / "golden.npz").read_bytes() == golden_file


def test_a_count_beyond_all_use_is_refused_with_its_limit():
    """Before the package is looked at; some of them would be a traceback later, of threads as of ONNX Runtime."""
    most = {
        "--votes": 1_000_000,
        "--threads": 4096,
        "--batch-size": 65_536,
        "--request-images": 65_536,
        "--queue-images": 1_000_000,
        "--watch-every": 1_000_000_000,
        "--replicas": 1024,
        "--cpus": 4096,
    }
    for option, limit in most.items():
        done = CliRunner().invoke(cli.main, ["serve", "none.zip", option, str(10**20)])
        assert done.exit_code == 2 and f" to {limit}, got {10**20}\n" in done.stderr, done.output
        assert "9223372036854775807" not in done.stderr


def test_others_on_the_network_need_the_token(place: Path, tmp_path: Path):
    images, _ = golden(place)
    with serving(place, tmp_path, "--host", "0.0.0.0", lines=4) as served:
        found = re.fullmatch(r"token   ([\w-]{32})\n", served.said[3])
        assert found
        assert ask(served.port, "/predict", npy(images[:1]), KIND).status == 403
        assert ask(served.port, "/predict", npy(images[:1]), KIND, Authorization=f"Bearer {found[1]}").status == 200
        assert served.end(signal.SIGINT) == (0, "")


def test_serving_loads_neither_torch_nor_ray(place: Path, tmp_path: Path):
    look = (
        "import sys, json\nfrom pathlib import Path\nfrom robustq.jobs.serving.server import Asked, prepare\n"
        f"ready = prepare(Asked(Path({str(place)!r})))\nready.service.close()\nready.listening.close()\n"
        "print(json.dumps(sorted({'torch', 'ray', 'torchvision', 'sklearn', 'matplotlib'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_a_missing_package_of_python_is_one_line(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "prometheus_client.py").write_text("raise ModuleNotFoundError('', name='prometheus_client')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(cli.__file__).parent / '.venv' / 'names'}")
    done = subprocess.run(command(str(place)), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "robustq: robustq serve needs prometheus_client: pip install 'robustq[deploy]'\n"


def test_votes_are_served_with_their_certificates(place: Path):
    """What holds farther out holds nearer, and the class that holds has the most votes."""
    images, _ = golden(place)
    asked = Asked(place, smoothing=Smoothing(0.2, (0.1, 0.2), 0.001, 1000), settings=Settings(batch_size=8))
    application = application_of(open_package(place), asked)
    with running(application) as port:
        said = ask(port, "/predict", npy(images[:16]), KIND).json["answers"]
        rows = ask(port, "/v1/models/net:predict", npy(images[:16]), KIND).json["predictions"]
        assert ask(port, "/health").json["engine"].startswith("sigma 0.2, alpha 0.001, at most 1000 votes; ")
    assert np.allclose(np.sum(rows, axis=1), 1) and sum(answer["abstained"] for answer in said) < 8
    for answer, row in zip(said, rows, strict=True):
        told = answer["certificate"]
        assert (told["norm"], told["sigma"], told["alpha"], list(told["holds"])) == ("L2", 0.2, 0.001, ["0.1", "0.2"])
        assert 100 < told["votes"] <= 1000 and answer["kind"] == "votes"
        if told["holds"]["0.2"]:
            assert told["holds"]["0.1"] and int(np.argmax(row)) == answer["label"]
    assert {answer["certificate"]["holds"]["0.1"] for answer in said} == {True, False}


def test_signals_are_served_counted_and_written_down(measured: Made, tmp_path: Path):
    """One image asked about over and over is noticed, as the watcher itself says of the same requests."""
    images, _ = golden(measured.place)
    file, package = tmp_path / "logs" / "signals.jsonl", open_package(measured.place)
    application = application_of(package, Asked(measured.place, watching=Watching(file, every=0)))
    expected = make_watcher(package, every=0)
    assert expected is not None
    raised: list[tuple[str, ...]] = []
    with running(application) as port:
        for number in range(40):
            body = {"body": npy(images[:1]), "kind": KIND, "X_Request_Id": f"r{number}"}
            (answer,) = ask(port, "/predict", **body).json["answers"]
            found = Answer(answer["label"], np.array(answer["scores"], np.float32), "logits")
            raised += expected.look("127.0.0.1", images[:1] / np.float32(255), [found])
            assert answer["signals"] == list(raised[-1])
        metrics = ask(port, "/metrics").body.decode()
    assert raised[-1] == ("repeated-queries",)
    counts = dict(re.findall(r'robustq_signals_total\{signal="([\w-]+)"\} (\d+)', metrics))
    assert {name: int(count) for name, count in counts.items()} == expected.counters()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == expected.counters()["repeated-queries"] > 20
    assert (lines[-1]["request"], lines[-1]["client"], lines[-1]["signals"]) == (
        "r39",
        "127.0.0.1",
        ["repeated-queries"],
    )
