"""`robustq serve` as a process of its own, as its user starts it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STARTED = re.compile(r"http://([^ ]+):(\d+)/v1/models/([^ ]+):predict serves ")


@dataclass
class Served:
    """said: the lines that it began with."""

    process: subprocess.Popen[str]
    port: int
    name: str
    said: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/models/{self.name}:predict"

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Its exit code, and what else it said."""
        self.process.send_signal(number)
        assert self.process.stderr is not None
        rest = self.process.stderr.read()
        return self.process.wait(60), rest


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "robustq", "serve", *words]


@contextmanager
def serving(place: Path, folder: Path, *options: str, lines: int = 3) -> Iterator[Served]:
    """The server of a package, on a free port, started in a folder. lines: that it says when it answers."""
    words = command(str(place), "--port", "0", *options)
    process = subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stderr is not None
    try:
        before = []
        while not before or (before[-1] and not STARTED.match(before[-1])):
            before.append(process.stderr.readline())
        said = [before[-1], *(process.stderr.readline() for _ in range(lines - 1))]
        found = STARTED.match(said[0])
        assert found, before
        yield Served(process, int(found[2]), found[3], said)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stderr.close()
