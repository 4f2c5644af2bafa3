"""The page of explanations in a browser: no error, nothing wider than a phone, every map drawn, on paper too."""

import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from robustq.jobs.report.explain_page import explain_html
from robustq.jobs.store.connection import Store
from tests.helpers.fake_explanations import AGAINST, add_explanation, made_up_measures
from tests.helpers.fake_results import add_sweep
from tests.helpers.fake_sweep import keep

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium, or Google Chrome"),
]


@pytest.fixture
def page(made_up: Store, tmp_path: Path) -> Path:
    draw = torch.Generator().manual_seed(0)
    kept = {"index": torch.tensor([0, 1])}
    for name in AGAINST:
        kept[f"image/{name}"] = torch.rand(2, 3, 32, 32, generator=draw)
        kept[f"map/{name}"] = torch.randn(2, 3, 32, 32, generator=draw)
    means = {"noise": 0.6, "pgd": 0.3, "explanation-attack": 0.2}
    with made_up.begin() as db:
        sweep = add_sweep(db, "steady")
        job = add_explanation(db, sweep, "a-model-with-a-rather-long-name.py:build", made_up_measures(0, means))
        keep(db, made_up.artifacts, job, "maps", safetensors.torch.save(kept))
        html = explain_html(db, made_up.artifacts, sweep, made_up.url)
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    return tmp_path / "page.html"


def test_a_phone_a_screen_and_paper_show_every_map(page: Path):
    wrong: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width in (390, 1280):
            shown = browser.new_page(viewport={"width": width, "height": 900})
            shown.on("pageerror", lambda error: wrong.append(str(error)))
            shown.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
            shown.goto(page.as_uri())
            assert shown.evaluate("document.documentElement.scrollWidth") <= width
            sizes = shown.evaluate("[...document.images].map(i => [i.naturalWidth, i.clientWidth, i.clientHeight])")
            assert len(sizes) == 2 + 2 * (4 + 4 + 3)
            assert all(natural > 0 and across > 30 for natural, across, _ in sizes)
            maps = sizes[2:]
            assert all(abs(across - high) <= 1 for _, across, high in maps)  # square, as the images are
            assert len({across for _, across, _ in maps}) == 1
            # The four stand in a row, under words that do not reach into the next column.
            heads = shown.locator(".maps thead th")
            assert heads.evaluate_all("all => all.every(one => one.scrollWidth <= one.clientWidth)")
        shown.emulate_media(media="print")
        assert shown.evaluate("[...document.images].every(i => i.clientWidth > 10)")
        browser.close()
    assert wrong == []
