"""Study files of all kinds: each is read or refused in one line, at once, and nothing is written for one that is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustq.jobs.errors import SpecError
from robustq.jobs.study.study import load_study
from robustq.jobs.submission.study_sources import resolve_file, submit_file

GOOD: dict[str, Any] = {
    "name": "good",
    "dataset": "digits",
    "models": {
        "a": {"arch": "lenet5", "train": {"objective": "pgd", "eps": 0.1, "steps": 3, "epochs": 1}},
        "mine": {"file": "m.py:make", "options": {"width": 3}},
    },
    "attacks": [{"name": "pgd", "eps": [0.1, 0.2], "steps": 5}, {"name": "deepfool", "norm": "L2", "eps": None}],
    "seeds": [0, 1],
    "examples": 10,
}
WORDS = st.sampled_from(
    ["", "a", "pgd", "all", "L2", "Linf", "8/255", "1/0", "digits", "parquet:", "../../etc/passwd", "m.py:make", "~", "\0",
     "🐍", "folder:/", "idx:/nothing", "{}", "x" * 300, "torchvision:resnet18", "os:system"]
)  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), WORDS, st.text(max_size=8), st.dates()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.integers(), inner, max_size=3),
    max_leaves=6,
)


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a tree of dicts and lists."""
    found = [path] if path else []
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return found + [place for key, value in items for place in places(value, (*path, key))]


@st.composite
def mangled(draw: st.DrawFn) -> dict[str, Any]:
    """The good study with some of its parts replaced, dropped or doubled under another name."""
    data = copy.deepcopy(GOOD)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(data)))
        parent = data
        for key in path[:-1]:
            parent = parent[key]
        how = draw(st.sampled_from(["replace", "drop", "add"]))
        if how == "replace":
            parent[path[-1]] = draw(VALUES)
        elif how == "drop":
            del parent[path[-1]]
        elif isinstance(parent, dict):
            parent[draw(WORDS)] = draw(VALUES)
        if not places(data):
            break
    return data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    (folder / "m.py").write_text("def make(): ...\n")
    return folder


def refused_or_read(path: Path) -> None:
    before = sorted(path.parent.iterdir())
    try:
        resolve_file(path, {})
    except SpecError as error:
        assert str(error) and str(path) in str(error)
    assert sorted(path.parent.iterdir()) == before


@pytest.mark.slow
@settings(max_examples=2000, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=mangled())
def test_mangled_studies(folder: Path, data: dict[str, Any]):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(data, allow_unicode=True))
    refused_or_read(path)


@pytest.mark.slow
@settings(max_examples=1500, deadline=2000)
@given(text=st.text(alphabet="abn:,-[]{}&*!|>'\"#%@` \n\t01.~<=?", max_size=60))
def test_text_that_is_nearly_yaml(folder: Path, text: str):
    path = folder / "study.yaml"
    path.write_text(text)
    refused_or_read(path)


@pytest.mark.slow
@settings(max_examples=500, deadline=2000)
@given(data=st.binary(max_size=60))
def test_files_that_are_no_text(folder: Path, data: bytes):
    path = folder / "study.yaml"
    path.write_bytes(data)
    refused_or_read(path)


BOMB = "\n".join(["a0: &a0 [x, x]", *[f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            yaml.safe_dump(GOOD | {"seeds": [10**12]}),
            "seeds.0: input should be less than 2147483648, got 1000000000000",
        ),
        ("? [a, b]\n: 1", "expected a name before the colon, got a list or a mapping"),
        ("a: 2026-13-45", "month must be in 1..12"),
        (BOMB, "expected a study of at most 100000 parts, anchors spelt out"),
        ("a: &a [*a]", "an anchor that holds itself"),
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
        ("!!python/object/apply:os.system ['touch pwned']", "could not determine a constructor"),
        ("models: !!python/name:os.system x", "could not determine a constructor"),
    ],
)
@pytest.mark.timeout(20)
def test_files_that_would_cost_too_much_or_do_something(folder: Path, text: str, message: str):
    path = folder / "study.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=message):
        load_study(path, {})
    assert not (folder / "pwned").exists()


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=mangled())
def test_nothing_is_made_for_a_study_that_is_refused(folder: Path, data: dict[str, Any], tmp_path: Path):
    path, store = folder / "study.yaml", tmp_path / f"{abs(hash(json.dumps(data, default=str)))}.db"
    path.write_text(yaml.safe_dump(data, allow_unicode=True))
    try:
        submit_file(str(store), path, {})
    except SpecError:
        assert not store.exists()
    else:
        assert store.exists()
