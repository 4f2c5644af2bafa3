"""The page of a server, without a browser: what it is made of, and what it may load."""

import io
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustlib.packages.golden import read_golden
from robustlib.packages.manifest import GOLDEN, open_package
from robustq.jobs.packages.card import card_of
from robustq.jobs.packages.make import Made
from robustq.jobs.serving.page import Pictures, page_html, with_code
from tests.helpers.html_reading import Elements
from tests.helpers.served import running
from tests.helpers.served_package import MONITORING, program_application

HOSTILE = "<script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def address(made: Made) -> Iterator[str]:
    with running(program_application(made.place)) as port:
        yield f"http://127.0.0.1:{port}/"


def got(url: str) -> tuple[bytes, dict[str, str]]:
    with urllib.request.urlopen(url) as answer:
        return answer.read(), dict(answer.headers)


def test_all_that_the_page_loads_is_here_and_no_script_is_in_it(address: str):
    body, headers = got(address)
    found = Elements(body.decode())
    assert "script-src 'self';" in headers["content-security-policy"] and "unsafe" not in str(headers)
    assert found.scripts == [""]
    assert not any(name.startswith("on") or name == "style" for _, given in found.tags for name in given)
    names = {given.get("src") or given.get("href") for _, given in found.tags} - {None, "#ask", "data:,"}
    kinds = {name: got(address + str(name))[1]["content-type"].partition(";")[0] for name in names}
    assert {kinds[f"page/golden/{i}.png"] for i in range(40)} == {"image/png"}
    others = {name: kind for name, kind in kinds.items() if not str(name).startswith("page/golden/")}
    assert others == {
        "page/page.css": "text/css",
        "page/page.js": "text/javascript",
        "card.md": "text/markdown",
        "card": "application/json",
        "metrics": "text/plain",
        "health": "application/json",
    }


def test_the_card_is_told_with_its_digest_and_verdicts(address: str, made: Made):
    text = Elements(got(address)[0].decode()).text
    card = made.card
    (pgd,) = [one for one in card.evaluations if one.attack == "pgd"]
    of = f"{100 * pgd.robust.accuracy:.1f} % [{100 * pgd.robust.low:.1f}, {100 * pgd.robust.high:.1f}]"
    assert f"pgd, Linf, eps 0.05 {of} {pgd.verdict} 40 network" in text
    assert made.digest in text and "images of 8x8 pixels (grey)" in text
    for line in card.not_said:
        assert " ".join(line.replace("`", " ").split()) in text


def test_golden_images_are_the_packages_to_the_bit(address: str, place: Path):
    images = read_golden(open_package(place).read(GOLDEN)).images
    for number in (0, len(images) - 1):
        picture = Image.open(io.BytesIO(got(f"{address}page/golden/{number}.png")[0]))
        assert (np.asarray(picture) == images[number, 0]).all()
    for number in (len(images), "9" * 5000, "-1", "x"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            got(f"{address}page/golden/{number}.png")


def test_colours_are_drawn_and_other_channels_are_not():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 4), np.uint8)
    data = Pictures(images).png(1)
    assert data is not None and (np.asarray(Image.open(io.BytesIO(data))) == images[1].transpose(1, 2, 0)).all()
    assert Pictures(images[:, :2]).png(0) is None and Pictures(images).png(2) is None


def test_warnings_stand_first_and_names_are_texts(place: Path):
    card = card_of(open_package(place))
    told = {"name": HOSTILE, "classes": [HOSTILE] * 10, "warnings": ["Not trusted: see `robustq audit`."]}
    html = page_html(card.model_copy(update=told), "0" * 64, [0, 1], mode=HOSTILE, copies=4)
    found = Elements(html)
    assert found.scripts == [""] and found.text.count(HOSTILE) >= 2
    assert html.index("Not trusted") < html.index("<main") and "<code>robustq audit</code>" in html


def test_what_signals_flag_is_told_where_it_was_measured(place: Path):
    card = card_of(open_package(place))
    html = page_html(card.model_copy(update={"monitoring": MONITORING}), "0" * 64, [0], mode="m", copies=4)
    assert "out-of-range 2.0 % of 200 [0.8, 5.0] 0.0 % of 50 [0.0, 7.1]" in Elements(html).text
    without = page_html(card.model_copy(update={"monitoring": None}), "0" * 64, [0], mode="m", copies=4)
    assert "What each signal flags" in html and "What each signal flags" not in without


def test_a_package_that_no_browser_draws_has_the_card_alone(place: Path):
    card = card_of(open_package(place))
    takes = card.preprocessing.model_copy(update={"channels": 2, "colours": "2 channels"})
    html = page_html(card.model_copy(update={"preprocessing": takes}), "0" * 64, [0], mode="m", copies=4)
    assert "A browser can neither read nor draw such images" in html and not re.search("<canvas|<input", html)


def test_backticks_become_code_and_nothing_else_does():
    assert with_code("a `b <i>` c & d") == "a <code>b &lt;i&gt;</code> c &amp; d"
