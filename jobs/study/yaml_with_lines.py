"""YAML as plain data with the line of every part; what costs too much or is no plain data is refused."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from robustlib.names import near_file
from robustlib.number_text import distinct
from robustlib.regular_files import irregular
from robustq.jobs.errors import SpecError
from robustq.jobs.text.number_parsing import number
from robustq.jobs.text.safe_text import brief

Path_ = tuple[str | int, ...]
MOST_PARTS = 100_000  # with anchors spelt out, of which a few lines can hold more than any memory
MOST_BYTES = 8 * 2**20  # of a file: what is written by people or by their scripts is a thousand times smaller
MOST_DEPTH, MOST_DIGITS = 64, 400  # of parts within parts; of a whole number, whose largest float has 309
TAG = "tag:yaml.org,2002:"
COLLECTIONS = {f"{TAG}map", f"{TAG}seq"}
TOO_MANY = f"expected a study of at most {MOST_PARTS} parts, anchors spelt out"
INT, FLOAT, STR, PLAIN = f"{TAG}int", f"{TAG}float", f"{TAG}str", ("null", "bool", "int", "float", "timestamp", "str")

WHOLE = re.compile(r"[-+]?(?:[0-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$")
REAL = re.compile(
    r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$"
    r"|\.(?:nan|NaN|NAN)$"
)
SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")


class Reader(yaml.SafeLoader):
    """YAML 1.1, as PyYAML has it, with the numbers that everybody means: 2e-3 and 1e1 are some."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (of the base class)
        first: [(tag, pattern) for tag, pattern in known if tag not in (INT, FLOAT)]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    parts = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.parts += 1
        if self.parts > 2 * MOST_PARTS:  # names are parts here too: what is too much is best known before it is built
            raise yaml.MarkedYAMLError(problem=TOO_MANY, problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)


class Writer(yaml.SafeDumper):
    """Quotes what Reader, or another reader of YAML, would not read as text."""


for kind in (Reader, Writer):
    kind.add_implicit_resolver(INT, WHOLE, list("-+0123456789"))
    kind.add_implicit_resolver(FLOAT, REAL, list("-+0123456789."))


class Doubtful(yaml.MarkedYAMLError):
    """Valid YAML that does not say what is meant."""


@dataclass
class Parts:
    """The line of every part of a file, and what is written for each that is read as anything but text."""

    lines: dict[Path_, int] = field(default_factory=dict)
    written: dict[Path_, str] = field(default_factory=dict)


