"""The page from its templates: sections, styles and scripts inside, and a policy that allows no others."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import jinja2
from markupsafe import Markup

from robustlib.number_text import counted
from robustq.jobs.report.page.html_table import body_html
from robustq.jobs.report.page.page_model import Page
from robustq.jobs.text.numbers import times_text

# In the order of the page: the answer first, then what it rests on, last how to repeat it.
SECTIONS = {
    "progress": "Progress",
    "verdict": "The answer",
    "leaderboard": "Leaderboard",
    "curves": "Accuracy by radius",
    "queries": "Accuracy by queries",
    "tradeoff": "What robustness costs",
    "attacks": "Which attack succeeds on which images",
    "classes": "Classes",
    "pictures": "Pictures",
    "explanations": "Explanations under attack",
    "training": "Training",
    "checks": "Checks",
    "cost": "What the study took",
    "repeat": "How to repeat it",
}
SCRIPTS = ("theme.js", "table.js", "chart.js")


@dataclass(frozen=True)
class Section:
    """A rendered section. hash: of its HTML, by which a live page knows whether to replace it."""

    name: str
    title: str
    html: Markup
    hash: str


@lru_cache
def environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("robustq.jobs.report.page", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["lines"] = body_html
    made.filters["times"] = times_text
    made.globals["counted"] = counted
    return made


def render_sections(page: Page) -> list[Section]:
    """The sections that have something to say."""
    rendered = []
    for name, title in SECTIONS.items():
        html = environment().get_template(f"{name}.html").render(page=page).strip()
        if html:
            rendered.append(Section(name, title, Markup(html), hashlib.sha256(html.encode()).hexdigest()[:16]))
    return rendered


def render_page(
    page: Page, rendered: Sequence[Section], *, live: Sequence[str] | None = None, beside: str | None = None
) -> str:
    """The whole page as one file.

    rendered: its sections.  live: names of the sweeps to choose from, for a page that is served and follows.
    beside: the one of them that the page's is compared with.
    """
    scripts = [script(name) for name in (*SCRIPTS, *(("live.js",) if live is not None else ()))]
    return (
        environment()
        .get_template("page.html")
        .render(
            page=page,
            sections=rendered,
            policy=policy(scripts, live=live is not None),
            style=Markup(asset("page.css")),
            scripts=scripts,
            live=live,
            beside=beside,
        )
    )


def policy(scripts: Sequence[str], *, live: bool) -> str:
    """A Content-Security-Policy under which these scripts run and no other, and nothing is fetched from elsewhere.

    Styles need 'unsafe-inline' for what Plotly writes into its drawings.
    """
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    rules = {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": "'unsafe-inline'",
        "script-src": " ".join(f"'sha256-{text}'" for text in hashes),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    if live:
        rules["connect-src"] = "'self'"
    return "; ".join(f"{name} {value}" for name, value in rules.items())


@lru_cache
def asset(name: str) -> str:
    return (files("robustq.jobs.report.page") / "assets" / name).read_text(encoding="utf-8")


@lru_cache
def script(name: str) -> Markup:
    """A script as it stands in the page; the charts' one with the library before it, and that with its licence."""
    text = asset(name)
    if name == "chart.js":
        vendor = files("robustq.jobs.report.page") / "vendor"
        licence = (vendor / "LICENSE.plotly").read_text(encoding="utf-8").replace("*/", "* /")
        text = (
            f"/*! plotly.js\n{licence}*/\n" + (vendor / "plotly-basic.min.js").read_text(encoding="utf-8") + "\n" + text
        )
    # Inside a script element only these two can end or bend it; in JavaScript strings their escapes are as good.
    return Markup(text.replace("</script", "<\\/script").replace("<!--", "<\\!--"))
