"""A model's server that sends elsewhere, sends too much, or never ends: a line within limits, and the images nowhere else.

Connections are kept from batch to batch, and pauses that a server asks for are made.
"""

import email.utils
import itertools
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from robustlib.models.black_box import endpoint
from robustlib.models.http_connections import manager
from tests.helpers.model_server import Server, answering, serving

X = torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(0))
OK = b"HTTP/1.1 200 OK\r\n"
Script = Callable[[], Iterable[bytes]]


@contextmanager
def scripted(script: Script, tls: ssl.SSLContext | None = None) -> Iterator[tuple[str, list[int]]]:
    """The address of a server that sends these bytes to whoever asked, and the numbers of bytes that it was asked with."""
    listening = socket.create_server(("127.0.0.1", 0))
    asked: list[int] = []

    def talk(connection: socket.socket) -> None:
        with (
            suppress(OSError),
            connection if tls is None else tls.wrap_socket(connection, server_side=True) as connection,
        ):
            head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
            length = int(next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))[15:])
            while len(body) < length:
                body += connection.recv(65536)
            asked.append(len(body))
            for data in script():
                connection.sendall(data)

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=talk, args=(listening.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1/models/m:predict", asked
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


def dripping(first: bytes, drop: bytes) -> Script:
    """First this, then the same bytes for ever, a few times within any timeout."""

    def script() -> Iterator[bytes]:
        yield first
        while True:
            time.sleep(0.02)
            yield drop

    return script


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_images_go_to_no_other_address(code: int):
    with serving() as other:
        target = other.url + "?key=secret"
        head = f"HTTP/1.1 {code} Moved\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()
        with scripted(lambda: [head]) as (url, asked):
            said = rf"^{url} redirects to '{other.url}' \(HTTP {code}\), and images are sent to no address but the one"
            with pytest.raises(ValueError, match=said) as error:
                endpoint(url)(X)
        assert len(asked) == 1 and not other.requests and "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("/elsewhere", "http://127.0.0.1:[0-9]+/elsewhere"),
        ("", "http://127.0.0.1:[0-9]+/v1/models/m:predict"),  # a loop
        ("https://user:password@127.0.0.1/m", "https://127.0.0.1/m"),
        ("ftp://127.0.0.1/m", "ftp://127.0.0.1/m"),
        ("file:///etc/hosts", "file:///etc/hosts"),
        ("http://[::1", "no address"),
    ],
)
def test_a_redirect_within_the_server_or_to_another_scheme_is_said_too(location: str, shown: str):
    head = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
    with scripted(lambda: [head]) as (url, asked):
        with pytest.raises(ValueError, match=f"redirects to '{shown}' "):
            endpoint(url)(X)
        assert len(asked) == 1


@pytest.mark.parametrize("before", ["me:geheim%2F7@", "geheim%2F7@", ""])
def test_name_and_password_go_to_the_server_and_into_no_error(before: str):
    sent = {"me:geheim%2F7@": "Basic bWU6Z2VoZWltLzc=", "geheim%2F7@": "Basic Z2VoZWltLzc=", "": None}[
        before
    ]  # RFC 7617
    with serving() as server:
        plain, url = server.url, server.url.replace("http://", f"http://{before}") + "?code=geheim"
        for status, body, said in [
            (403, b"no", f"{plain} refuses the images: HTTP 403 no"),
            (500, b"", f"{plain} gave no answer in 1 try: HTTP 500"),
            (200, b"[]", f'{plain} answers without a list "predictions", with list'),
            (200, b"{", f"{plain} answers with no JSON: '{{'"),
        ]:
            server.reply = lambda images, answer=(status, body): answer
            with pytest.raises(ValueError) as error:
                endpoint(url, retries=0)(X)
            assert str(error.value) == said
        assert {request["authorization"] for request in server.requests} == {sent}
        assert {request["path"] for request in server.requests} == {"/v1/models/digits:predict?code=geheim"}


@pytest.mark.parametrize(
    "url",
    ["http://me:geheim@127.0.0.1:x/m", "http://127.0.0.1/m?code=geheim here", "http://me:geheim@[::1/m?code=geheim"],
)
def test_what_is_no_address_is_not_repeated(url: str):
    with pytest.raises(ValueError, match="is no address") as error:
        endpoint(url, backoff=0)(X)
    assert "geheim" not in "".join(traceback.format_exception(error.value))


