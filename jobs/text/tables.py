"""Rows as text: aligned for a terminal, within its width; and as CSV, Markdown or LaTeX, with nothing left out."""

import csv
import io
import json
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from robustq.jobs.text.safe_text import hide, one_line

Row = Mapping[str, Any]

TIME_COLUMNS = frozenset({"recorded_at"})  # seconds since 1970
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001
FORMATS = ("table", "json", "csv", "markdown", "latex")
GAP = "  "
WRITTEN_OUT = 9999.5  # from which on four digits would need a power of ten
SHORTEST = 8  # characters that a shortened text keeps at least, before a column is left out instead
NUMBER_START = re.compile(r"[-+]?[\d[]")  # how a number begins, also one with its interval behind it, or 8/255
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}  # other signs in TeX's oldest encoding
MARKDOWN = {"\\": r"\\", "|": r"\|", "&": "&amp;", "<": "&lt;", ">": "&gt;"}
LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}


def terminal_width() -> int | None:
    """Columns of the terminal that standard output is, None where it is none: files and pipes get everything."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def text(value: Any) -> str:
    """A value for people: four digits are enough, but those before the point are all written; null is nothing."""
    if value is None:
        return ""
    if isinstance(value, float) and WRITTEN_OUT <= abs(value) < 1e15:
        return f"{value:.0f}"
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
    cells = {name: [one_line(hide(text(row.get(name)))) for row in rows] for name in names}
    heads = {name: one_line(str(name)) for name in names}
    texts = {name for name in names if any(isinstance(row.get(name), str) for row in rows)}
    widths = {name: max(map(wide, [heads[name], *cells[name]])) for name in names}
    shown = list(names)
    if width is not None:
        shown = fit(
            widths,
            {name for name in texts if not all(map(NUMBER_START.match, filter(None, cells[name])))},
            width,
            least,
        )
    lines = [GAP.join(pad(heads[name], widths[name], name in texts) for name in shown)]
    lines += [GAP.join("-" * widths[name] for name in shown)]
    lines += [GAP.join(pad(cells[name][i], widths[name], name in texts) for name in shown) for i in range(len(rows))]
    if missing := [heads[name] for name in names if name not in shown]:
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


def markdown_text(words: str) -> str:
    """A text in which nothing is markup."""
    return "".join(MARKDOWN.get(c, c) for c in one_line(words)).replace("](", "]\\(")


def latex_text(words: str) -> str:
    """A text in which nothing is a command."""
    return "".join(LATEX.get(c, c) for c in one_line(words))


def markdown(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """A table as GitHub and pandoc read it."""

    def line(values: Iterable[str]) -> str:
        cells = (markdown_text(value) for value in values)
        return f"| {' | '.join(cells)} |"

    rules = ["---" if any(isinstance(row.get(name), str) for row in rows) else "---:" for name in columns]
    body = [line(text(row.get(name)) for name in columns) for row in rows]
    return "\n".join([line(columns), f"| {' | '.join(rules)} |", *body])


def latex(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """A tabular with the rules of the package booktabs."""

    def line(values: Iterable[str]) -> str:
        cells = (latex_text(value) for value in values)
        return f"{' & '.join(cells)} \\\\"

    flush = "".join("l" if any(isinstance(row.get(name), str) for row in rows) else "r" for name in columns)
    body = [line(text(row.get(name)) for name in columns) for row in rows]
    head = [f"\\begin{{tabular}}{{{flush}}}", r"\toprule", line(columns), r"\midrule"]
    return "\n".join([*head, *body, r"\bottomrule", r"\end{tabular}"])


def csv_text(rows: Sequence[Row], columns: Sequence[str], *, spreadsheet: bool = False) -> str:
    """Every digit of every value, nulls empty, objects as JSON, times in UTC; RFC 4180 but for plain line ends.

    spreadsheet: texts that a spreadsheet would take for a formula have a ' before them.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for cells in (columns, *([csv_cell(row[name], name) for name in columns] for row in rows)):
        writer.writerow([harmless(cell) for cell in cells] if spreadsheet else cells)
    return out.getvalue().rstrip("\n")


def csv_cell(value: Any, name: str) -> Any:
    if name in TIME_COLUMNS and value is not None:
        moment = datetime.fromtimestamp(round(value * 1000) / 1000, UTC)
        return f"{moment:%Y-%m-%d %H:%M:%S}.{round(moment.microsecond / 1000):03d}Z"
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value


def harmless(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


def json_text(data: Any) -> str:
    """Data as JSON for other programs: accuracies stay fractions."""
    return json.dumps(data, indent=2, default=str).replace("\x7f", "\\u007f")  # which terminals obey too


def table(rows: Sequence[Row], columns: Iterable[str] | None = None, least: Sequence[str] = ()) -> str:
    """Rows as text in aligned columns, nothing for null; within the width of the terminal, where it goes to one.

    least: columns that may be left out there, the first first.
    """
    return plain_table(rows, columns, width=terminal_width(), least=least)
