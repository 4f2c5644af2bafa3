"""The reading that it takes to know an attack: the definitions that its function reaches, as far as the oracle.

    python -m tests.helpers.reading

A definition is a function, a class with those of its methods that are called by name, or a constant of a module.
"""

import ast
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Where reading ends: what a model answers, checks of arguments, and what torch.Generator would be elsewhere.
ENDS = {
    "robustlib.inference.oracle.Oracle",
    "robustlib.inference.oracle.as_oracle",
    "robustlib.input_checks.checked",
    "robustlib.input_checks.unchecked",
    "robustlib.input_checks.check_labels",
    "robustlib.model_calls.ask",
    "robustlib.arguments.checked_options",
    "robustlib.arguments.check_queries",
    "robustlib.arguments.Norm",
    "robustlib.arguments.NORMS",
}
PGD = ["robustlib.attacks.pgd.pgd"]
AUTOATTACK = ["robustlib.attacks.autoattack.autoattack", "robustlib.evaluation.attack_sequence.attack_in_sequence"]


@dataclass(frozen=True)
class Module:
    """A file's definitions by name, and what its names mean that come from other files of ours."""

    path: Path
    definitions: dict[str, ast.stmt]
    imported: dict[str, str]
    lines: list[str]


@cache
def module(name: str) -> Module | None:
    path = ROOT / f"{name.replace('.', '/')}.py"
    if not path.exists():
        return None
    text = path.read_text()
    definitions: dict[str, ast.stmt] = {}
    imported: dict[str, str] = {}
    for node in ast.parse(text).body:
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                definitions[node.name] = node
            case ast.Assign(targets=[ast.Name(id=target)]) | ast.AnnAssign(target=ast.Name(id=target)):
                definitions[target] = node
            case ast.Assign(targets=[ast.Tuple(elts=names)]):
                definitions |= {part.id: node for part in names if isinstance(part, ast.Name)}
            case ast.ImportFrom(module=str(source)):
                imported |= {alias.asname or alias.name: f"{source}.{alias.name}" for alias in node.names}
            case _:
                pass
    return Module(path, definitions, imported, text.splitlines())


def reached(starts: list[str]) -> dict[str, list[ast.stmt]]:
    """Every definition to be read, by the module's name; of a class its fields and the methods that are called."""
    found: dict[tuple[str, str], ast.stmt] = {}
    called: set[str] = set()
    todo = list(starts)
    while todo:
        owner, _, name = todo.pop().rpartition(".")
        home = module(owner)
        if home is None or (owner, name) in found or f"{owner}.{name}" in ENDS:
            continue
        if name not in home.definitions:
            if name in home.imported:
                todo.append(home.imported[name])
            continue
        node = found[owner, name] = home.definitions[name]
        for part in ast.walk(node):
            if isinstance(part, ast.Attribute):
                called.add(part.attr)
            elif isinstance(part, ast.Name):
                todo.append(home.imported.get(part.id, f"{owner}.{part.id}"))
    parts: dict[str, list[ast.stmt]] = defaultdict(list)
    for (owner, _), node in found.items():
        if isinstance(node, ast.ClassDef):
            body = [part for part in node.body if not uncalled(part, called)]
            node = ast.copy_location(
                ast.ClassDef(node.name, node.bases, node.keywords, body, node.decorator_list), node
            )
        parts[owner].append(node)
    return parts


def uncalled(part: ast.stmt, called: set[str]) -> bool:
    return isinstance(part, ast.FunctionDef) and part.name not in called and not part.name.startswith("__")


def lines_of(starts: list[str], *, documented: bool = False) -> dict[str, int]:
    """How many lines of each module are to be read: with or without docstrings, never blank ones or comments alone."""
    counts = {}
    for owner, nodes in sorted(reached(starts).items()):
        home = module(owner)
        assert home is not None
        rows: set[int] = set()
        for node in nodes:
            whole = node.body if isinstance(node, ast.ClassDef) else [node]
            head = range(node.lineno, node.body[0].lineno) if isinstance(node, ast.ClassDef) else range(0)
            rows |= {*head, *(row for part in whole for row in range(part.lineno, (part.end_lineno or 0) + 1))}
            rows |= {d.lineno for d in getattr(node, "decorator_list", [])}
            if not documented:
                rows -= {row for part in ast.walk(node) for row in docstring_of(part)}
        counts[owner] = sum(1 for row in rows if (text := home.lines[row - 1].strip()) and not text.startswith("#"))
    return counts


def docstring_of(node: ast.AST) -> range:
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.body:
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            return range(first.lineno, (first.end_lineno or 0) + 1)
    return range(0)


def main() -> None:
    for title, starts in (("PGD", PGD), ("AutoAttack", AUTOATTACK)):
        code, all_of_it = lines_of(starts), lines_of(starts, documented=True)
        print(
            f"{title}: {sum(code.values())} lines of code, {sum(all_of_it.values())} with docstrings, in {len(code)} files"
        )
        for owner, count in code.items():
            print(f"  {count:4d} {all_of_it[owner]:4d}  {owner}")


if __name__ == "__main__":
    main()
