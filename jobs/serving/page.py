"""The page at `/` of a server: an image tried in the browser, under noise too, and what the package's card says.

It asks this server alone, by the same route as programs do. No script stands in the page, and its policy allows no
other than the server's own.
"""

import io
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from robustlib.number_text import counted
from robustlib.packages.golden import read_golden
from robustlib.packages.manifest import Package
from robustq.jobs.packages.card import Card, Monitoring, card_of
from robustq.jobs.packages.card_text import percent, row_words, trusted
from robustq.jobs.packages.monitoring_text import flagged_text
from robustq.jobs.packages.stored_numbers import attack_words
from robustq.jobs.serving.settings import Settings
from robustq.jobs.text.safe_text import brief
from robustq.jobs.web import access_token

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = access_token.HEADERS | {"Content-Security-Policy": POLICY}
SIGMAS = (0.02, 0.05, 0.1, 0.15, 0.25, 0.5)  # of the noise that the page adds, in units of images in [0, 1]
COPIES, VOTED_COPIES = 16, 4  # of the image, for each sigma; the latter where each answer is a vote itself
NPY = "application/x-npy"
NUMBER = re.compile(r"[0-9]{1,9}")  # of more digits Python reads no number


@dataclass(frozen=True)
class Row:
    """A line of the table of measured accuracies. verdict: empty where nothing is judged."""

    words: str
    of: str
    n: int
    accuracy: str
    verdict: str


@dataclass(frozen=True)
class Signal:
    """What a signal flags of some images: shares with their n and interval, empty where nothing was measured."""

    name: str
    clean: str
    stored: str
    square: str
    adaptive: str


def page_routes(package: Package, settings: Settings, *, mode: str, votes: bool) -> list[Route]:
    """Routes of the page, its styles, its script and the package's golden images.

    mode: how the server computes, in words.  votes: whether each answer is a vote of noisy copies. Raises
    PackageError for a package without its card or golden images.
    """
    card = card_of(package)
    golden = read_golden(package.read(card.golden.file), card.golden.file)
    copies = min(VOTED_COPIES if votes else COPIES, settings.request_images)
    text = page_html(card, package.digest, [int(label) for label in golden.labels], mode=mode, copies=copies)
    pictures = Pictures(golden.images)

    async def page(_: Request) -> Response:
        return HTMLResponse(text, headers=HEADERS)

    async def styles(_: Request) -> Response:
        return Response(style_sheet(), headers=HEADERS, media_type="text/css")

    async def code(_: Request) -> Response:
        return Response(script(), headers=HEADERS, media_type="text/javascript")

    def picture(request: Request) -> Response:
        number = request.path_params["number"]
        if not NUMBER.fullmatch(number) or (data := pictures.png(int(number))) is None:
            return PlainTextResponse(f"there is no golden image {brief(number, 40)} to draw\n", 404, HEADERS)
        return Response(data, headers=HEADERS, media_type="image/png")

    return [
        Route("/", page),
        Route("/page/page.css", styles),
        Route("/page/page.js", code),
        Route("/page/golden/{number}.png", picture),
    ]


class Pictures:
    """Images as PNGs, each made when it is first asked for. images: uint8, (N, C, H, W)."""

    def __init__(self, images: np.ndarray):
        self.images = images
        self.made: dict[int, bytes] = {}

    def png(self, number: int) -> bytes | None:
        """One of them, to the bit; None for one that there is not, or that has neither one channel nor three."""
        if number >= len(self.images) or not drawable(self.images.shape[1]):
            return None
        if number not in self.made:
            image = self.images[number]
            file = io.BytesIO()
            Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(file, "PNG")
            self.made[number] = file.getvalue()
        return self.made[number]


def drawable(channels: int) -> bool:
    return channels in (1, 3)


def page_html(card: Card, digest: str, golden: list[int], *, mode: str, copies: int) -> str:
    """The whole page. golden: classes of the golden images.  copies: noisy ones, for each sigma."""
    takes = card.preprocessing
    height, width = takes.size
    facts: dict[str, Any] = {
        "image": [takes.channels, height, width],
        "classes": card.classes,
        "reading": takes.reading,
        "sigmas": SIGMAS,
        "copies": copies,
        "npy": NPY,
        "flagged": {} if card.monitoring is None else clean_rates(card.monitoring),
    }
    return template().render(
        card=card,
        digest=digest,
        about=about(card, mode),
        takes=f"The model takes images of {width}x{height} pixels ({takes.colours}). "
        "Another size is resized here, and said.",
        drawable=drawable(takes.channels),
        golden=[card.classes[label] if label < len(card.classes) else str(label) for label in golden],
        rows=rows_of(card),
        signals=[] if card.monitoring is None else signals_of(card.monitoring),
        copies=copies,
        width=width,
        height=height,
        facts=json.dumps(facts),
    )


def about(card: Card, mode: str) -> str:
    of = card.network
    defence = "".join(f", behind {part.name}" for part in of.defence)
    what = of.arch or (of.code.name if of.code else "a network")
    return (
        f"{what}{defence}, {of.parameters:,} parameters, {counted(len(card.classes), 'class', 'classes')}; "
        f"packaged {card.made_at[:10]}. "
        f"How it answers: {mode}."
    )


def rows_of(card: Card) -> list[Row]:
    """The measured accuracies: of the network under each stored evaluation, then of the programs, attacked again."""
    found = [] if card.clean is None else [Row("images as they are", "network", card.clean.n, percent(card.clean), "")]
    for one in card.evaluations:
        if one.kind != "clean":
            found.append(Row(attack_words(one), "network", one.robust.n, trusted(one), one.verdict or ""))
    for program in card.programs:
        for row in program.rows:
            found.append(Row(row_words(row), program.file, row.program.n, percent(row.program), ""))
    return found


def signals_of(of: Monitoring) -> list[Signal]:
    found: dict[str, dict[str, str]] = {}
    for rate in of.rates:
        found.setdefault(rate.signal, {})[rate.on] = flagged_text(rate)
    kinds = ("clean", "stored", "square", "adaptive")
    return [Signal(name, *(shares.get(on, "") for on in kinds)) for name, shares in found.items()]


def clean_rates(of: Monitoring) -> dict[str, float]:
    """The share of clean images that each signal flags."""
    return {rate.signal: rate.flagged.rate for rate in of.rates if rate.on == "clean"}


@lru_cache
def template() -> jinja2.Template:
    loader = jinja2.PackageLoader("robustq.jobs.serving", "assets")
    made = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters["code"] = with_code
    return made.get_template("page.html")


def with_code(line: str) -> Markup:
    """A sentence of a card, what stands in backticks as code."""
    parts = str(line).split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))


def text_of(package: str, name: str) -> str:
    return (files(package) / "assets" / name).read_text(encoding="utf-8")


@lru_cache
def style_sheet() -> str:
    """The report's styles, then those that this page has besides."""
    return text_of("robustq.jobs.report.page", "page.css") + text_of("robustq.jobs.serving", "page.css")


@lru_cache
def script() -> str:
    """The report's choice of colours, then the page's own."""
    return text_of("robustq.jobs.report.page", "theme.js") + text_of("robustq.jobs.serving", "page.js")
