"""The command that serves a package."""

from pathlib import Path
from typing import Any

import click

from robustlib.arguments import RANGES, Range
from robustq.jobs.commands.base import Counted, Seconds, refuse_typed
from robustq.jobs.errors import SpecError
from robustq.jobs.text.number_parsing import read_number
from robustq.jobs.text.output_paths import Output
from robustq.jobs.text.safe_text import brief, put, say

TOKEN = "ROBUSTQ_SERVE_TOKEN"
CARRIER = "robustq.carrier"  # of a context: what runs the server instead of this process
IMAGES, THREADS = Range(least=1, most=65_536), Range(least=1, most=4096)
WAITING, EVERY = Range(least=1, most=1_000_000), Range(least=0, most=1_000_000_000)


@click.command()
@click.argument("place", metavar="PACKAGE", type=click.Path(path_type=Path))
@click.option("--int8", is_flag=True, help="Serve the package's program in 8 bits.")
@click.option("--sigma", type=float, help="Certify each answer: the majority vote under Gaussian noise of this size.")
@click.option("--radius", metavar="NUMBERS", help="Radii in L2 of which each answer says whether they hold: 0.25,0.5.")
@click.option("--alpha", type=float, default=0.001, show_default=True, help="Chance that a certificate is wrong.")
@click.option("--votes", type=Counted(RANGES["n"]), default=10_000, show_default=True, help="Most votes for an image.")
@click.option("--watch", is_flag=True, help="Raise the signals that the card has rates of. Monitoring, no defence.")
@click.option("--watch-log", type=Output(), metavar="FILE", help="Write a line of JSON for each image that raised one.")
@click.option(
    "--watch-every",
    type=Counted(EVERY),
    default=1,
    show_default=True,
    help="One of so many is shown under noise; 0: none.",
)
@click.option("--digest", metavar="HEX", help="Serve only the package of this digest, which `robustq package` printed.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need the token.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8502, show_default=True, help="0 takes any that is free."
)
@click.option(
    "--token", envvar=TOKEN, help="That clients must send; for others than this machine a new one, if none is given."
)
@click.option("--threads", type=Counted(THREADS), default=1, show_default=True, help="That the program computes with.")
@click.option("--batch-size", type=Counted(IMAGES), help="Most images computed at once; default: 32, of votes 8.")
@click.option(
    "--batch-seconds", type=Seconds(), default=0.002, show_default=True, help="An image waits for others, at most."
)
@click.option("--request-images", type=Counted(IMAGES), default=64, show_default=True, help="Most of one request.")
@click.option(
    "--queue-images", type=Counted(WAITING), default=1024, show_default=True, help="Most that wait; then, 503."
)
@click.pass_context
def serve(ctx: click.Context, place: Path, host: str, port: int, token: str | None, **options: Any) -> None:
    """Serve PACKAGE over HTTP: images in, classes and scores out. Ctrl-C answers what was accepted, and ends it.

    \b
    robustq serve robust.zip
    robustq serve robust.zip --digest 1f0c... --port 8080
    robustq serve robust.zip --sigma 0.25 --radius 0.25,0.5
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
    smoothing = smoothing_of(ctx, options)
    watching = watching_of(ctx, options)
    batch_size = options.pop("batch_size") or (32 if smoothing is None else 8)
    settings = Settings(
        batch_size, *(options.pop(name) for name in ("batch_seconds", "request_images", "queue_images"))
    )
    at = {"host": host, "port": port, "token": given or made}
    asked = server.Asked(place, **options, **at, smoothing=smoothing, watching=watching, settings=settings)
    carrier = ctx.meta.get(CARRIER)
    # Of what is carried elsewhere only the card and the checks are needed here: a GPU is its replicas'.
    ready = server.prepare(asked, device=None if carrier is None else "cpu")
    where = f"http://{f'[{host}]' if ':' in host else host}:{ready.port}"
    facts = ready.service.facts

    def announce(engine: str) -> None:
        say(f"{where}/v1/models/{facts.name}:predict serves {place}; Ctrl-C ends it", err=True)
        say(f"package {facts.digest}", err=True)
        say(f"engine  {engine}", err=True)
        if made is not None:
            put(f"token   {made}", err=True)  # what is said elsewhere has no tokens

    if carrier is not None:
        carrier(asked, ready, announce)
        return
    announce(ready.service.engine.mode)
    ready.run()


def smoothing_of(ctx: click.Context, options: dict[str, Any]) -> Any:
    """What of the options is about votes, which are taken out of them; None where there are to be none."""
    from robustq.jobs.serving.settings import Smoothing

    sigma, alpha, votes, written = (options.pop(name) for name in ("sigma", "alpha", "votes", "radius"))
    if sigma is None:
        refuse_typed(ctx, "without --sigma", "radius", "alpha", "votes")
        return None
    radii = [read_number(word) for word in (written or "").split(",") if word.strip()]
    if None in radii:
        raise SpecError(f"--radius: expected numbers such as 0.25,0.5, got {brief(written)}")
    return Smoothing(sigma, tuple(sorted({radius for radius in radii if radius is not None})), alpha, votes)


def watching_of(ctx: click.Context, options: dict[str, Any]) -> Any:
    """What of the options is about signals, which are taken out of them; None where nothing is to watch."""
    from robustq.jobs.serving.settings import Watching

    wanted, log, every = (options.pop(name) for name in ("watch", "watch_log", "watch_every"))
    if not wanted:
        refuse_typed(ctx, "without --watch", "watch_log", "watch_every")
        return None
    return Watching(log, every)


COMMANDS = (serve,)
