"""Limits on names and docstrings that a syntax tree shows: short test names."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
LONGEST_TEST_NAME = 70


def test_test_names_are_short():
    """A name of more characters is cut in reports, and says what its test should."""
    functions = [
        (path.relative_to(ROOT), node.name)
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test")
    ]
    assert [found for found in functions if len(found[1]) > LONGEST_TEST_NAME] == []
