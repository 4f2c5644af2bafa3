"""Rows as text: aligned for a terminal, within its width; and as CSV, Markdown or LaTeX, with nothing left out."""

import csv
import io
import json
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]

FORMATS = ("table", "json", "csv", "markdown", "latex")
GAP = "  "
SHORTEST = 8  # characters that a shortened text keeps at least, before a column is left out instead
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
NUMBER = re.compile(r"[-+]?[\d[]")  # how a number begins, also one with its interval behind it, or 8/255
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}


def terminal_width() -> int | None:
    """Columns of the terminal that standard output is, None where it is none: files and pipes get everything."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def text(value: Any) -> str:
    """A value for people: four digits are enough, null is nothing."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def plain_table(
    rows: Sequence[Row], columns: Iterable[str] | None = None, *, width: int | None = None, least: Sequence[str] = ()
) -> str:
    """Rows in aligned columns, numbers flush right, one line a row.

    width: most characters of a line. Columns are then left out in the order of `least`, texts shortened, and further
    columns left out from the right, until the lines fit; a last line says which are missing.
    """
    names = list(columns or (rows[0] if rows else ()))
    if not rows:
        return "nothing to show"
    cells = {name: [CONTROL.sub(" ", text(row.get(name))) for row in rows] for name in names}
    texts = {name for name in names if any(isinstance(row.get(name), str) for row in rows)}
    widths = {name: max(map(wide, [name, *cells[name]])) for name in names}
    shown = list(names)
    if width is not None:
        shown = fit(
            widths, {name for name in texts if not all(map(NUMBER.match, filter(None, cells[name])))}, width, least
        )
    lines = [GAP.join(pad(name, widths[name], name in texts) for name in shown)]
    lines += [GAP.join("-" * widths[name] for name in shown)]
    lines += [GAP.join(pad(cells[name][i], widths[name], name in texts) for name in shown) for i in range(len(rows))]
    if missing := [name for name in names if name not in shown]:
        note = f"left out to fit: {', '.join(missing)}"
        lines.append(shorten(note, width or wide(note)))
    return "\n".join(line.rstrip() for line in lines)


def fit(widths: dict[str, int], texts: set[str], width: int, least: Sequence[str]) -> list[str]:
    """The columns that stay; their widths are made smaller in place where they must be, those of texts alone."""
    shown = list(widths)
    going = [name for name in least if name in shown]
    while going and needs(widths, shown) > width:
        shown.remove(going.pop(0))
    while len(shown) > 1 and needs({name: shortest(widths, name, texts) for name in shown}, shown) > width:
        shown.pop()
    while (over := needs(widths, shown) - width) > 0:
        longest = max(
            (n for n in shown if widths[n] > shortest(widths, n, texts)), key=lambda n: widths[n], default=None
        )
        if longest is None:  # a single column that is wider than the terminal whatever is done
            widths[shown[0]] = width
            break
        others = [widths[n] for n in shown if n in texts and n != longest and widths[n] < widths[longest]]
        # Down to the next longest, then both together: no text is cut short while another is long.
        widths[longest] -= max(1, min(over, widths[longest] - max(SHORTEST, *others, 0)))
    return shown


def needs(widths: dict[str, int], shown: Sequence[str]) -> int:
    return sum(widths[name] for name in shown) + len(GAP) * (len(shown) - 1)


def shortest(widths: dict[str, int], name: str, texts: set[str]) -> int:
    """Texts may be shortened, numbers not: a part of one would be another."""
    return min(widths[name], SHORTEST) if name in texts else widths[name]


def wide(words: str) -> int:
    """Columns that a terminal needs: two for East Asian characters, none for marks on others."""
    if words.isascii():
        return len(words)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in words)


def shorten(words: str, width: int) -> str:
    if wide(words) <= width:
        return words
    kept = words[: max(width - 1, 0)]
    while wide(kept) > width - 1:
        kept = kept[:-1]
    return kept + "…"


def pad(words: str, width: int, left: bool) -> str:
    words = shorten(words, width)
    space = " " * (width - wide(words))
    return words + space if left else space + words


def markdown(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """A table as GitHub and pandoc read it."""

    def line(values: Iterable[str]) -> str:
        cells = (CONTROL.sub(" ", value).replace("\\", r"\\").replace("|", r"\|") for value in values)
        return f"| {' | '.join(cells)} |"

    rules = ["---" if any(isinstance(row.get(name), str) for row in rows) else "---:" for name in columns]
    body = [line(text(row.get(name)) for name in columns) for row in rows]
    return "\n".join([line(columns), f"| {' | '.join(rules)} |", *body])


def latex(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """A tabular with the rules of the package booktabs."""

    def line(values: Iterable[str]) -> str:
        cells = ("".join(LATEX.get(c, c) for c in CONTROL.sub(" ", value)) for value in values)
        return f"{' & '.join(cells)} \\\\"

    flush = "".join("l" if any(isinstance(row.get(name), str) for row in rows) else "r" for name in columns)
    body = [line(text(row.get(name)) for name in columns) for row in rows]
    head = [f"\\begin{{tabular}}{{{flush}}}", r"\toprule", line(columns), r"\midrule"]
    return "\n".join([*head, *body, r"\bottomrule", r"\end{tabular}"])


def csv_text(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Every digit of every value, nulls empty, objects as JSON; as RFC 4180 has it, but for plain line ends."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(
            [json.dumps(v, sort_keys=True) if isinstance(v := row[name], dict | list) else v for name in columns]
        )
    return out.getvalue().rstrip("\n")
