"""The page's section of explanations: noise beside every attack, tests in words, and maps with a legend."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from scipy import stats

from robustq.jobs.report.explain_page import explain_html
from robustq.jobs.report.pictures.attribution_pictures import (
    SIGNED,
    UNSIGNED,
    coloured,
    explained_image,
    flattened,
    legend,
)
from robustq.jobs.report.write import write_report
from robustq.jobs.store.connection import Store
from tests.helpers.fake_explanations import AGAINST, add_explanation, made_up_measures
from tests.helpers.fake_results import add_sweep
from tests.helpers.fake_sweep import keep
from tests.helpers.html_reading import Elements, report

PLAIN = {"noise": 0.6, "pgd": 0.3, "explanation-attack": 0.3}
ROBUST = {"noise": 0.6, "pgd": 0.55, "explanation-attack": 0.5}
HOSTILE = "<b>plain"
FAULT = (
    f"saliency of {HOSTILE} at Linf 8/255: the map hardly changes with randomised weights (random-weights 0.95 > 0.8)"
)


@pytest.fixture
def swept(made_up: Store) -> Store:
    """Two models by two methods; saliency of the first hardly changes with its weights. Grad-CAM keeps two images."""
    with made_up.begin() as db:
        sweep = add_sweep(db, "steady")
        for place, (model, means) in enumerate({HOSTILE: PLAIN, "robust": ROBUST}.items()):
            job = add_explanation(db, sweep, model, measured(place, means))
            keep(db, made_up.artifacts, job, "maps", safetensors.torch.save(maps()))
        add_explanation(db, sweep, HOSTILE, measured(0, PLAIN, alike=0.95), method="saliency")
    return made_up


def measured(seed: int, means: dict[str, float], alike: float = 0.1) -> dict[str, np.ndarray]:
    """Measures whose differences are not all the same, as those of `made_up_measures` are."""
    found = made_up_measures(seed, means, alike=alike)
    attacked = found["against"] == "explanation-attack"
    spread = np.random.default_rng(seed + 7).normal(0, 0.05, attacked.sum())
    found["top_intersection"][attacked] = (found["top_intersection"][attacked] + spread).clip(0, 1)
    return found


def maps() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    found = {"index": torch.tensor([0, 3])}
    for name in AGAINST:
        found[f"image/{name}"] = torch.rand(2, 1, 8, 8, generator=draw)
        found[f"map/{name}"] = torch.randn(2, 1, 8, 8, generator=draw)
    return found


def section(html: str) -> str:
    return html[
        html.index('<section id="explanations"') : html.index("</section>", html.index('<section id="explanations"'))
    ]


def test_noise_stands_beside_the_attacks_in_every_row(swept: Store):
    text = section(report(swept, "steady"))
    table = text[text.index('data-table="stability"') : text.index("</table>")]
    heads = re.findall(r"<th scope=\"col\"[^>]*>([^<]*)", table)
    assert heads[4:7] == ["noise %", "pgd %", "explanation-attack %"]
    rows = re.findall(r"<tr><th scope=row>.*?</tr>", table)
    assert len(rows) == 3
    columns = measured(1, ROBUST)
    for name in AGAINST[1:]:
        mean = 100 * columns["top_intersection"][columns["against"] == name].mean()
        assert f">{mean:.1f} [" in rows[1], name
    assert "not trusted (" in rows[2] and "not trusted" not in rows[0] and "✗ not trusted" in rows[2]
    assert all(">40 of 40<" in row for row in rows)


def test_the_tests_in_words_are_those_of_scipy(swept: Store):
    words = Elements(section(report(swept, "steady"))).text
    plain, robust = measured(0, PLAIN), measured(1, ROBUST)

    def top(columns: dict[str, np.ndarray], name: str) -> np.ndarray:
        return columns["top_intersection"][columns["against"] == name]

    beside: Any = stats.wilcoxon(top(robust, "explanation-attack") - top(robust, "noise"), zero_method="pratt")
    means = {name: [f"{100 * top(one, name).mean():.0f} %" for one in (plain, robust)] for name in AGAINST[1:]}
    after, noise = means["explanation-attack"], means["noise"]
    assert (
        beside.pvalue < 1e-4
        and f"On robust, the explanation attack leaves {after[1]} of the top pixels of grad-cam" in words
    )
    assert f"noise of the same size {noise[1]}: p < 1e-4, 40 images" in words
    apart: Any = stats.wilcoxon(
        top(robust, "explanation-attack") - top(plain, "explanation-attack"), zero_method="pratt"
    )
    assert apart.pvalue < 1e-4
    both = f"{after[1]} of its top pixels on robust and {after[0]} on {HOSTILE}"
    assert f"grad-cam (predicted class) keeps {both}: robust is the steadier, p < 1e-4, 40 images" in words
    assert "Explanations that say nothing" in words and FAULT in words
    assert "<b>plain" not in report(swept, "steady").replace("&lt;b>", "")


@pytest.mark.slow
def test_seeds_are_tested_together_and_told_apart(made_up: Store, tmp_path: Path):
    """An explanation of two seeds is one: its images have their means over them. One that fails for a seed is left out."""
    with made_up.begin() as db:
        sweep = add_sweep(db, "seeds")
        for model, place, means, alike in (
            ("plain", 0, PLAIN, 0.1),
            ("robust", 5, ROBUST, 0.1),
            ("odd", 9, PLAIN, 0.95),
        ):
            for seed in (0, 1):
                columns = measured(place + seed, means, alike=alike if seed else 0.1)
                job = add_explanation(db, sweep, model, columns, seed=seed)
                keep(db, made_up.artifacts, job, "maps", safetensors.torch.save(maps()))
    words = Elements(section(report(made_up, "seeds"))).text

    def top(place: int, means: dict[str, float], name: str) -> np.ndarray:
        both = [measured(place + seed, means) for seed in (0, 1)]
        return np.mean([one["top_intersection"][one["against"] == name] for one in both], 0)

    after, noise = (top(0, PLAIN, name) for name in ("explanation-attack", "noise"))
    told = f"leaves {100 * after.mean():.0f} % of the top pixels of grad-cam (predicted class) where they were, noise of the same size"
    assert f"On plain, the explanation attack {told} {100 * noise.mean():.0f} %: p < 1e-4, 40 images" in words
    assert words.count("40 images, means over 2 seeds, Wilcoxon") == 3
    assert "On odd," not in words and "on odd" not in words
    assert "grad-cam of odd at Linf 8/255, seed 1: the map hardly changes" in words and "8/255, seed 0: " not in words
    assert all(
        f"grad-cam of {model}, Linf 8/255, seed {seed}" in words for model in ("plain", "odd") for seed in (0, 1)
    )
    written = write_report(made_up, "seeds", tmp_path / "page.html", tmp_path / "figures")
    names = {path.name for path in written[1:]}
    assert {"maps-grad-cam-plain-seed-0.png", "maps-grad-cam-plain-seed-1.png"} <= names and len(names) == 6


@pytest.mark.slow
def test_a_failed_explanation_has_no_test_and_maps_left_out_are_counted(made_up: Store):
    with made_up.begin() as db:
        sweep = add_sweep(db, "many")
        for place in range(13):
            job = add_explanation(db, sweep, f"m{place}", measured(place, PLAIN, alike=0.95 if place == 0 else 0.1))
            keep(db, made_up.artifacts, job, "maps", safetensors.torch.save(maps()))
    text = section(report(made_up, "many"))
    table = text[text.index('data-table="stability"') : text.index("</table>")]
    rows = re.findall(r"<tr><th scope=row>.*?</tr>", table)
    assert len(rows) == 13 and "1e-4" not in rows[0] and all("1e-4" in row for row in rows[1:])
    assert "Maps of 1 more explanation are not shown here" in Elements(text).text


def test_maps_have_texts_a_legend_and_their_changes(swept: Store):
    found = Elements(section(report(swept, "steady")))
    images = [tags for tag, tags in found.tags if tag == "img"]
    assert all(tags["alt"] and (tags["src"] or "").startswith("data:image/png") for tags in images)
    # Two grids: two legends each, and for two images four pictures, four maps, three changes.
    assert len(images) == 2 * (2 + 2 * (4 + 4 + 3))
    assert "against the class" in found.text and "for the class" in found.text


def test_a_file_that_is_lost_is_told_with_the_command_that_makes_it_again(swept: Store):
    for path in Path(swept.artifacts).rglob("*"):
        if path.is_file():
            path.unlink()
    words = Elements(section(report(swept, "steady"))).text
    assert re.search(r"grad-cam of robust, Linf 8/255: no maps, their file \w+ is missing; robustq retry \d+", words)


def test_the_page_of_one_model_says_the_same_and_loads_nothing(swept: Store):
    with swept.begin() as db:
        html = explain_html(db, swept.artifacts, 1, swept.url)
    words = Elements(html).text
    assert re.search(r"On robust, the explanation attack leaves \d+ % of the top pixels of grad-cam", words)
    assert words.count("replay --job") == 3 and "no maps" not in words
    outside = re.sub(r"(?s)<(script|style)>.*?</\1>", "", html)
    assert {url[:11] for url in re.findall(r'(?:src|href)="([^"]*)', outside)} == {"#answer", "data:image/"}


@pytest.mark.slow
def test_maps_are_drawn_into_files_too(swept: Store, tmp_path: Path):
    written = write_report(swept, "steady", tmp_path / "page.html", tmp_path / "figures")
    names = [path.name for path in written[1:]]
    assert len(names) == 2 and all(name.startswith("maps-grad-cam-") for name in names)
    for path in written[1:]:
        with Image.open(path) as picture:
            assert min(picture.size) > 500


def test_signed_maps_have_two_colours_and_unsigned_ones_one():
    ends = coloured(np.array([[0.0, 0.5, 1.0]]), SIGNED)[:, 0] * 255
    assert np.allclose(ends.T, [SIGNED[0], SIGNED[2], SIGNED[-1]])
    lightness = coloured(np.linspace(0, 1, 50)[None], UNSIGNED)[:, 0].T @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) < 0).all()
    assert legend(signed=False).low == "nothing" and legend(signed=True).middle == "nothing"


def test_a_map_is_the_sum_over_channels_scaled_to_its_largest():
    found = flattened(np.stack([np.full((10, 10), 1.0), np.diag(np.full(10, 3.0))]))
    assert found.max() == 1 and np.allclose(found[0, 1], 1 / 4)
    assert (flattened(np.zeros((3, 4, 4))) == 0).all()


def test_the_change_is_that_of_the_scaled_maps():
    image, clean, other = np.zeros((1, 4, 4)), np.zeros((1, 4, 4)), np.zeros((1, 4, 4))
    clean[0, 0, 0], other[0, 3, 3] = 2.0, 5.0
    found = explained_image(
        7, "cat", {"clean": image, "noise": image}, {"clean": clean, "noise": other},
        {"clean": np.nan, "noise": 0.25}, {"clean": "cat", "noise": "dog"}, signed=True,
    )  # fmt: skip
    assert found.caption == "Class cat; top pixels in common: noise 25 %"
    first, second = found.panels
    assert first.change == "" and second.image_alt == "Image 7, noise: cat, taken for dog"
    assert "upper left" in first.map_alt and "lower right" in second.map_alt and "25 %" in second.map_alt
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(second.change.partition(",")[2]))))
    assert tuple(pixels[0, 0]) == SIGNED[0] and tuple(pixels[3, 3]) == SIGNED[-1] and tuple(pixels[1, 1]) == SIGNED[2]