def test_an_answer_that_says_it_is_too_long_is_not_read():
    head = OK + b"Content-Length: 6000000000\r\n\r\n"
    with (
        scripted(lambda: [head]) as (url, asked),
        pytest.raises(ValueError, match=r"answers with more than 11,848,576 bytes"),
    ):
        endpoint(url)(X)
    assert len(asked) == 1


@pytest.mark.slow
def test_an_answer_that_does_not_end_is_left():
    block = b"%x\r\n" % 2**20 + b" " * 2**20 + b"\r\n"
    with scripted(lambda: itertools.chain([OK + b"Transfer-Encoding: chunked\r\n\r\n"], itertools.repeat(block))) as (
        url,
        asked,
    ):
        with pytest.raises(ValueError, match=r"answers with more than 11,848,576 bytes"):
            endpoint(url)(X)
        with pytest.raises(ValueError, match=r"is still answering after 0\.5 seconds"):
            # Of more classes more bytes are expected: here it is time that ends it.
            endpoint(url, num_classes=25_057_000, timeout=0.05, retries=0)(X)
        assert len(asked) == 2


@pytest.mark.parametrize(
    ("first", "drop"),
    [
        (b"", b"H"),
        (OK, b"X"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (OK + b"Content-Length: 1000000\r\n\r\n", b" "),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
        (b"HTTP/1.1 500 Busy\r\nContent-Length: 400\r\n\r\n", b"b"),
    ],
    ids=["status", "header", "continue", "body", "trailers", "error"],
)
@pytest.mark.slow
def test_a_server_that_drips_is_left_after_ten_timeouts(first: bytes, drop: bytes):
    start = time.monotonic()
    with scripted(dripping(first, drop)) as (url, asked):
        with pytest.raises(ValueError, match=r"is still answering after 1 second: a larger timeout gives it longer$"):
            endpoint(url, timeout=0.1)(X)
        assert len(asked) == 1 and 0.9 < time.monotonic() - start < 5


@pytest.mark.slow
def test_a_server_that_is_slow_is_waited_for():
    """Longer than the timeout in all, and never silent for as long."""
    body = json.dumps({"predictions": np.eye(3)[[0, 1, 2] * 3].tolist()}).encode()

    def script() -> Iterator[bytes]:
        yield OK + f"Content-Length: {len(body)}\r\n\r\n".encode()
        for place in range(0, len(body), 10):
            time.sleep(0.02)
            yield body[place : place + 10]

    with scripted(script) as (url, _):
        assert endpoint(url, timeout=0.2)(X).argmax(1).tolist() == [0, 1, 2] * 3


@pytest.mark.slow
def test_an_error_whose_text_never_comes_is_a_line_too():
    with (
        scripted(lambda: (time.sleep(1) or b"" if k else b"HTTP/1.1 500 Busy\r\nContent-Length: 9\r\n\r\n" for k in (0, 1)))
        as (url, _),
        pytest.raises(ValueError, match=r"gave no answer in 1 try: .*timed out"),
    ):  # fmt: skip
        endpoint(url, timeout=0.2, retries=0)(X)


def test_an_answer_that_is_cut_off_is_asked_for_again():
    with scripted(lambda: [OK + b'Content-Length: 100\r\n\r\n{"predictions"']) as (url, asked):
        with pytest.raises(ValueError, match=r"gave no answer in 3 tries: IncompleteRead"):
            endpoint(url, retries=2, backoff=0)(X)
        assert len(asked) == 3


def test_many_classes_written_widely_are_no_long_answer():
    """All classes of ImageNet-21k, a number a line, and more than the data set has."""
    rows = np.zeros((2, 21_841))
    rows[[0, 1], [7, 20_000]] = 0.12345678901234567
    with serving() as server:
        server.reply = lambda images: (200, json.dumps({"predictions": rows.tolist()}, indent=8).encode())
        assert endpoint(server.url, num_classes=10)(X[:2]).argmax(1).tolist() == [7, 20_000]


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"predictions": ' + b"[" * 100_000, b"9" * 100_000, b"\x1f\x8b\x08"]
)
def test_brackets_in_brackets_long_numbers_and_gzip_are_no_json(body: bytes):
    with serving() as server:
        server.reply = lambda images: (200, body)
        with pytest.raises(ValueError, match="answers with no JSON: "):
            endpoint(server.url)(X)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, to make a certificate")
