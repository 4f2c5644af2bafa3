"""docs/architecture.md dates its decisions and names files that exist; so do the other pages."""

import re
from datetime import date
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
DECISIONS = (
    (ROOT / "docs" / "architecture.md").read_text().partition("## Decisions, and why\n")[2].partition("\n## ")[0]
)


def test_every_decision_has_its_day():
    decisions = re.split(r"(?m)^- ", DECISIONS)[1:]
    assert len(decisions) > 50
    for decision in decisions:
        assert decision.startswith("**")
        day = re.search(r"\((\d{4}-\d\d-\d\d)\)\s*$", decision)
        assert day and date(2026, 11, 23) <= date.fromisoformat(day[1]), decision


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path):
    named = re.findall(r"`((?:benchmarks|cluster|docs|jobs|robustlib|studies|tests)/[\w./-]+)`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists() and not name.startswith("benchmarks/out/")] == []


@pytest.mark.slow
def test_files_that_the_code_names_exist():
    """In docstrings and comments, which nobody reads when a file moves."""
    folders = ("benchmarks", "cluster", "jobs", "robustlib")
    sources = [ROOT / "cli.py", *(path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))]
    named = [
        (str(path.relative_to(ROOT)), name)
        for path in sources
        for name in re.findall(
            r"(?<![\w./-])(?:benchmarks|cluster|docs|jobs|robustlib|tests)/[\w/]+\.(?:py|md)\b", path.read_text()
        )
    ]
    assert len(named) > 10
    assert [(path, name) for path, name in named if not (ROOT / name).exists()] == []
