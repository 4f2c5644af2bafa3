"""Limits on names and docstrings that a syntax tree shows: short test names, modules described by a noun phrase."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
LONGEST_TEST_NAME = 70
NO_NOUNS = {"What", "How", "Who", "Whether", "Where", "When", "Which", "Why", "Does", "Is"}


def test_test_names_are_short():
    """A name of more characters is cut in reports, and says what its test should."""
    functions = [
        (path.relative_to(ROOT), node.name)
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test")
    ]
    assert [found for found in functions if len(found[1]) > LONGEST_TEST_NAME] == []


def test_module_docstrings_say_what_the_module_holds():
    """They begin with a noun phrase; the cheap part of that is held here."""
    folders = [ROOT / name for name in ("cluster", "jobs", "robustlib", "benchmarks", "tests/helpers")]
    paths = [path for folder in folders for path in folder.rglob("*.py")]
    for path in [*ROOT.glob("*.py"), *paths, *(ROOT / "tests").rglob("conftest.py")]:
        text = ast.get_docstring(ast.parse(path.read_text()))
        assert text and text.split()[0] not in NO_NOUNS, f"{path.relative_to(ROOT)}: {text}"
