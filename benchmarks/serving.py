"""Load on a served package: `robustq serve` with and without batching, and plain onnxruntime behind the same framework.

    robustq package JOB --out convnet3.zip
    python benchmarks/serving.py convnet3.zip --seconds 60

The servers run in turn, each in a process of its own, asked by clients in another one, each client on a connection
that is kept, with one image a request. A line a server: requests a second, milliseconds of half and of 99 % of them,
what one costs the server's processor, which others on the machine hardly change, and the server's memory when it is
warm and at the end. `ratio` is its requests a second over those of the plain server.
"""

import argparse
import io
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from robustlib.number_text import counted

KINDS = {"npy": "application/x-npy", "json": "application/json"}
WARM_SECONDS = 2.0
CHECKED = 100  # every so many answers are read and compared


def plain(place: str, threads: int) -> None:
    """The server that one would write: an application of twenty lines, each request a call of the program."""
    import onnxruntime
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    from robustlib.packages.manifest import ONNX, open_package

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    data = open_package(Path(place)).read(ONNX)
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    async def predict(request: Request) -> JSONResponse:
        body = await request.body()
        if request.headers["content-type"] == KINDS["json"]:
            x = np.asarray(json.loads(body)["instances"], np.float32)
        else:
            x = np.load(io.BytesIO(body)).astype(np.float32) / 255
        (logits,) = session.run(None, {name: x})
        return JSONResponse({"predictions": np.asarray(logits).tolist()})

    application = Starlette(routes=[Route("/v1/models/plain:predict", predict, methods=["POST"])])
    config = uvicorn.Config(application, log_level="error", access_log=False)
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(f"http://127.0.0.1:{listening.getsockname()[1]}/v1/models/plain:predict", file=sys.stderr, flush=True)
    uvicorn.Server(config).run(sockets=[listening])


def servers(place: str, threads: int) -> dict[str, list[str]]:
    """The commands that are compared."""
    here = [sys.executable, __file__, place, "--threads", str(threads)]
    ours = [sys.executable, "-m", "robustq", "serve", place, "--port", "0", "--threads", str(threads)]
    return {
        "plain": [*here, "--plain"],
        "robustq": ours,
        "robustq, no batches": [*ours, "--batch-size", "1"],
    }


@contextmanager
def started(command: list[str]) -> Iterator[tuple[int, str, int]]:
    """The port, path and process of a server while the block runs."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.match(r"http://127\.0\.0\.1:(\d+)(/\S*)", line)
        if found is None:
            raise SystemExit(f"{' '.join(command)} did not start: {line}{process.stderr.read()}")
        yield int(found[1]), found[2], process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        process.stderr.close()


def processor_seconds(pid: int) -> float:
    """What a process has computed, in all its threads."""
    return sum(psutil.Process(pid).cpu_times()[:2])


def resident(pid: int) -> float:
    """Megabytes of a process's memory."""
    return psutil.Process(pid).memory_info().rss / 2**20


def images_of(place: str) -> tuple[np.ndarray, np.ndarray]:
    """The golden images of a package, uint8, and their classes by its program."""
    from robustlib.packages.golden import read_golden
    from robustlib.packages.manifest import GOLDEN, ONNX, open_package

    golden = read_golden(open_package(Path(place)).read(GOLDEN))
    return golden.images, golden.logits[ONNX].argmax(1)


def request_of(path: str, kind: str, image: np.ndarray) -> bytes:
    if kind == "json":
        body = json.dumps({"instances": (image[None].astype(np.float32) / np.float32(255)).tolist()}).encode()
    else:
        file = io.BytesIO()
        np.save(file, image[None])
        body = file.getvalue()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {KINDS[kind]}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Client:
    """One connection that asks again as soon as it is answered. classes: of the images, as they ought to come."""

    def __init__(self, port: int, requests: list[bytes], classes: np.ndarray, first: int):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.requests, self.classes, self.next = requests, classes, first
        self.send()

    def send(self) -> None:
        self.got = b""
        self.since = time.perf_counter()
        self.socket.sendall(self.requests[self.next % len(self.requests)])

    def receive(self) -> float | None:
        """Seconds that the answer took, None where more of it is to come. Raises SystemExit for a wrong one."""
        self.got += self.socket.recv(2**16)
        head, end, body = self.got.partition(b"\r\n\r\n")
        if not end or len(body) < int(re.search(rb"(?i)content-length: (\d+)", head)[1]):  # pyright: ignore
            return None
        seconds = time.perf_counter() - self.since
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"an answer that is none: {self.got[:300]!r}")
        if self.next % CHECKED == 0:
            (row,) = json.loads(body)["predictions"]
            if int(np.argmax(row)) != self.classes[self.next % len(self.requests)]:
                raise SystemExit(f"another class than that of golden image {self.next % len(self.requests)}")
        self.next += 1
        return seconds


