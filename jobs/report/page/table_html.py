"""The lines of a table as HTML. A page has a hundred thousand cells and more, for which templates are slow."""

from collections.abc import Sequence

from markupsafe import Markup, escape

from robustq.jobs.report.page.table import Cell, Line, Table


def lines(table: Table) -> Markup:
    """The table's rows, to stand in its body: the first cell of each is its heading."""
    numbers = [column.number for column in table.columns]
    return Markup("".join([kept(row, numbers) if isinstance(row, Line) else line(row, numbers) for row in table.rows]))


def kept(row: Line, numbers: Sequence[bool]) -> str:
    if row.html is None:
        row.html = line(row, numbers)
    return row.html


def line(row: Sequence[Cell], numbers: Sequence[bool]) -> str:
    """numbers: whether a column's cells stand to the right."""
    html, tag, scope = ["<tr>"], "th", " scope=row"
    for cell, number in zip(row, numbers, strict=True):
        kind = f' class="{"n " if number else ""}{cell.kind}"' if number or cell.kind else ""
        order = f' data-order="{cell.order}"' if cell.order is not None else ""
        html.append(f"<{tag}{scope}{kind}{order}>{escape(cell.text)}</{tag}>")
        tag, scope = "td", ""
    html.append("</tr>\n")
    return "".join(html)
