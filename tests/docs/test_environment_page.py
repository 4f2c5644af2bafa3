"""docs/environment.md has every variable that the code reads, and no other."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "environment.md").read_text()
NAME = re.compile(r"\bROBUSTQ_[A-Z_]*[A-Z]\b")
READ = re.compile(r"""environ(?:\.get|\.setdefault|\.pop)?[(\[]["']([A-Z_]+)["']|getenv\(["']([A-Z_]+)["']""")


def text_of(*tops: str) -> str:
    return "\n".join(path.read_text() for top in tops for path in sorted((ROOT / top).rglob("*.py")))


def test_every_variable_of_ours_is_on_the_page():
    code = (ROOT / "cli.py").read_text() + text_of("cluster", "jobs", "robustlib")
    assert set(NAME.findall(code)) - set(NAME.findall(PAGE)) == set()


def test_every_variable_that_is_read_or_set_is_on_the_page():
    found = {name for names in READ.findall(text_of("cluster", "jobs", "robustlib")) for name in names if name}
    assert {"ROBUSTQ_HOME", "RAY_AUTH_TOKEN", "CUDA_VISIBLE_DEVICES"} <= found
    assert {name for name in found if f"`{name}`" not in PAGE} == set()


def test_the_page_names_no_variable_that_nothing_reads():
    code = (ROOT / "cli.py").read_text() + text_of("cluster", "jobs", "robustlib", "tests")
    assert set(NAME.findall(PAGE)) - set(NAME.findall(code)) == set()
