"""A model server on this machine, for tests: it answers as it is told to, and keeps what it was asked."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

Reply = tuple[int, bytes]


class Server:
    """A model server: `reply` says what it does with the images it is sent; it keeps the requests.

    keeps: its connections, and counts them.  headers: sent with every answer.
    """

    def __init__(self, *, keeps: bool = False):
        self.requests: list[dict] = []
        self.connections = 0
        self.headers: dict[str, str] = {}
        self.reply: Callable[[np.ndarray], Reply] = lambda images: (200, b"")
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1" if keeps else "HTTP/1.0"
            timeout = 5 if keeps else None  # so that the server's threads end with its test

            def setup(self) -> None:
                server.connections += 1
                super().setup()

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                arrays = self.headers["Content-Type"] == "application/x-npy"
                body = {"instances": np.load(io.BytesIO(data))} if arrays else json.loads(data)
                about = {"type": self.headers["Content-Type"], "path": self.path}
                server.requests.append(body | about | {"authorization": self.headers["Authorization"]})
                status, data = server.reply(np.array(body["instances"]))
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                for name, value in server.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            block_on_close = not keeps

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # whoever asked has given up, as a test wants

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1/models/digits:predict"


@contextmanager
def serving(*, keeps: bool = False) -> Iterator[Server]:
    server = Server(keeps=keeps)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        thread.join()
        server.http.server_close()


def answering(fn: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], Reply]:
    return lambda images: (200, json.dumps({"predictions": fn(images).tolist()}).encode())