def read_yaml(path: Path) -> tuple[Any, Parts]:
    """The file's data and its parts. Raises SpecError that names file and line."""
    text, parts = read_text(path), Parts()
    try:
        return plain(yaml.compose(text, Loader=Reader), (), parts, []), parts
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SpecError(f"{path}:{line}: {problem(error)}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: no valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise SpecError(f"{path}: expected a study, got what is nested too deeply to be one") from error
    except ValueError as error:  # of a character that there is none of, as "\\U00110000"
        raise SpecError(f"{path}: no valid YAML: {error}") from error


def read_text(path: Path) -> str:
    """The text of a study. Raises SpecError for what is no file, too large to be a study, or no text."""
    if (kind := irregular(path)) is not None:
        raise SpecError(f"expected the study as a file, got {path}, which is {kind}")
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            came, most = distinct((size / 2**20, MOST_BYTES >> 20))
            raise SpecError(f"{path}: expected a study of at most {most} MB, got {came} MB")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"cannot read the study {path}: {error.strerror}{near_file(path)}") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: expected text in UTF-8, got byte {error.object[error.start]:#04x}") from error
    except ValueError as error:
        raise SpecError(f"cannot read the study {path}: {error}") from error


def read_value(text: str) -> Any:
    """One value as a study would have it. Raises ValueError."""
    try:
        return plain(yaml.compose(text, Loader=Reader), (), Parts(), [])
    except yaml.MarkedYAMLError as error:
        raise ValueError(problem(error)) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError("no valid YAML") from error


def write_yaml(data: Any) -> str:
    """Data as text that reads as the same data."""
    return yaml.dump(data, Dumper=Writer, sort_keys=False, allow_unicode=True, width=100)


def problem(error: yaml.MarkedYAMLError) -> str:
    return str(error.problem) if isinstance(error, Doubtful) else f"no valid YAML: {error.problem}"


def plain(node: Any, path: Path_, parts: Parts, within: list[int]) -> Any:
    """A YAML node as Python data, noting its parts; fractions such as 8/255 become numbers.

    within: the nodes that hold this one.
    """
    if node is None:
        return None
    parts.lines[path] = node.start_mark.line + 1
    if len(parts.lines) > MOST_PARTS:
        raise wrong(node, TOO_MANY)
    if len(within) > MOST_DEPTH:
        raise wrong(node, f"expected parts within at most {MOST_DEPTH} others")
    if not isinstance(node, yaml.MappingNode | yaml.SequenceNode):
        return scalar(node, path, parts)
    if id(node) in within:
        raise wrong(node, "an anchor that holds itself")
    if node.tag not in COLLECTIONS:
        raise strange(node)
    within.append(id(node))
    if isinstance(node, yaml.SequenceNode):
        found: Any = [plain(item, (*path, i), parts, within) for i, item in enumerate(node.value)]
    else:
        found = {}
        for key_node, value_node in node.value:
            key = name(key_node)
            if key in found:
                raise wrong(key_node, f"{key!r} is given twice")
            found[key] = plain(value_node, (*path, key), parts, within)
            parts.lines[(*path, key)] = key_node.start_mark.line + 1
    within.pop()
    return found


def name(node: Any) -> str:
    """What stands before a colon is a name, as it is written: also no, 1e1 and 2026-11-24."""
    if isinstance(node, yaml.MappingNode | yaml.SequenceNode):
        raise wrong(node, "expected a name before the colon, got a list or a mapping")
    if node.tag == f"{TAG}merge":
        raise Doubtful(
            problem="merge keys (<<) are not read: write the entries out, or give an anchor to the whole",
            problem_mark=node.start_mark,
        )
    if node.tag.removeprefix(TAG) not in PLAIN:
        construct(node)
    return text_of(node)


def text_of(node: Any) -> str:
    """What is written, if names and paths may hold it: a zero byte ends a path, half a pair is no character."""
    if found := re.search("[\0\ud800-\udfff]", node.value):
        raise wrong(node, f"expected text, got the character {found[0]!a} in it")
    return node.value


def scalar(node: Any, path: Path_, parts: Parts) -> Any:
    """A value. Numbers of which nobody can be sure are refused."""
    if node.style is None and node.tag == STR and SEXAGESIMAL.fullmatch(node.value):
        raise Doubtful(
            problem=f"{node.value[:120]} is a number to the base of 60 in YAML 1.1 and text in 1.2: "
            f"write the number in decimals, or quote the text, as '{node.value[:120]}'",
            problem_mark=node.start_mark,
        )
    text_of(node)
    value = number(integer(node) if node.tag == INT else construct(node))
    if not isinstance(value, str | None):
        parts.written[path] = node.value
    return value


def integer(node: Any) -> Any:
    digits = node.value.replace("_", "")
    if len(digits) > MOST_DIGITS:
        raise wrong(node, f"expected a number of at most {MOST_DIGITS} digits, got one of {len(digits)}")
    bare = digits.lstrip("-+")
    if not (bare.isascii() and bare.isdigit() and bare.startswith("0")):
        return construct(node)
    if len(bare) > 1 and set(bare) <= set("01234567") and int(bare, 8) != int(bare):
        raise Doubtful(
            problem=f"{node.value} is {int(digits, 8)} in YAML 1.1 and {int(digits)} in 1.2: "
            f"write it without the leading zero, or quote the text, as '{node.value}'",
            problem_mark=node.start_mark,
        )
    return int(digits)


def construct(node: Any) -> Any:
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (ValueError, OverflowError) as error:  # such as a date with a thirteenth month
        raise wrong(node, f"{brief(node.value)}: {error}") from error
    except (AttributeError, LookupError, TypeError) as error:  # whatever PyYAML stumbles over, as in !!timestamp x
        raise wrong(
            node, f"{brief(node.value)} is nothing that its tag !!{node.tag.removeprefix(TAG)} means"
        ) from error
    except yaml.constructor.ConstructorError as error:
        if "constructor for the tag" in str(error.problem):
            raise strange(node) from error
        raise


def strange(node: Any) -> yaml.MarkedYAMLError:
    """The error of a tag that no plain data has."""
    tag = node.tag.removeprefix(TAG)
    if tag == "value":
        return wrong(node, "a bare = is no value: quote it, as '='")
    return wrong(node, f"could not determine a constructor for the tag {node.tag!r}: leave the tag out")


def wrong(node: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
