"""CITATION.cff, pyproject.toml, CHANGELOG.md and LICENSE say the same of the project."""

import re
import tomllib
from pathlib import Path

import yaml
from click.testing import CliRunner

from robustlib import VERSION
from robustq.cli import main

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


def test_the_changelog_has_this_release_on_the_day_of_the_citation():
    """What comes after it stands above, under Unreleased, until robustlib.VERSION rises with both."""
    headings = re.findall(r"(?m)^## (.*)$", (ROOT / "CHANGELOG.md").read_text())
    assert headings[:2] == ["Unreleased", f"{VERSION}, {CITATION['date-released']}"]
    assert len(set(headings)) == len(headings)


def test_all_three_name_the_same_authors():
    names = [author["name"] for author in PROJECT["authors"]]
    assert [author["name"] for author in CITATION["authors"]] == names
    assert all(name in (ROOT / "LICENSE").read_text() for name in names)
    assert CITATION["keywords"] == PROJECT["keywords"]


def test_the_command_says_it():
    done = CliRunner().invoke(main, ["--cite"])
    assert done.exit_code == 0 and done.stdout.startswith(CITATION["message"])
    entry = done.stdout.partition("@software{robustq,\n")[2]
    fields = dict(re.findall(r"(?m)^  (\w+) *= \{(.*)\},$", entry))
    assert fields["version"] == VERSION and fields["author"] == "{The robustq authors}"
    assert fields["year"] == str(CITATION["date-released"])[:4] and fields["title"].startswith("{robustq}: ")
