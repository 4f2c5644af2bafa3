"""CITATION.cff, pyproject.toml and LICENSE say the same of the project."""

import tomllib
from pathlib import Path

import yaml

from robustlib import VERSION

ROOT = Path(__file__).parents[2]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_citation_is_of_this_release():
    assert {"cff-version", "message", "title", "authors"} <= CITATION.keys()  # what the format asks for
    assert (CITATION["title"], CITATION["version"], CITATION["license"]) == (
        PROJECT["name"],
        VERSION,
        PROJECT["license"],
    )


def test_all_three_name_the_same_authors():
    names = [author["name"] for author in PROJECT["authors"]]
    assert [author["name"] for author in CITATION["authors"]] == names
    assert all(name in (ROOT / "LICENSE").read_text() for name in names)
    assert CITATION["keywords"] == PROJECT["keywords"]
