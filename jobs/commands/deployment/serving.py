"""The command that serves a package."""

from pathlib import Path

import click

from robustlib.arguments import COUNT
from robustq.jobs.commands.base import Counted, Seconds
from robustq.jobs.errors import SpecError
from robustq.jobs.text.safe_text import put, say

TOKEN = "ROBUSTQ_SERVE_TOKEN"
CARRIER = "robustq.carrier"  # of a context: what runs the server instead of this process


@click.command()
@click.argument("place", metavar="PACKAGE", type=click.Path(path_type=Path))
@click.option("--int8", is_flag=True, help="Serve the package's program in 8 bits.")
@click.option("--digest", metavar="HEX", help="Serve only the package of this digest, which `robustq package` printed.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need the token.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8502, show_default=True, help="0 takes any that is free."
)
@click.option(
    "--token", envvar=TOKEN, help="That clients must send; for others than this machine a new one, if none is given."
)
@click.option("--threads", type=Counted(COUNT), default=1, show_default=True, help="That the program computes with.")
@click.option("--batch-size", type=Counted(COUNT), default=32, show_default=True, help="Most images computed at once.")
@click.option(
    "--batch-seconds", type=Seconds(), default=0.002, show_default=True, help="An image waits for others, at most."
)
@click.option("--request-images", type=Counted(COUNT), default=64, show_default=True, help="Most of one request.")
@click.option("--queue-images", type=Counted(COUNT), default=1024, show_default=True, help="Most that wait; then, 503.")
@click.pass_context
def serve(
    ctx: click.Context,
    place: Path,
    int8: bool,
    digest: str | None,
    host: str,
    port: int,
    token: str | None,
    threads: int,
    batch_size: int,
    batch_seconds: float,
    request_images: int,
    queue_images: int,
) -> None:
    """Serve PACKAGE over HTTP: images in, classes and scores out. Ctrl-C answers what was accepted, and ends it.

    \b
    robustq serve robust.zip
    robustq serve robust.zip --digest 1f0c... --port 8080
    robustq attack http://127.0.0.1:8502/v1/models/NAME:predict --dataset digits --attack square --eps 0.1

    The package is verified first. /predict takes JSON, PNG, JPEG and npy; /v1/models/NAME:predict the V1 protocol, so
    that attack and audit judge what is served; /health, /card and /metrics say how it is. See docs/serving.md.
    Needs pip install 'robustq[deploy]'.
    """
    try:
        from robustq.jobs.serving import server
        from robustq.jobs.serving.settings import Settings
        from robustq.jobs.web import access_token, listening
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "h11", "prometheus_client"):
            raise
        raise SpecError(f"robustq serve needs {error.name}: pip install 'robustq[deploy]'") from error

    given = None if token is None else access_token.checked_token(token, f"--token or {TOKEN}")
    made = access_token.new_token() if given is None and not listening.is_loopback(host) else None
    settings = Settings(batch_size, batch_seconds, request_images, queue_images)
    asked = server.Asked(place, digest, int8, threads, host, port, given or made, settings)
    ready = server.prepare(asked)
    where = f"http://{f'[{host}]' if ':' in host else host}:{ready.port}"
    facts = ready.service.facts

    def announce() -> None:
        say(f"{where}/v1/models/{facts.name}:predict serves {place}; Ctrl-C ends it", err=True)
        say(f"package {facts.digest}", err=True)
        say(f"engine  {ready.service.engine.mode}", err=True)
        if made is not None:
            put(f"token   {made}", err=True)  # what is said elsewhere has no tokens

    if (carrier := ctx.meta.get(CARRIER)) is not None:
        carrier(asked, ready, announce)
        return
    announce()
    ready.run()


COMMANDS = (serve,)
