"""A table of the page: columns, cells with their sort keys, and its rows as HTML."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup, escape

VERDICTS = {"pass": "✓ passed", "warn": "▲ warning", "fail": "✗ not trusted", None: "not checked"}


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands in a cell and, where it is not that text, what the column is sorted by.  kind: a verdict's colour."""

    text: str
    order: float | None = None
    kind: str = ""


class Line(list[Cell]):
    """A row that is shown again and again, and keeps its HTML."""

    html: str | None = None


@dataclass(frozen=True)
class Column:
    """A column's heading. pick: whether readers may choose one of its values."""

    label: str
    number: bool = False
    pick: bool = False


@dataclass(frozen=True)
class Table:
    """name: unique on the page.  live: whether readers may sort and filter it.  notes: lines below it."""

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: list[list[Cell]]
    live: bool = True
    picked: dict[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def choices(self, place: int) -> list[str]:
        """The values of a column, in the order of what they are sorted by."""
        cells = {row[place].text: row[place] for row in self.rows}
        return sorted(cells, key=lambda text: (cells[text].order is not None, cells[text].order or 0.0, text))


def table_of(
    name: str, caption: str, rows: Sequence[dict[str, Any]], *, live: bool = False, notes: Sequence[str] = ()
) -> Table | None:
    """A table from dicts with the same keys; None without rows."""
    if not rows:
        return None
    labels = list(dict.fromkeys(label for row in rows for label in row))
    numbers = {label for label in labels if all(is_numeric(row.get(label)) for row in rows)}
    columns = tuple(Column(label, number=label in numbers) for label in labels)
    return Table(
        name, caption, columns, [[cell(row.get(label)) for label in labels] for row in rows], live, notes=notes
    )


def is_numeric(value: Any) -> bool:
    if isinstance(value, Cell):
        return value.order is not None
    return value is None or isinstance(value, int | float)


def cell(value: Any) -> Cell:
    if isinstance(value, Cell):
        return value
    if value is None:
        return Cell("")
    return Cell(number_text(value), float(value)) if isinstance(value, int | float) else Cell(str(value))


def number_text(value: float) -> str:
    """A number for people: whole numbers in groups of three, others to four digits."""
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else f"{value:.4g}"


def percent_cell(value: float, low: float | None = None, high: float | None = None) -> Cell:
    """An accuracy in percent, with its interval where there is one."""
    interval = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return Cell(f"{100 * value:.1f}{interval}", value)


def verdict_cell(found: str | None) -> Cell:
    order = {"fail": 0.0, "warn": 1.0, None: 2.0, "pass": 3.0}[found]
    return Cell(VERDICTS[found], order, found or "unchecked")


def total(values: Iterable[float | None]) -> float | None:
    """The sum of what there is; None where there is nothing."""
    there = [value for value in values if value is not None]
    return sum(there) if there else None


def body_html(table: Table) -> Markup:
    """The table's rows, to stand in its body: the first cell of each is its heading.

    A page has a hundred thousand cells and more, for which templates are slow.
    """
    numbers = [column.number for column in table.columns]
    return Markup("".join([kept_html(row, numbers) for row in table.rows]))


def kept_html(row: Sequence[Cell], numbers: Sequence[bool]) -> str:
    """The row's HTML; that of a `Line` is made once."""
    if not isinstance(row, Line):
        return row_html(row, numbers)
    if row.html is None:
        row.html = row_html(row, numbers)
    return row.html


def row_html(row: Sequence[Cell], numbers: Sequence[bool]) -> str:
    """numbers: whether a column's cells stand to the right."""
    html, tag, scope = ["<tr>"], "th", " scope=row"
    for cell, number in zip(row, numbers, strict=True):
        kind = f' class="{"n " if number else ""}{cell.kind}"' if number or cell.kind else ""
        order = f' data-order="{cell.order}"' if cell.order is not None else ""
        html.append(f"<{tag}{scope}{kind}{order}>{escape(cell.text)}</{tag}>")
        tag, scope = "td", ""
    html.append("</tr>\n")
    return "".join(html)
