"""A PostgreSQL server for tests: the one that ROBUSTQ_TEST_POSTGRES names, or one started here for their length."""

import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import sqlalchemy as sa


def programs() -> Path | None:
    """The folder of PostgreSQL's programs, where Debian and others put them."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return places[-1].parent if places else None


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def server() -> Iterator[str]:
    """The URL of a server that databases can be made on; skips the test where there is none."""
    if url := os.environ.get("ROBUSTQ_TEST_POSTGRES"):
        yield url
        return
    with own_server() as (url, _):
        yield url


@contextmanager
def own_server(password: str | None = None) -> Iterator[tuple[str, Callable[..., None]]]:
    """The URL of a server of one's own, and what calls PostgreSQL's `pg_ctl` on it: control("stop", "-m", "fast"),
    control("start"), control("restart").

    password: that it asks for, by SCRAM; it is in the URL then.
    """
    bin_folder = programs()
    if bin_folder is None:
        pytest.skip("no PostgreSQL here: install it, or set ROBUSTQ_TEST_POSTGRES to a server's URL")
    folder = Path(tempfile.mkdtemp(prefix="robustq-postgres-"))
    user: dict[str, str] = {}
    if os.getuid() == 0:  # which PostgreSQL refuses to run as
        user = {"user": "nobody"}
        shutil.chown(folder, "nobody")
    port = free_port()

    def call(program: str, *arguments: str) -> None:
        command = [str(bin_folder / program), "-D", str(folder / "data"), *arguments]
        # Not captured: the server would keep the pipe open.
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", timeout=60, **user)  # pyright: ignore

    def control(what: str, *arguments: str) -> None:
        call("pg_ctl", "-o", options, "-l", str(folder / "log"), "-w", *arguments, what)

    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    try:
        asked = ["--auth=trust"]
        if password is not None:
            (folder / "password").write_text(password)
            asked = ["--auth=scram-sha-256", f"--pwfile={folder / 'password'}"]
        call("initdb", "-U", "robustq", *asked, "--no-sync", "-E", "UTF8")
        (folder / "password").unlink(missing_ok=True)
        control("start")
        who = "robustq" if password is None else f"robustq:{password}"
        yield f"postgresql+psycopg://{who}@127.0.0.1:{port}/postgres", control
    finally:
        with suppress(subprocess.CalledProcessError):
            call("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def database(url: str) -> Iterator[str]:
    """The URL of a new, empty database on that server, dropped afterwards."""
    name = f"robustq_{uuid.uuid4().hex[:12]}"
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as db:
        db.execute(sa.text(f"CREATE DATABASE {name}"))
    try:
        yield sa.make_url(url).set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as db:
            db.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
        engine.dispose()
