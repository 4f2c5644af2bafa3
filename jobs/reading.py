"""YAML as plain data with the line of every part; what costs too much or is no plain data is refused."""

from pathlib import Path
from typing import Any

import yaml

from jobs.errors import SpecError
from jobs.specs import number

Path_ = tuple[str | int, ...]
MOST_PARTS = 100_000  # with anchors spelt out, of which a few lines can hold more than any memory
COLLECTIONS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}


def read_yaml(path: Path) -> tuple[Any, dict[Path_, int]]:
    """The file's data, and the line of each of its parts. Raises SpecError that names file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"cannot read the study {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: expected text in UTF-8, got byte {error.object[error.start]:#04x}") from error
    lines: dict[Path_, int] = {}
    try:
        return plain(yaml.compose(text, Loader=yaml.SafeLoader), (), lines, []), lines
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SpecError(f"{path}:{line}: no valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: no valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise SpecError(f"{path}: expected a study, got what is nested too deeply to be one") from error


def plain(node: Any, path: Path_, lines: dict[Path_, int], within: list[int]) -> Any:
    """A YAML node as Python data, noting each part's line; fractions such as 8/255 become numbers.

    within: the nodes that hold this one.
    """
    if node is None:
        return None
    lines[path] = node.start_mark.line + 1
    if len(lines) > MOST_PARTS:
        raise wrong(node, f"expected a study of at most {MOST_PARTS} parts, anchors spelt out")
    if not isinstance(node, yaml.MappingNode | yaml.SequenceNode):
        return number(construct(node))
    if id(node) in within:
        raise wrong(node, "an anchor that holds itself")
    if node.tag not in COLLECTIONS:
        raise wrong(node, f"could not determine a constructor for the tag {node.tag!r}")
    within.append(id(node))
    if isinstance(node, yaml.SequenceNode):
        found: Any = [plain(item, (*path, i), lines, within) for i, item in enumerate(node.value)]
    else:
        found = {}
        for key_node, value_node in node.value:
            key = plain(key_node, (*path, "?"), lines, within)
            if isinstance(key, list | dict):
                raise wrong(key_node, "expected a name before the colon, got a list or a mapping")
            if key in found:
                raise wrong(key_node, f"{key!r} stands here twice")
            found[key] = plain(value_node, (*path, key), lines, within)
            lines[(*path, key)] = key_node.start_mark.line + 1
    within.pop()
    return found


def construct(node: Any) -> Any:
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (ValueError, OverflowError) as error:  # such as a date with a thirteenth month
        raise wrong(node, f"{node.value!r}: {error}") from error


def wrong(node: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
