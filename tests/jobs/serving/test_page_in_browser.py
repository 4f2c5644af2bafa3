"""The page of a server in a browser: what is sent, and what is said of the answer."""

import base64
import io
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from robustlib.packages.golden import Golden, as_floats, read_golden
from robustlib.packages.manifest import GOLDEN, ONNX, open_package
from robustq.jobs.packages.make import Made
from robustq.jobs.serving.answers import Program
from tests.helpers.served import running
from tests.helpers.served_package import brightness_application, program_application

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium, or Google Chrome"),
]
DROP = """([name, type, text]) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)), given = new DataTransfer();
  given.items.add(new File([bytes], name, { type }));
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: given, bubbles: true }));
}"""
Open = Callable[..., Any]
TOKEN = "of-tests-0123456"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def program(made: Made) -> Iterator[str]:
    with running(program_application(made.place)) as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def votes(made: Made) -> Iterator[str]:
    with running(brightness_application(made.place)) as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def golden(made: Made) -> Golden:
    return read_golden(open_package(made.place).read(GOLDEN))


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """A function that opens a page, and that asserts in the end that nothing else was asked and nothing went wrong.

    Arrays that the page sends are in its `sent`. but: what the console may say.  within: where its requests go.
    """
    wrong: list[str] = []
    contexts = []

    def open_page(address: str, but: str = "^$", within: str = "", **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.sent = []

        def told(message: Any) -> None:
            if message.type in ("error", "warning") and not re.search(but, message.text):
                wrong.append(message.text)

        def asked(request: Any) -> None:
            if not request.url.startswith((within or address, "data:")):
                wrong.append(request.url)
            if request.method == "POST":
                page.sent.append(np.load(io.BytesIO(request.post_data_buffer), allow_pickle=False))

        page.on("console", told)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", asked)
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def drop(page: Any, data: bytes, name: str = "mine.png", kind: str = "image/png") -> None:
    page.evaluate(DROP, [name, kind, base64.b64encode(data).decode()])


def done(page: Any) -> None:
    page.locator("#again:visible").wait_for(timeout=30_000)


def test_a_dropped_golden_image_gets_its_golden_answer(opened: Open, program: str, golden: Golden, made: Made):
    page = opened(program)
    for number in (0, 5):
        page.sent.clear()
        drop(page, png(golden.images[number, 0]))
        label = golden.logits[ONNX][number].argmax()
        page.locator("#class", has_text=re.compile(f"^{made.card.classes[label]}$")).wait_for()
        done(page)
        assert page.sent[0].dtype == np.uint8 and (page.sent[0] == golden.images[number : number + 1]).all()
    assert page.locator("#scores .name").count() == 5
    shares = np.exp(golden.logits[ONNX][5]) / np.exp(golden.logits[ONNX][5]).sum()
    assert page.locator("#scores .n").first.inner_text() == f"{100 * shares.max():.1f} %"
    assert "Nothing is certified" in page.locator("#certificate").inner_text()
    assert page.locator("#signals").inner_text() in ("Nothing watches requests here.", "No signal was raised.")
    assert page.locator("#source-figure").is_hidden()


def test_the_noise_is_gaussian_and_its_answers_are_counted(opened: Open, program: str, made: Made):
    page = opened(program)
    drop(page, png(np.full((8, 8), 128, np.uint8)))
    done(page)
    image, *copies = page.sent
    assert [len(array) for array in copies] == [16] * 6 and image.shape == (1, 1, 8, 8)
    for sigma, array in zip((0.02, 0.05, 0.1), copies, strict=False):  # the others are cut off at black and white
        noise = (array.astype(float) - 128) / 255
        assert abs(noise.mean()) < 4 * sigma / 32 and abs(noise.std() / sigma - 1) < 0.1
        assert len(np.unique(array.reshape(16, -1), axis=0)) == 16
    engine = Program(open_package(made.place))
    (kept,) = engine.answer(as_floats(image))
    figures = page.locator("#noise-strip figure")
    for i, array in enumerate(copies):
        labels = [answer.label for answer in engine.answer(as_floats(array))]
        told = f"{labels.count(kept.label)} of 16 stay {made.card.classes[kept.label]}"
        assert told in figures.nth(i).inner_text()
    page.sent.clear()
    page.locator("#again").click()
    page.locator("#again").wait_for(state="hidden")
    done(page)
    assert len(page.sent) == 6 and (page.sent[0] != copies[0]).any()


def test_colours_become_grey_as_pillow_has_it(opened: Open, program: str):
    page = opened(program)
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
    drop(page, png(pixels))
    done(page)
    assert (page.sent[0][0, 0] == np.asarray(Image.fromarray(pixels).convert("L"))).all()
    assert page.locator("#note").inner_text() == "Your file mine.png. Its colours became grey."


def test_another_size_is_resized_and_said(opened: Open, program: str):
    page = opened(program)
    pixels = np.zeros((12, 20), np.uint8)
    pixels[:, 4:16] = 200  # the square in the middle
    drop(page, png(pixels))
    done(page)
    assert page.sent[0].shape == (1, 1, 8, 8) and (page.sent[0] == 200).all()
    said = page.locator("#note").inner_text()
    assert "has 20x12 pixels: it was cut to 12x12 in the middle and resized to 8x8" in said
    assert page.locator("#source-figure").is_visible()


@pytest.mark.parametrize(
    ("grey", "state", "told"),
    [
        (250, "box holds", "within an L2 distance of 0.25 gives another class. Spread evenly, that is 7.97 of 255"),
        (128, "box abstained", "The server abstains: no class is certain."),
    ],
)
def test_certificates_are_told_in_words(opened: Open, votes: str, grey: int, state: str, told: str):
    page = opened(votes)
    drop(page, png(np.full((8, 8), grey, np.uint8)))
    done(page)
    box = page.locator("#certificate")
    assert box.get_attribute("class") == state and told in box.inner_text()
    assert "1,000 noisy copies (sigma 0.25) voted; all that is said here is wrong with a chance" in box.inner_text()
    assert ("Not certified within 0.5:" in box.inner_text()) == (grey == 250)
    assert page.locator("#class").inner_text() == ("1" if grey == 250 else "No class: the server abstains")
    assert page.locator("#scores .n").all_inner_texts()[:2] == (
        ["90.0 %", "10.0 %"] if grey == 250 else ["51.0 %", "49.0 %"]
    )
    assert "4 of 4" in page.locator("#noise-strip figure").first.inner_text()
    raised = "Signals raised: out-of-range (as of 2.0 % of clean images). They are monitoring, no defence."
    assert page.locator("#signals").inner_text() == raised
    assert page.locator("#noise-strip", has_text="signals:").count() == 0


def test_what_goes_wrong_is_one_line(opened: Open, votes: str):
    page = opened(votes, but="status of 500")
    drop(page, b"no image", "notes.txt", "text/plain")
    error = page.locator("#error")
    error.wait_for()
    assert error.inner_text() == "notes.txt is no image that this browser reads: expected PNG, JPEG, WebP or GIF"
    drop(page, png(np.zeros((8, 8), np.uint8)))
    page.locator("#error", has_text="the server answers 500: the model failed on this request").wait_for()
    drop(page, png(np.full((8, 8), 250, np.uint8)))
    done(page)
    assert error.is_hidden() and page.locator("#class").inner_text() == "1"


def test_the_token_of_the_address_is_kept_by_a_cookie(opened: Open, made: Made, golden: Golden):
    with running(program_application(made.place, TOKEN)) as port:
        address = f"http://127.0.0.1:{port}/"
        assert "Expected the token" in opened(address, but="status of 403").inner_text("body")
        page = opened(f"{address}?token={TOKEN}", within=address)
        assert page.url == address
        drop(page, png(golden.images[0, 0]))
        done(page)
        assert page.locator("#class").inner_text() == made.card.classes[golden.logits[ONNX][0].argmax()]


def test_a_golden_image_is_chosen_by_keyboard(opened: Open, program: str, golden: Golden):
    page = opened(program)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the image"
    page.keyboard.press("Enter")
    for _ in range(2):
        page.keyboard.press("Tab")
    page.keyboard.press("Space")
    done(page)
    page.sent.clear()
    page.keyboard.press("ArrowRight")
    done(page)
    assert (page.sent[0] == golden.images[1:2]).all()
    assert page.locator("#note").inner_text() == f"Golden image 1, labelled {golden.labels[1]}."


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_the_page_fits_its_screen_in_either_theme(opened: Open, program: str, width: int, scheme: str):
    page = opened(program, viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.locator("#golden input").first.check(force=True)
    done(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"dark": "rgb(21, 24, 28)", "light": "rgb(255, 255, 255)"}[scheme]
    page.get_by_label("Colours").select_option("light" if scheme == "dark" else "dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != ground
    bare = "[...document.querySelectorAll('img, canvas')].filter(e => !e.alt && !e.ariaLabel).length"
    assert page.evaluate(bare) == 0
