"""YAML that means nothing, holds itself or costs too much: one line with the place in the file, and soon."""

from pathlib import Path

import pytest

from robustq.jobs.errors import SpecError
from robustq.jobs.study.study import load_study
from robustq.jobs.study.yaml_with_lines import MOST_BYTES, read_value, read_yaml
from tests.helpers.bounded import bounded

TAGS = {
    "!!timestamp x": "'x' is nothing that its tag !!timestamp means", "!!bool x": "'x' is nothing that its tag !!bool means",
    "!!int ''": "'' is nothing that its tag !!int means", "!!float _": "'_' is nothing that its tag !!float means",
    "!!int x": "'x': invalid literal for int()", "!!float x": "'x': could not convert string to float",
    "!!timestamp '2026-13-01'": "'2026-13-01': month must be in 1..12", "!!binary x": "failed to decode base64 data",
    "!!set {a}": "could not determine a constructor for the tag 'tag:yaml.org,2002:set': leave the tag out",
    "=": "a bare = is no value: quote it, as '='", "&a [*a]": "an anchor that holds itself",
    '"a\\0b"': r"expected text, got the character '\x00' in it", '"\\ud800"': r"expected text, got the character '\ud800' in it",
    "0" + "9" * 5000: "expected a number of at most 400 digits, got one of 5001",
    "0x" + "F" * 5000: "expected a number of at most 400 digits, got one of 5002",
    "[" * 70 + "]" * 70: "expected parts within at most 64 others",
}  # fmt: skip


@pytest.mark.parametrize("text", TAGS, ids=[text[:30] for text in TAGS])
def test_a_tag_that_means_nothing_is_told_with_its_line(tmp_path: Path, text: str):
    (tmp_path / "s.yaml").write_text(f"name: a\nother: {text}\n")
    with pytest.raises(SpecError) as caught:
        read_yaml(tmp_path / "s.yaml")
    assert str(caught.value).startswith(f"{tmp_path}/s.yaml:2: ") and TAGS[text] in str(caught.value)
    with pytest.raises(ValueError):
        read_value(text)


def test_a_character_that_there_is_none_of(tmp_path: Path):
    (tmp_path / "s.yaml").write_text('name: "\\U00110000"\n')
    with pytest.raises(SpecError, match="no valid YAML"):
        read_yaml(tmp_path / "s.yaml")


def test_what_is_large_is_refused_before_it_is_read(tmp_path: Path):
    (tmp_path / "s.yaml").write_bytes(b"# " + b"x" * MOST_BYTES)
    with bounded(5), pytest.raises(SpecError, match=r"expected a study of at most 8 MB, got 8\.\d+ MB"):
        read_yaml(tmp_path / "s.yaml")


@pytest.mark.slow
def test_very_many_parts_are_refused_before_all_are_read(tmp_path: Path):
    (tmp_path / "s.yaml").write_text("a: [" + "1," * 3_000_000 + "]")
    with bounded(), pytest.raises(SpecError, match="at most 100000 parts"):
        read_yaml(tmp_path / "s.yaml")


@pytest.mark.parametrize("place", ["'..:b'", "'.a:b'", "'os.:b'", "'sys:exit'", "'none.such:b'"])
def test_modules_that_are_none(tmp_path: Path, place: str):
    from robustq.jobs.submission.expand_study import resolve

    (tmp_path / "s.yaml").write_text(f"models: {{a: {{file: {place}}}}}\nattacks: [{{name: pgd, eps: 0.1}}]\n")
    study, origin = load_study(tmp_path / "s.yaml", {})
    with pytest.raises(SpecError, match="there is no module"):
        resolve(study, origin, tmp_path, tmp_path)


def test_a_name_is_no_book(tmp_path: Path):
    text = "name: {}\nmodels: {{a: {{file: 'm.py:b'}}}}\nattacks: [{{name: pgd, eps: 0.1}}]\n"
    (tmp_path / "s.yaml").write_text(text.format("x" * 200))
    assert load_study(tmp_path / "s.yaml", {})[0].name == "x" * 200
    (tmp_path / "s.yaml").write_text(text.format("x" * 201))
    with pytest.raises(SpecError, match=r"s\.yaml:1: name: string should have at most 200 characters"):
        load_study(tmp_path / "s.yaml", {})
