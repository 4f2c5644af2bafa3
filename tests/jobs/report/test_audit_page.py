"""The page of an audit: every number that the text page has, escaped, in one file that loads nothing."""

import re
from html.parser import HTMLParser

import pytest

from robustq.jobs.commands.audit_text import audit_page, share_text
from robustq.jobs.report.audit_page import audit_html
from robustq.jobs.results.audits import AuditFound, audit_headline

NOTE = "the gradient is 0 at 30 of 60 <images>"
FOUND: AuditFound = {
    "verdict": "fail",
    "cause": "non-differentiable",
    "naive_robust_accuracy": 0.5,
    "adaptive_robust_accuracy": 0.1,
    "model": "m.py:<b>broken</b>",
    "norm": "Linf",
    "eps": 0.15,
    "seed": 3,
    "n": 60,
    "clean_accuracy": 0.95,
    "seconds": 12.6,
    "checks": [
        {"name": "logits", "value": 0.0, "threshold": 0.5, "verdict": "pass", "note": "", "examples": []},
        {"name": "zero-gradient", "value": 0.5, "threshold": 0.25, "verdict": "fail", "note": NOTE, "examples": [3, 5]},
    ],
    "tried": [
        {"attack": "pgd", "remedy": "naive", "attacked": 57, "broke": 27, "robust_accuracy": 0.5, "seconds": 1.25},
        {"attack": "square", "remedy": "", "attacked": 30, "broke": 24, "robust_accuracy": 0.1, "seconds": 2.0},
    ],
    "left_out": [{"attack": "PGD on a surrogate", "why": "there are no images to learn from but those attacked"}],
    "job_id": 17,
}


class Text(HTMLParser):
    """What a reader sees, without styles and scripts."""

    def __init__(self, html: str):
        super().__init__()
        self.parts: list[str] = []
        self.hidden = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.hidden += tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("style", "script")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.parts).split())


@pytest.fixture(scope="module")
def html() -> str:
    return audit_html(FOUND, "sqlite:///r.db")


def test_it_says_what_the_text_page_says(html: str):
    shown, told = Text(html).text, audit_page(FOUND)
    assert audit_headline(FOUND) in shown and audit_headline(FOUND) in told
    for accuracy in (0.95, 0.5, 0.1):
        share = share_text(accuracy, 60)
        assert share in told and share.replace(" %", "") in shown
    for words in (
        "m.py:<b>broken</b>",
        "Linf 0.15, 60 images, seed 3",
        NOTE,
        "3, 5",
        "PGD on a surrogate was not tried",
    ):
        assert words in shown
    assert "1 of 2 did not pass." in shown
    assert "robustq --store sqlite:///r.db replay --job 17" in shown
    tried = Text(html[html.index('id="tried"') : html.index('id="checks"')]).text
    assert re.search(r"pgd 57 27 50\.0 1\.2 nothing square 30 24 10\.0 2", tried), tried


def test_the_check_that_failed_comes_first(html: str):
    checks = Text(html[html.index('id="checks"') :]).text
    assert checks.index("zero-gradient") < checks.index("logits")


def test_it_is_one_file_that_loads_nothing_and_runs_no_other_script(html: str):
    outside = re.sub(r"(?s)<(script|style)>.*?</\1>", "", html)
    assert re.findall(r"""(?:src|href)=["']?([^"' >]*)""", outside) == ["#verdict"]
    assert "default-src &#39;none&#39;" in html and "<b>broken" not in html


def test_one_that_passed_names_no_cause():
    passed: AuditFound = {**FOUND, "verdict": "pass", "cause": None, "checks": FOUND["checks"][:1], "left_out": []}
    shown = Text(audit_html(passed, "r.db")).text
    assert "PASS: 10.0 % robust accuracy against everything that was tried." in shown
    assert "What to mend" not in shown and "No check warned, and none failed." in shown
