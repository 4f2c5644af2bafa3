"""The page in a browser: no request, no error, usable by keyboard and on a phone, on paper and in the dark."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from robustq.jobs.report.write import write_report
from robustq.jobs.store.connection import open_store
from tests.helpers.fake_results import add_result
from tests.helpers.fake_sweep import distrust, fill
from tests.helpers.html_reading import TOKEN, served

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium, or Google Chrome"),
]
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
MODELS = {"weak": 0.1, "middling": 0.3, "strong": 1.0, HOSTILE: 0.2, "masked": 3.0}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    store = open_store(str(folder / "results.db"), create=True, write=True)
    fill(store, MODELS)
    with store.begin() as db:
        distrust(db, "masked", "90 % of the images have no gradient")
    write_report(store, "made-up", folder / "page.html", None)
    store.engine.dispose()
    return folder / "page.html"


@pytest.fixture
def opened(browser, report) -> Iterator[Any]:
    """A function that opens the report, and that asserts in the end that nothing was asked for and nothing went wrong."""
    wrong: list[str] = []
    contexts = []

    def open_page(**options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        watch(page, wrong, report.as_uri())
        page.goto(report.as_uri())
        page.wait_for_function("document.documentElement.dataset.ready === 'yes'")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def watch(page: Any, wrong: list[str], address: str) -> None:
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((address, "data:")) else wrong.append(r.url))


def column(page: Any, table: str, place: int) -> list[str]:
    """The texts of a column, of the rows that are shown."""
    return page.locator(f'[data-table="{table}"] tbody tr:visible > :nth-child({place})').all_inner_texts()


def test_names_are_texts_and_charts_are_drawn(opened):
    page = opened()
    assert page.title() == "made-up: robustness report"
    assert page.locator("figure.chart").count() >= 8
    assert page.evaluate("[...document.querySelectorAll('figure.chart')].every(f => f.querySelector('svg.main-svg'))")
    assert HOSTILE in page.locator("#curve-worst-Linf .legendtext").all_text_contents()
    assert "masked" not in page.locator("figure.chart .legendtext").all_text_contents()


def test_what_is_drawn_or_pictured_has_words(opened):
    page = opened()
    bare = page.evaluate(
        "[...document.querySelectorAll('img, svg, .plot, [role=img]')].filter(e => !(e.alt || e.ariaLabel || "
        "e.closest('[aria-label], [aria-hidden=true]'))).map(e => e.outerHTML.slice(0, 90))"
    )
    assert bare == []
    assert page.locator(".plot").count() == page.locator(".plot[role=img][aria-label]").count() >= 8
    loose = "[...document.querySelectorAll('th')].filter(e => !e.scope).length"
    assert page.evaluate(loose) == 0
    assert page.evaluate("[...document.querySelectorAll('table')].filter(e => !e.caption).length") == 0
    unnamed = "[...document.querySelectorAll('input, select')].filter(e => !e.labels.length).length"
    assert page.evaluate(unnamed) == 0


def test_headings_sort_by_click_and_by_keyboard(opened):
    page = opened()
    heading = page.locator('[data-table="leaderboard"] thead th', has_text="model")
    assert heading.get_attribute("aria-sort") is None
    heading.locator("button").click()
    names = column(page, "leaderboard", 1)
    assert heading.get_attribute("aria-sort") == "ascending"
    assert names == sorted(names, key=str.lower) and len(names) == len(MODELS)
    robust = page.locator('[data-table="leaderboard"] thead th', has_text="robust %")
    robust.locator("button").focus()
    page.keyboard.press("Enter")
    assert (robust.get_attribute("aria-sort"), heading.get_attribute("aria-sort")) == ("descending", None)
    assert column(page, "leaderboard", 1)[0] == "strong"
    assert column(page, "leaderboard", 1)[-1] == "masked"  # no number, whatever it claimed
    page.keyboard.press("Space")
    assert robust.get_attribute("aria-sort") == "ascending"
    assert column(page, "leaderboard", 1)[:2] == ["masked", "weak"]


def test_rows_are_found_by_words_and_by_choice(opened):
    page = opened()
    count = page.locator('[data-table="leaderboard"] .count')
    assert count.inner_text() == "5 of 15 rows"  # the headline's radius is chosen
    page.get_by_label("eps").first.select_option("")
    assert count.inner_text() == "15 rows"
    page.get_by_label("Find").first.fill("middling")
    assert column(page, "leaderboard", 1) == ["middling"] * 3
    page.get_by_label("eps").first.select_option("0.2")
    assert column(page, "leaderboard", 5) == ["0.2"]
    page.get_by_label("Find").first.fill("nothing like it")
    assert count.inner_text() == "0 of 15 rows"


def test_each_view_has_an_address_of_its_own(opened, report):
    page = opened()
    assert page.evaluate("location.hash") == ""
    page.get_by_label("eps").first.select_option("")
    page.get_by_label("Find").first.fill("middling")
    page.locator('[data-table="leaderboard"] thead th', has_text="eps").locator("button").click()
    shown = column(page, "leaderboard", 5)
    assert shown == ["0.2", "0.1", "0.05"]
    address = page.evaluate("location.href")
    assert "#leaderboard?" in address and "leaderboard.find=middling" in address
    page.locator("nav a", has_text="Checks").click()
    assert page.evaluate("location.hash").startswith("#checks?leaderboard.find=middling")
    again = opened()
    again.goto("about:blank")
    again.goto(address)
    again.wait_for_function("document.documentElement.dataset.ready === 'yes'")
    assert column(again, "leaderboard", 1) == ["middling"] * 3 and column(again, "leaderboard", 5) == shown
    assert again.evaluate("document.getElementById('leaderboard').getBoundingClientRect().top") < 200
    again.goto("about:blank")
    again.goto(f"{report.as_uri()}#leaderboard?leaderboard.sort=99&leaderboard.4=7&x=y")  # of another page
    again.wait_for_function("document.documentElement.dataset.ready === 'yes'")
    assert len(column(again, "leaderboard", 1)) == 15


def test_pictures_are_chosen_by_outcome_class_and_model(opened):
    page = opened()
    count = page.locator("#pictures .count")
    images = page.locator("#pictures .grid li")
    whole = images.count()
    assert count.inner_text() == f"{whole} images"
    page.locator("#images-kind").select_option("broken")
    broken = page.locator("#pictures .grid li.broken").count()
    assert 0 < broken < whole and count.inner_text() == f"{broken} of {whole} images"
    page.locator("#images-kind").select_option("stands")
    assert count.inner_text() == f"{whole - broken} of {whole} images"
    page.locator("#images-kind").select_option("")
    label = images.first.get_attribute("data-label")
    page.locator("#images-label").select_option(label)
    of_class = page.locator(f'#pictures .grid li[data-label="{label}"]').count()
    assert 0 < of_class < whole and count.inner_text() == f"{of_class} of {whole} images"
    grids = page.locator("#pictures details[data-grid]")
    last = grids.nth(grids.count() - 1).get_attribute("data-grid")
    page.locator("#images-grid").select_option(last)
    assert page.locator("#pictures details[data-grid]:visible").count() == 1
    assert f"images.label={label}" in page.evaluate("location.hash")
    page.reload()
    page.wait_for_function("document.documentElement.dataset.ready === 'yes'")
    assert page.locator("#images-label").input_value() == label
    assert page.locator("#pictures details[data-grid]:visible").count() == 1


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_no_page_is_wider_than_its_screen(opened, width):
    page = opened(viewport={"width": width, "height": 740}, has_touch=width == 360, is_mobile=width == 360)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate(
        "[...document.querySelectorAll('.plot')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    )
    assert wide == 0


def luminance(colour: list[int]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(page: Any, selector: str) -> float:
    """Of a text with the page's ground, by WCAG 2.1."""
    rgb = (
        "([s, what]) => { const c = document.createElement('canvas').getContext('2d');"
        " c.fillStyle = getComputedStyle(document.querySelector(s))[what]; c.fillRect(0, 0, 1, 1);"
        " return [...c.getImageData(0, 0, 1, 1).data].slice(0, 3); }"
    )
    text = page.evaluate(rgb, [selector, "fill" if "text" in selector else "color"])
    light, dark = sorted((luminance(text), luminance(page.evaluate(rgb, ["body", "backgroundColor"]))), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_in_either_theme(opened, scheme):
    page = opened(color_scheme=scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for selector in ("body", ".quiet", "td.pass", "td.fail", "nav a", ".plot .xtick text", ".plot .legendtext"):
        assert contrast(page, selector) >= 4.5, selector
    other = "light" if scheme == "dark" else "dark"
    page.get_by_label("Colours").select_option(other)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != ground
    assert contrast(page, ".plot .xtick text") >= 4.5
    page.reload()
    assert page.get_by_label("Colours").input_value() == other


def test_paper_is_light_and_holds_the_charts(opened):
    page = opened(color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 690, "height": 1000})  # A4 within its margins, in CSS pixels
    assert not page.locator("nav").is_visible() and not page.locator(".filters").first.is_visible()
    assert contrast(page, "body") > 10
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    drawn = page.evaluate("[...document.querySelectorAll('.plot .main-svg')].map(e => e.getBoundingClientRect().right)")
    assert drawn and max(drawn) <= 690
    assert page.locator("#pictures-2 img").first.is_visible()  # what was folded is open on paper
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen")
    assert not page.locator("#pictures-2 img").first.is_visible()


def test_the_skip_link_is_the_first_stop(opened):
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the answer"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "verdict"


def test_a_result_appears_on_the_live_page(browser, made_up):
    sweep_id = fill(made_up, {"strong": 1.0, "weak": 0.1})
    wrong: list[str] = []
    context = browser.new_context()
    with served(Path(made_up.artifacts).parent / "results.db") as port:
        page = context.new_page()
        watch(page, wrong, f"http://127.0.0.1:{port}/")
        page.goto(f"http://127.0.0.1:{port}/?token={TOKEN}")
        assert page.url == f"http://127.0.0.1:{port}/"  # by which the cookie asks from now on
        page.get_by_label("Find").first.fill("newcomer")
        page.locator('[data-table="leaderboard"] thead button', has_text="model").click()
        page.get_by_label("Find").first.focus()
        with made_up.begin() as db:
            add_result(db, sweep_id, "newcomer", "pgd", 0.1)
        page.locator('[data-table="leaderboard"] tbody th', has_text="newcomer").wait_for(timeout=20_000)
        assert column(page, "leaderboard", 1) == ["newcomer"]  # what was searched for still is
        assert page.evaluate("document.activeElement.id") == "find-leaderboard"
        assert "newcomer" in page.locator("figure.chart .legendtext").all_text_contents()
        with made_up.begin() as db:
            add_result(db, sweep_id, HOSTILE, "pgd", 0.1)
        page.get_by_label("Find").first.fill("owned")
        page.locator('[data-table="leaderboard"] tbody th', has_text="owned").wait_for(timeout=20_000)
        assert page.title() == "made-up: robustness report"
        context.close()
    assert not wrong
