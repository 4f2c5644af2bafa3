"""Servers that answer otherwise than Ray's dashboard does: one line, within a time and a size."""

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socket import SO_LINGER, SOL_SOCKET, socket
from struct import pack
from typing import Any

import pytest

from robustq.cluster.remote import http_exchange
from robustq.cluster.remote.ray_jobs_api import Cluster, attach
from robustq.jobs.errors import RunError
from tests.helpers.bounded import bounded

VERSION = json.dumps({"ray_version": "2.50.0"}).encode()
RUN = {"type": "SUBMISSION", "submission_id": "robustq-x", "status": "SUCCEEDED", "entrypoint": "x"}
RUN |= {"metadata": {"robustq": "study", "name": "x"}}


@contextmanager
def serving(answer: Callable[[Any, str], None]) -> Iterator[str]:
    """The address of a server that answers each request by a call, given the connection and the path."""
    listening = socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()

    def one(connection: Any) -> None:
        try:
            words = connection.recv(65536).split(b" ")
            answer(connection, words[1].decode() if len(words) > 1 else "")
        except OSError:
            pass
        finally:
            connection.close()

    def loop() -> None:
        while True:
            try:
                connection = listening.accept()[0]
            except OSError:
                return
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    threading.Thread(target=loop, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.close()


def send(connection: Any, body: bytes, status: str = "200 OK", more: bytes = b"") -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n".encode()
    connection.sendall(head + more + b"Connection: close\r\n\r\n" + body)


def reset(connection: Any, _: str) -> None:
    connection.setsockopt(SOL_SOCKET, SO_LINGER, pack("ii", 1, 0))


def drip(begin: bytes) -> Callable[[Any, str], None]:
    def answer(connection: Any, _: str) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + begin)
        while True:
            connection.sendall(b" ")
            time.sleep(0.05)

    return answer


def endless(connection: Any, _: str) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    while True:
        connection.sendall(b" " * 65536)


def all_of(body: bytes, status: str = "200 OK", more: bytes = b"") -> Callable[[Any, str], None]:
    return lambda connection, _: send(connection, body, status, more)


OTHERWISE = "answers otherwise than Ray's dashboard does"
ANSWERS = {
    "login page": (all_of(b"<!DOCTYPE html><html>Log in</html>"), OTHERWISE),
    "garbage": (all_of(b"{not json"), OTHERWISE),
    "a number": (all_of(b"3"), OTHERWISE),
    "another object": (all_of(b"{}"), OTHERWISE),
    "another version": (all_of(b'{"ray_version": "abc"}'), OTHERWISE),
    "not found": (all_of(b"", "404 Not Found"), "Version check returned 404"),
    "refused": (all_of(b"", "401 Unauthorized"), "asks for its token"),
    "redirected": (all_of(b"", "302 Found", b"Location: /\r\n"), "redirects"),
    "reset": (reset, "Failed to connect"),
    "no http": (lambda connection, _: connection.sendall(b"SSH-2.0\r\n"), "Failed to connect"),
    "endless": (endless, "more than 1 MB"),
    "a bomb": (all_of(gzip.compress(bytes(2**24)), more=b"Content-Encoding: gzip\r\n"), "more than 1 MB"),
    "drop by drop": (drip(b"Content-Type: application/json\r\n\r\n"), "second"),
    "header drop by drop": (drip(b"X: "), "no whole answer in 1 second"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("BEGIN_SECONDS", 1.0),
        ("ANSWER_SECONDS", 1.5),
        ("SILENT_SECONDS", 1.0),
        ("MOST_BYTES", 2**20),
    ):
        monkeypatch.setattr(http_exchange, name, value)


@pytest.mark.slow
@pytest.mark.parametrize("what", ANSWERS)
def test_another_server_is_told_in_one_line(what: str):
    answer, said = ANSWERS[what]
    with serving(answer) as url, bounded(), pytest.raises(RunError, match=said) as caught:
        Cluster(url, insecure=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "jobs", [None, 3, [3], "x", [RUN | {"status": "NOPE"}], [RUN | {"metadata": [1]}], [RUN | {"start_time": "x"}]]
)
def test_its_jobs_may_be_anything(jobs: Any):
    def answer(connection: Any, path: str) -> None:
        send(connection, VERSION if "version" in path else json.dumps(jobs).encode())

    with serving(answer) as url, bounded(), pytest.raises(RunError, match=OTHERWISE):
        Cluster(url, insecure=True).runs()


@pytest.mark.parametrize("logs", [b'{"logs": 3}', b'{"logs": null}', b"{}", b"[]", b"<html>", b""])
def test_so_may_what_they_printed(logs: bytes):
    def answer(connection: Any, path: str) -> None:
        job = RUN if path.endswith("robustq-x") else [RUN]
        send(connection, VERSION if "version" in path else logs if path.endswith("/logs") else json.dumps(job).encode())

    with serving(answer) as url, bounded(), pytest.raises(RunError, match=OTHERWISE):
        attach(Cluster(url, insecure=True), None, lambda text: None)


def test_a_cluster_that_answers_as_ray_does_is_followed():
    def answer(connection: Any, path: str) -> None:
        job = RUN if path.endswith("robustq-x") else [RUN]
        body = {"logs": "done\n"} if path.endswith("/logs") else job
        send(connection, VERSION if "version" in path else json.dumps(body).encode())

    said: list[str] = []
    with serving(answer) as url, bounded():
        attach(Cluster(url, insecure=True), "x", said.append)
    assert said == ["done\n"]
