"""Notes under a table: reasons that rows share, each said once, and referred to by number."""

from collections.abc import Mapping, Sequence
from typing import Any

from robustq.jobs.text import tables
from robustq.jobs.text.safe_text import hide, one_line

WHY = "why"  # the column of the numbers
AFTER = ("robust 95 %", "checks", "second %")  # it stands behind the first of these that there is, else at the end


def with_notes(
    shown: Sequence[Mapping[str, Any]], whys: Sequence[str | None]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows with a column of the notes that they refer to, and the notes; as they were where no row has any.

    whys: the reasons of each row, with "; " between them.
    """
    marks, notes = numbered(whys)
    if not notes:
        return [dict(row) for row in shown], []
    found = []
    for row, mark in zip(shown, marks, strict=True):
        behind = next((name for name in AFTER if name in row), list(row)[-1])
        pairs = [(name, value) for name, value in row.items()]
        place = next(i for i, (name, _) in enumerate(pairs) if name == behind) + 1
        found.append(dict([*pairs[:place], (WHY, mark), *pairs[place:]]))
    return found, notes


def numbered(whys: Sequence[str | None]) -> tuple[list[str], list[str]]:
    """For each row the numbers of its reasons, and the reasons with theirs."""
    reasons = [list(dict.fromkeys(part for part in (why or "").split("; ") if part)) for why in whys]
    notes = list(dict.fromkeys(part for parts in reasons for part in parts))
    numbers = {note: str(i + 1) for i, note in enumerate(notes)}
    marks = ["[" + ", ".join(numbers[part] for part in parts) + "]" if parts else "" for parts in reasons]
    return marks, [f"[{i + 1}] {note}" for i, note in enumerate(notes)]


def under(table: str, notes: Sequence[str], form: str) -> str:
    """A table with its notes below, in one of the forms for people."""
    lines = [one_line(hide(note)) for note in notes]
    if not lines:
        return table
    match form:
        case "latex":
            return "\n".join([table, *(rf"\par{{\footnotesize {tables.latex_text(line)}}}" for line in lines)])
        case "markdown":
            return "\n\n".join([table, *(tables.markdown_text(line) for line in lines)])
    return "\n".join([table, *lines])
