"""Pictures with names of any kind: they are texts, and no formula, command or box comes of them."""

import io
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from robustq.jobs.report import figures
from robustq.jobs.report.write import file_names, write_report
from tests.helpers.fake_sweep import fill

# As it is given, and as a picture shows it.
NAMES = {
    "plain-1": "plain-1",
    "$x": "$x",
    "$a$": "$a$",
    "$\\frac{$": "$\\frac{$",
    "costs $5 or $6": "costs $5 or $6",
    "$\\undefined$": "$\\undefined$",
    "\\$": "\\$",
    "_hidden": "_hidden",
    "__": "__",
    "a_b^c{d}\\e%f#g&h~": "a_b^c{d}\\e%f#g&h~",
    "a\nb\tc": "a b c",
    "\x1b[31mred\x07": "red\\x07",
    "\x00": "\\x00",
    "\u202eturned": "\\u202eturned",
    "\ud800": "\\ud800",
    "猫": "\\u732b",
    "🐈": "\\U0001f408",
    "größer ∞ ±ε": "größer ∞ ±ε",
    "x" * 5000: "x" * 40 + "..." + "x" * 15,
    "": "",
}


@pytest.fixture(params=NAMES, ids=ascii)
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield request.param


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts of what is drawn, as they stand in it, and none read as a formula."""
    found: list[str] = []
    draw = Text.draw

    def noted(self: Text, *args: Any, **options: Any) -> None:
        found.append(self.get_text())
        assert not self.get_parse_math() and not self.get_usetex()
        draw(self, *args, **options)

    monkeypatch.setattr(Text, "draw", noted)
    return found


def row(name: str, eps: float) -> dict[str, Any]:
    accuracy = {"robust_accuracy": 0.5, "robust_accuracy_low": 0.4, "robust_accuracy_high": 0.6}
    return {"model": name, "eps": eps, "norm": "Linf", "seed": 0} | accuracy


def curve(name: str, form: str = "png") -> bytes:
    return figures.eps_curve(name, [row(name, eps) for eps in (0.1, 0.2)], form=form)


def confusion(name: str, form: str = "png") -> bytes:
    return figures.confusion(name, {name: np.eye(3, dtype=int)}, [name] * 3, form=form)


def grid(name: str, form: str = "png") -> bytes:
    return figures.picture_grid(name, np.zeros((2, 1, 4, 4)), np.ones((2, 1, 4, 4)), [(name, name)] * 2, form=form)


def history(name: str, form: str = "png") -> bytes:
    epochs = [{"epoch": i, "clean_accuracy": 0.5, "attacked_accuracy": 0.4} for i in range(2)]
    return figures.training_figure([{"model": name, "seed": 3, "extra": {"history": epochs}}], form=form)


@pytest.mark.slow
@pytest.mark.parametrize(("draw", "times"), [(curve, 2), (confusion, 4), (grid, 5), (history, 0)])
def test_a_name_stands_in_a_picture_as_it_is(draw: Callable[[str], bytes], times: int, name: str, drawn: list[str]):
    before = plt.get_fignums()
    assert Image.open(io.BytesIO(draw(name))).format == "PNG"
    shown = NAMES[name]
    assert shown in drawn or name == "x" * 5000 or f"{shown}, seed 3" in drawn or not shown
    if name not in ("", "x" * 5000) and times:
        assert drawn.count(shown) >= times  # a figure with a tight box is drawn more than once
    assert plt.get_fignums() == before


def test_settings_of_the_user_make_no_formulas_either(drawn: list[str]):
    with matplotlib.rc_context({"text.usetex": True, "text.parse_math": True}):
        curve("$a$ \\input{/etc/passwd}")
    assert "$a$ \\input{/etc/passwd}" in drawn


def test_a_figure_that_fails_is_closed(monkeypatch: pytest.MonkeyPatch):
    def fails(*args: Any, **options: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fails)
    before = plt.get_fignums()
    with pytest.raises(MemoryError):
        curve("a")
    assert plt.get_fignums() == before


@pytest.mark.slow
@pytest.mark.parametrize("draw", [curve, confusion, grid, history])
def test_vector_figures_are_whole_the_same_each_time_and_hold_no_date(draw: Callable[..., bytes]):
    """An SVG is XML with the drawing in it; a PDF has fonts that can be searched, and begins and ends as one."""
    first, again = (draw("a<b> & $c$", form="svg") for _ in range(2))
    assert first == again and b"<dc:date>" not in first
    root = ElementTree.fromstring(first)
    assert root.tag.endswith("}svg") and len(list(root.iter())) > 30
    first, again = (draw("a<b> & $c$", form="pdf") for _ in range(2))
    assert first == again and b"/CreationDate" not in first
    assert first.startswith(b"%PDF-") and first.rstrip().endswith(b"%%EOF") and b"/Type3" not in first


@pytest.mark.slow
def test_a_curve_over_seeds_says_what_line_and_band_are(drawn: list[str]):
    figures.eps_curve("t", [row("m", eps) | {"seed": seed} for eps in (0.1, 0.2) for seed in (0, 1)])
    assert "mean over 2 seeds, band from the lowest to the highest end of their 95 % intervals" in drawn
    drawn.clear()
    curve("t")
    assert "band: 95 % intervals" in drawn


@pytest.mark.slow
@pytest.mark.parametrize(
    ("difference", "words"), [(0.0, "no difference"), (0.05, "difference x10"), (2.5e-6, "difference x200 000")]
)
def test_a_difference_is_magnified_in_plain_numbers(difference: float, words: str, drawn: list[str]):
    clean = np.full((1, 1, 4, 4), 0.5)
    figures.picture_grid("t", clean, clean + difference, [("a", "b")])
    assert words in drawn


@pytest.mark.slow
def test_figures_of_several_forms_are_files_of_the_same_names(made_up, tmp_path):
    fill(made_up, {"a": 0.5}, radii=(0.1, 0.2), images=2)
    written = write_report(made_up, "made-up", tmp_path / "p.html", tmp_path / "f", forms=("svg", "pdf"))[1:]
    names = {form: {path.stem for path in written if path.suffix == f".{form}"} for form in ("svg", "pdf", "png")}
    assert names["svg"] == names["pdf"] != set() and not names["png"]
    assert {"training", "confusion-a", "images-a", "eps-curve-pgd-Linf"} <= names["svg"]


@pytest.mark.slow
def test_every_picture_has_a_file(made_up, tmp_path):
    """Names that become the same in a file's name, or longer than one may be."""
    models = {"a/b": 1.0, "a b": 0.5, "A b": 0.3, "$\\frac{$": 0.2, "é" * 300: 0.1, "..": 0.4}
    fill(made_up, models)
    written = write_report(made_up, "made-up", tmp_path / "page.html", tmp_path / "figures")[1:]
    for kind in ("confusion-", "images-"):
        assert len([path for path in written if path.name.startswith(kind)]) == len(models)
    assert len({str(path).lower() for path in written}) == len(written)
    assert all(path.parent == tmp_path / "figures" and path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_names_of_files_are_what_they_were():
    assert file_names(["training", "images-a", "images-A"]) == ["training.png", "images-a.png", "images-A-2.png"]
    assert file_names(["x" * 120, "x" * 121]) == ["x" * 120 + ".png", "x" * 120 + "-1.png"]