def load(port: int, path: str, kind: str, place: str, clients: int, seconds: float) -> dict[str, Any]:
    """What so many clients measure; what they see before the server is warm does not count."""
    images, classes = images_of(place)
    requests = [request_of(path, kind, image) for image in images]
    chooser = selectors.DefaultSelector()
    for k in range(clients):
        client = Client(port, requests, classes, k)
        chooser.register(client.socket, selectors.EVENT_READ, client)
    start = time.perf_counter() + min(WARM_SECONDS, seconds / 2)
    taken: list[float] = []
    answers = 0
    while (now := time.perf_counter()) < start + seconds:
        for key, _ in chooser.select(1.0):
            answered = key.data.receive()
            if answered is not None:
                answers += 1
                if now >= start:
                    taken.append(answered)
                key.data.send()
    half, most = np.quantile(taken, [0.5, 0.99])
    told = {"requests": len(taken), "per_second": len(taken) / seconds, "p50_ms": 1e3 * half, "p99_ms": 1e3 * most}
    return told | {"answers": answers}


def measured(name: str, command: list[str], kind: str, given: argparse.Namespace) -> dict[str, Any]:
    """One server under load: clients in a process of their own, the server's memory seen from here."""
    with started(command) as (port, path, pid):
        words = [sys.executable, __file__, given.package, "--load", f"{port} {path} {kind}"]
        words += ["--clients", str(given.clients), "--seconds", str(given.seconds)]
        before = processor_seconds(pid)
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        time.sleep(min(WARM_SECONDS, given.seconds / 2) + 0.2 * given.seconds)
        warm = resident(pid)
        said, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"the clients of {name} failed")
        row = {"server": name, "kind": kind, **json.loads(said), "warm_mb": warm, "end_mb": resident(pid)}
        return row | {"cpu_ms": 1e3 * (processor_seconds(pid) - before) / row["answers"]}


def compare(given: argparse.Namespace) -> list[dict[str, Any]]:
    """All servers in turn, for each kind of body, several times over; the best round of each counts."""
    rows: list[dict[str, Any]] = []
    commands = servers(given.package, given.threads)
    for kind in given.kinds.split(","):
        rounds = [measured(name, each, kind, given) for _ in range(given.rounds) for name, each in commands.items()]
        best = [
            max((row for row in rounds if row["server"] == name), key=lambda r: r["per_second"]) for name in commands
        ]
        for row in best:
            rows.append(row | {"ratio": row["per_second"] / best[0]["per_second"]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--kinds", default="npy,json")
    parser.add_argument("--threads", type=int, default=1, help="of the program")
    parser.add_argument("--out", type=Path, help="a file for the rows, as JSON")
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.plain:
        return plain(given.package, given.threads)
    if given.load:
        port, path, kind = given.load.split()
        print(json.dumps(load(int(port), path, kind, given.package, given.clients, given.seconds)))
        return None
    rows = compare(given)
    print(f"{counted(given.clients, 'client')}, {given.seconds:g} s each, {counted(os.cpu_count() or 1, 'CPU')}")
    for row in rows:
        print(
            f"{row['server']:20} {row['kind']:5} {row['per_second']:8.0f} /s  x {row['ratio']:.2f}  "
            f"p50 {row['p50_ms']:.1f} ms  p99 {row['p99_ms']:.1f} ms  "
            f"CPU {row['cpu_ms']:.2f} ms  "
            f"memory {row['warm_mb']:.0f} to {row['end_mb']:.0f} MB"
        )
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
