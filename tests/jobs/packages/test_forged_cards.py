"""Cards from elsewhere: what no package could say is refused by the schema, before anybody reads it."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from robustlib.packages.contents import PackageError
from robustlib.packages.manifest import open_package
from robustq.jobs.packages.card import Card, card_of
from robustq.jobs.packages.make import Made
from robustq.jobs.packages.verify import verify
from robustq.jobs.serving.facts import facts_of, reading_of
from robustq.jobs.text.bounded_fields import MOST_LETTERS
from tests.helpers.packaged import altered

LONG = "x" * 10_000_000


def parts_of(schema: dict[str, Any], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every part of a JSON schema that is a type, with its place."""
    if "type" in schema or "const" in schema or "enum" in schema:
        yield where, schema
    for name in ("properties", "$defs"):
        for key, part in schema.get(name, {}).items():
            yield from parts_of(part, f"{where}.{key}")
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            yield from parts_of(schema[name], f"{where}.*")
    for part in (*schema.get("anyOf", ()), *schema.get("prefixItems", ())):
        yield from parts_of(part, where)


def test_every_number_has_its_range_and_every_text_its_length():
    parts = list(parts_of(Card.model_json_schema(), "card"))
    texts = [part for part in parts if part[1].get("type") == "string" and not part[1].keys() & {"const", "enum"}]
    numbers = [part for part in parts if part[1].get("type") in ("number", "integer")]
    assert len(texts) > 40 and len(numbers) > 40
    assert [where for where, part in texts if "maxLength" not in part and "pattern" not in part] == []
    assert [where for where, part in numbers if not {"minimum", "maximum"} <= part.keys()] == []


def changed(card: Any, where: str, value: Any) -> Any:
    """The card as JSON with another value at a place such as `clean.low`."""
    copy = json.loads(json.dumps(card))
    *path, last = [int(part) if part.isdecimal() else part for part in where.split("/")]
    inner = copy
    for part in path:
        inner = inner[part]
    inner[last] = value
    return copy


FORGED = [
    ("clean/low", -0.5, "clean.low: Input should be greater than or equal to 0"),
    ("clean/n", -1, "clean.n: Input should be greater than or equal to 0"),
    ("clean/accuracy", math.nan, "clean.accuracy: Input should be a finite number"),
    ("evaluations/0/eps", math.inf, "evaluations.0.eps: Input should be a finite number"),
    ("evaluations/0/eps", 1e308, "evaluations.0.eps: Input should be less than or equal to 1000000000"),
    ("evaluations/0/recipe", LONG, f"evaluations.0.recipe: String should have at most {MOST_LETTERS} characters"),
    ("explanations/0/disturbed/0/ssim/mean", 1e308, "explanations.0.disturbed.0.ssim.mean: Input should be less than"),
    (
        "network/normalisation/mean/0",
        1e308,
        "network.normalisation.mean.0: Input should be less than or equal to 35000",
    ),
    ("network/options", {"deep": [{"er": math.nan}]}, "network.options: Value error, a number in it should be finite"),
    ("network/options", {LONG: 1}, f"network.options: Value error, a text in it should have at most {MOST_LETTERS} "),
    ("network/defence", [{}], "network.defence.0.name: Field required"),
    ("preprocessing/size/0", 0, "preprocessing.size.0: Input should be greater than or equal to 1"),
    ("programs/0/latency/0/p50", -1.0, "programs.0.latency.0.p50: Input should be greater than or equal to 0"),
    ("golden/tolerance/model.onnx", math.inf, "golden.tolerance.model.onnx: Input should be a finite number"),
    ("training/validation/loss", -math.inf, "training.validation.loss: Input should be a finite number"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("where", "value", "line"), FORGED, ids=[f"{where} {str(v)[:9]}" for where, v, _ in FORGED])
def test_what_no_package_says_is_refused(made: Made, place: Path, tmp_path: Path, where: str, value: Any, line: str):
    card = changed(made.card.model_dump(mode="json"), where, value)
    copy = altered(place, tmp_path / "p", files={}, card=card)
    told = [one.line for one in verify(copy).failed if one.what == "card"]
    assert len(told) == 1 and told[0].startswith(f"it is no card of this format: {line}")
    assert len(told[0]) < 400
    with pytest.raises(PackageError, match="it is no card of this format"):
        facts_of(open_package(copy))


@pytest.mark.slow
def test_a_place_in_the_card_is_told_shortly(made: Made, place: Path, tmp_path: Path):
    copy = altered(place, tmp_path / "p", files={}, card={LONG: 1})
    (told,) = [one.line for one in verify(copy).failed if one.what == "card"]
    assert len(told) < 300 and told.endswith("(10000002 letters): Extra inputs are not permitted")


@pytest.mark.slow
def test_a_file_that_no_package_has_is_told_shortly(made: Made, place: Path, tmp_path: Path):
    files = made.card.model_dump(mode="json")["files"] | {LONG: {"sha256": "0" * 64, "bytes": 1}}
    (told,) = [one.line for one in verify(altered(place, tmp_path / "p", files={}, card={"files": files})).failed]
    assert "expected the card to name files as {sha256, bytes}, got 'xxx" in told and len(told) < 400


@pytest.mark.slow
def test_signals_without_a_threshold_are_refused(measured: Made, tmp_path: Path):
    card = changed(measured.card.model_dump(mode="json"), "monitoring/thresholds", {"vote-margin": 0.1})
    with pytest.raises(PackageError, match=r"of each signal, got none of noise-disagreement, repeated-queries$"):
        card_of(open_package(altered(measured.place, tmp_path / "p", files={}, card=card)))


def test_pictures_are_brought_to_no_size_that_no_image_has():
    assert reading_of({"size": [32, 65_536]}).size == (32, 65_536)
    with pytest.raises(PackageError, match=r"preprocessing\.reading: \{'size': \[32, 1000000000\]\}"):
        reading_of({"size": [32, 10**9]})
