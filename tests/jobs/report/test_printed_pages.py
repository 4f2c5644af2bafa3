"""Pages on paper: how many sheets they take, and that nothing of a chart or a command is cut off."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from robustq.jobs.report.audit_page import audit_html
from robustq.jobs.report.write import write_report
from robustq.jobs.store.connection import Store
from tests.helpers.fake_sweep import fill
from tests.jobs.report.test_audit_page import FOUND

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium, or Google Chrome"),
]


@pytest.fixture
def page() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 390, "height": 844})
        browser.close()


def sheets(page: Any) -> int:
    """How many sheets of A4 a page takes, by the PDF that Chromium writes, in which each is an object."""
    return len(re.findall(rb"/Type\s*/Page\b(?!s)", page.pdf(format="A4", print_background=True)))


# Of charts on paper: what lies beyond the drawing, and legends that lie on what is written at the axis.
CUT = """[...document.querySelectorAll('figure.chart')].flatMap(figure => {
  const box = e => e.getBoundingClientRect(), all = names => [...figure.querySelectorAll(names)];
  const whole = box(figure.querySelector('.main-svg')), axis = figure.querySelector('.xtitle');
  const out = e => box(e).left < whole.left - 1 || box(e).right > whole.right + 1
    || box(e).top < whole.top - 1 || box(e).bottom > whole.bottom + 1;
  const covered = axis ? all('.legendtext').filter(e => box(e).top < box(axis).bottom - 1) : [];
  return [...all('.legendtext, .xtitle, .ytitle').filter(out), ...covered].map(e => `${figure.id}: ${e.textContent}`);
})"""


def test_a_study_of_four_models_takes_six_sheets_and_is_not_cut(made_up: Store, page: Any, tmp_path: Path):
    """As the quickstart has: three attacks at three radii, and eight pictures of each model."""
    fill(made_up, {"model-a": 0.1, "model-b": 0.3, "b-fgsm": 1.0, "b-pgd": 2.0}, images=8, epochs=15)
    write_report(made_up, "made-up", tmp_path / "page.html", None)
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_function("document.documentElement.dataset.ready === 'yes'")
    assert 3 <= sheets(page) <= 6
    page.set_viewport_size({"width": 703, "height": 1000})  # A4 within its margins, in CSS pixels
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    page.wait_for_function("document.querySelectorAll('.main-svg[width=\"222\"]').length > 5")
    assert page.evaluate(CUT) == []
    commands = page.evaluate("[...document.querySelectorAll('pre')].map(e => e.scrollWidth - e.clientWidth)")
    assert commands and max(commands) <= 0


def test_an_audits_page_fits_a_phone_and_a_sheet_of_paper(page: Any, tmp_path: Path):
    (tmp_path / "audit.html").write_text(audit_html(FOUND, "sqlite:///r.db"))
    page.goto((tmp_path / "audit.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390 and sheets(page) == 1
    page.emulate_media(media="print")
    assert not page.locator(".tools").is_visible() and page.locator("caption").first.is_visible()