def test_tls_is_spoken_and_within_the_same_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*words.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    body = json.dumps({"predictions": np.eye(3)[[0, 1, 2] * 3].tolist()}).encode()
    head = OK + f"Content-Length: {len(body)}\r\n\r\n".encode()
    scripts = iter([lambda: [head + body], dripping(head, b" ")])
    with scripted(lambda: next(scripts)(), context) as (url, _):
        address = url.replace("http:", "https:")
        manager.cache_clear()
        with pytest.raises(ValueError, match=r"CERTIFICATE_VERIFY_FAILED"):
            endpoint(address, retries=0)(X)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        manager.cache_clear()
        assert endpoint(address)(X).argmax(1).tolist() == [0, 1, 2] * 3
        with pytest.raises(ValueError, match=r"is still answering after 1 second"):
            endpoint(address, timeout=0.1)(X)
    manager.cache_clear()


ONES = answering(lambda images: np.eye(3)[[0] * len(images)])


def test_a_connection_serves_every_batch():
    with serving(keeps=True) as server:
        server.reply = ONES
        model = endpoint(server.url, batch_size=2)
        for _ in range(3):
            assert model(X).argmax(1).tolist() == [0] * 9
        assert len(server.requests) == 15 and server.connections == 1


def test_threads_have_connections_of_their_own():
    with serving(keeps=True) as server:
        server.reply = answering(lambda images: np.eye(3)[(images[:, 0, 0, 0] * 3).astype(int)])
        model = endpoint(server.url, batch_size=1)
        wanted = (X[:, 0, 0, 0] * 3).int().tolist()
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda _: model(X).argmax(1).tolist(), range(8))) == [wanted] * 8
        assert server.connections <= 4


def test_a_process_that_was_forked_has_connections_of_its_own(monkeypatch: pytest.MonkeyPatch):
    """Two that talk into one would read each other's answers."""
    with serving(keeps=True) as server:
        server.reply = ONES
        model = endpoint(server.url)
        model(X)
        monkeypatch.setattr("robustlib.models.http_connections.os.getpid", lambda: -1)
        model(X)
        assert server.connections == 2


@pytest.mark.slow
def test_a_connection_that_was_closed_meanwhile_costs_no_try(monkeypatch: pytest.MonkeyPatch):
    """The server closes it just when the next request comes, which nobody can see beforehand."""
    body = json.dumps({"predictions": np.eye(3)[[0] * 9].tolist()}).encode()
    answer = OK + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    monkeypatch.setattr("urllib3.connectionpool.is_connection_dropped", lambda connection: False)
    with scripted(lambda: [answer]) as (url, asked):  # once a connection, and then it is closed
        model = endpoint(url, retries=0)
        for _ in range(3):
            assert model(X).argmax(1).tolist() == [0] * 9
            time.sleep(0.05)
        assert len(asked) == 3


def busy_once(server: Server, code: int) -> None:
    server.reply = lambda images: (code, b"busy") if len(server.requests) < 2 else ONES(images)


@pytest.mark.slow
@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize(
    ("after", "least", "most"),
    [("3", 3, 3), ("0", 0.5, 0.5), ("soon", 0.5, 0.5), ("in 30 seconds", 28, 30), (None, 0.5, 0.5)],
)
def test_a_busy_server_is_left_alone_as_long_as_it_asks(
    monkeypatch: pytest.MonkeyPatch, code: int, after: str | None, least: float, most: float
):
    pauses: list[float] = []
    monkeypatch.setattr("robustlib.models.http_request.time.sleep", pauses.append)
    with serving() as server:
        busy_once(server, code)
        if after is not None:
            date = email.utils.formatdate(time.time() + 30, usegmt=True)
            server.headers = {"Retry-After": date if after == "in 30 seconds" else after}
        assert endpoint(server.url, retries=1)(X).argmax(1).tolist() == [0] * 9
    (pause,) = pauses
    assert least <= pause <= most


def test_a_pause_longer_than_a_request_may_take_is_told():
    with serving() as server:
        busy_once(server, 429)
        server.headers = {"Retry-After": "3600"}
        said = (
            r"asks to be left alone for 3600 seconds, longer than 300: a larger timeout waits for it \(HTTP 429 busy\)$"
        )
        with pytest.raises(ValueError, match=said):
            endpoint(server.url)(X)
        assert len(server.requests) == 1


def test_pauses_are_logged_without_secrets(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr("robustlib.models.http_request.time.sleep", lambda seconds: None)
    with serving() as server, caplog.at_level("INFO", logger="robustq"):
        busy_once(server, 503)
        endpoint(server.url.replace("http://", "http://me:geheim@") + "?code=geheim")(X)
        assert [record.getMessage() for record in caplog.records] == [
            f"{server.url} HTTP 503 busy: asked again in 0.5 seconds"
        ]
