"""A child process that runs bundles, seen from its driver: how it is started, spoken with and ended."""

import os
import pickle
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustq.cluster.child_process import DONE, LENGTH, READY
from robustq.cluster.this_machine import VISIBLE
from robustq.cluster.worker_isolation import empty_folder, worker_environment
from robustq.jobs.errors import RunError

if TYPE_CHECKING:  # else a process that is started early would wait for SQLAlchemy
    from robustq.cluster.messages import Frame

END_SECONDS = 5.0  # that the guard may take to end the worker
READ_BYTES = 2**20
NUMBERS = count(1)


class Child:
    """A guard and its worker, see `cluster/child_process.py`.

    threads: of its jobs.  gpus: that it sees, as in CUDA_VISIBLE_DEVICES; None for those that this process sees. CUDA
    reads them once a process, whoever asks it first.  is_ready: it has loaded robustq.  ended: how the worker did, as
    its guard says it, empty where that was killed too; None while it lives.
    """

    def __init__(self, threads: int, gpus: str | None):
        self.threads, self.gpus = threads, gpus
        folder, number = Path(empty_folder()), next(NUMBERS)
        self.log = folder.parent / f"worker-{number}.err"
        frames, write = os.pipe()
        command = [sys.executable, "-P", "-m", "robustq.cluster.child_process", str(os.getpid()), str(write)]
        command.append(str(self.log.with_suffix(".out")))
        try:
            with open(self.log, "wb") as log:
                self.process = subprocess.Popen(
                    command,
                    cwd=folder,
                    env=worker_environment(threads) | ({} if gpus is None else {VISIBLE: gpus}),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    pass_fds=[write],
                    start_new_session=True,  # what a terminal sends to end goes to the driver alone
                    bufsize=0,
                )
        except OSError as error:
            os.close(frames)
            raise RunError(
                f"a process for jobs cannot be started: {error.strerror or error}; all jobs are still queued: see that "
                "there is memory and room for it, then run the same command again"
            ) from error
        finally:
            os.close(write)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.control, self.life, self.frames = self.process.stdin.fileno(), self.process.stdout.fileno(), frames
        for fd in (self.control, self.life, self.frames):
            os.set_blocking(fd, False)
        self.unsent, self.unread, self.told = bytearray(), bytearray(), b""
        self.is_ready, self.is_closed, self.ended = False, False, None

    ended: str | None

    def send(self, message: Any) -> None:
        """Send a bundle, None for it to get ready for one; what the pipe does not take now goes with the next looks."""
        data = pickle.dumps(message)
        self.unsent += LENGTH.pack(len(data)) + data
        self.push()

    def push(self) -> None:
        with suppress(BlockingIOError, BrokenPipeError):  # whose end is seen elsewhere
            while self.unsent:
                del self.unsent[: os.write(self.control, self.unsent)]

    def watched(self) -> Iterator[tuple[int, int]]:
        """What to wait for: descriptors and events, as select.poll has them."""
        yield self.life, select.POLLIN
        yield self.frames, select.POLLIN
        if self.unsent:
            yield self.control, select.POLLOUT

    def receive(self) -> "tuple[list[Frame], bool]":
        """Frames that have come, and whether a bundle is done with them."""
        self.push()
        alive = self.is_alive()  # before the pipe is read: what it wrote before it ended is there then
        size = READ_BYTES
        while size == READ_BYTES or (not alive and size > 0):
            size = self.read()
        frames: list[Frame] = []
        while (message := self.next_message()) is not None:
            if message == READY:
                self.is_ready = True
            elif message == DONE:
                return frames, True
            else:
                frames.append(pickle.loads(message))
        return frames, False

    def read(self) -> int:
        """Read once; returns how many bytes."""
        with suppress(BlockingIOError):
            part = os.read(self.frames, READ_BYTES)
            self.unread += part
            return len(part)
        return 0

    def next_message(self) -> bytes | None:
        if len(self.unread) < LENGTH.size:
            return None
        end = LENGTH.size + LENGTH.unpack(self.unread[: LENGTH.size])[0]
        if len(self.unread) < end:
            return None
        message = bytes(self.unread[LENGTH.size : end])
        del self.unread[:end]
        return message

    def is_alive(self) -> bool:
        if self.ended is None:
            with suppress(BlockingIOError):
                while part := os.read(self.life, 64):
                    self.told += part
                self.ended = self.told.decode()
        return self.ended is None

    @property
    def ended_by_signal(self) -> bool:
        return (self.ended == "" and self.process.wait() < 0) or str(self.ended).startswith("signal")

    def log_bytes(self) -> int:
        with suppress(OSError):
            return self.log.stat().st_size
        return 0

    def close(self) -> None:
        """End it, with all that it started."""
        if self.is_closed:
            return
        self.is_closed = True
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.terminate()
        self.process.stdin.close()
        end = time.monotonic() + END_SECONDS
        poll = select.poll()
        poll.register(self.life, select.POLLIN)
        while self.is_alive() and time.monotonic() < end:
            poll.poll(1000 * END_SECONDS)
        if self.is_alive():
            self.process.kill()  # the worker dies with its guard
        self.process.stdout.close()
        os.close(self.frames)
        self.process.wait()
