"""docs/study.md and docs/defences.md have studies that are ones, and every entry that a study may hold."""

import re
from pathlib import Path

from robustq.jobs.study.entries import StudyAttack, StudyModel
from robustq.jobs.study.study import Study, load_study

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "study.md").read_text()


def yaml_of(page: str) -> str:
    """The first study on a page."""
    return re.findall(r"```yaml\n(.*?)```", page, re.S)[0]


def test_the_study_on_the_page_is_one(tmp_path: Path):
    (tmp_path / "study.yaml").write_text(yaml_of(PAGE))
    study, _ = load_study(tmp_path / "study.yaml", {})
    assert list(study.models) == ["plain", "robust", "random", "given", "my-own"]
    assert study.attacks[1].eps == (2 / 255, 4 / 255, 8 / 255)


def test_so_is_the_one_with_a_grid(tmp_path: Path):
    (tmp_path / "study.yaml").write_text(yaml_of(PAGE.partition("## A grid of settings")[2]))
    study, _ = load_study(tmp_path / "study.yaml", {})
    assert list(study.models) == [f"robust[eps={e},steps={s}]" for e in ("4/255", "8/255") for s in (2, 5)]
    assert [attack.restarts for attack in study.attacks] == [1, 2]


def test_so_is_the_one_with_defences(tmp_path: Path):
    (tmp_path / "study.yaml").write_text("name: defended\n" + yaml_of((DOCS / "defences.md").read_text()))
    study, _ = load_study(tmp_path / "study.yaml", {})
    assert [defence.name for defence in study.models["smooth"].defence] == ["median", "smoothing"]


def test_every_entry_and_its_default_is_on_the_page():
    table, _, below = PAGE.partition("## What it may hold\n")[2].partition("\n\nA model has")
    rows = {
        tuple(re.findall(r"`([^`]*)`", name)): default
        for name, default in re.findall(r"(?m)^\| (`.*?) \| (.*?) \|", table)
    }
    assert {name for names in rows for name in names} == set(Study.model_fields)
    for names, default in rows.items():
        said = re.findall(r"`([^`]*)`", default)
        known = [Study.model_fields[name].default for name in names]
        assert said in ([], [str(value) for value in known]), names
    for name in [*StudyModel.model_fields, *StudyAttack.model_fields]:
        assert f"`{name}`" in below, name
