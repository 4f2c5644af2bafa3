"""A paper's table as LaTeX with the rules of booktabs, and its protocol as sentences for the methods section."""

import re
from collections.abc import Iterable, Sequence

from robustlib.checks.thresholds import FAIL
from robustq.jobs.paper.paper_table import Cell, PaperTable, Place, is_attack
from robustq.jobs.results.attack_labels import WORST_CASE
from robustq.jobs.text.numbers import eps_text, percent
from robustq.jobs.text.tables import latex_text

NORMS = {"Linf": r"$\ell_\infty$", "L2": r"$\ell_2$", "L1": r"$\ell_1$"}
ALIKE = r"$^{\dagger}$"


def table_text(found: PaperTable) -> str:
    """The table, and the protocol below it."""
    return f"{tabular(found)}\n\n{protocol(found)}"


def tabular(found: PaperTable) -> str:
    """The table by itself: needs the package booktabs."""
    notes = why_not(found)
    heads = len(found.heads)

    def line(cells: Iterable[str]) -> str:
        return f"{' & '.join(cells)} \\\\"

    names = [*(latex_text(name) for name in found.heads), *(name_of(column) for column in found.columns)]
    budgets = [*[""] * heads, *(budget_of(column) for column in found.columns)]
    rows = [
        line([*(latex_text(pathless(head)) for head in before), *(cell_text(cell, notes) for cell in cells)])
        for before, cells in found.lines
    ]
    top = [f"\\begin{{tabular}}{{{'l' * heads}{'r' * len(found.columns)}}}", r"\toprule", line(names)]
    top += [line(budgets)] if any(budgets) else []
    return "\n".join([*top, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"])


def name_of(column: Place) -> str:
    return latex_text(pathless(str(column[0])))


def budget_of(column: Place) -> str:
    """Norm and radius."""
    _, norm, eps = column
    return ", ".join(
        filter(None, [NORMS.get(norm, "") if norm else "", f"${eps_text(eps)}$" if eps is not None else ""])
    )


def cell_text(cell: Cell | None, notes: Sequence[str]) -> str:
    """A mean in percent with its standard deviation; the best bold, what is not told apart from it marked."""
    if cell is None or cell.found["robust_accuracy"] is None:
        return "--"
    if cell.found["verdict"] == FAIL:
        return f"--$^{{{letter(notes, cell)}}}$"
    value, deviation = percent(cell.found["robust_accuracy"]), cell.found["robust_accuracy_sd"]
    value = rf"\textbf{{{value}}}" if cell.best else value
    return value + ("" if deviation is None else rf" $\pm$ {percent(deviation)}") + (ALIKE if cell.alike else "")


def why_not(found: PaperTable) -> list[str]:
    """The reasons why numbers are not shown, each once."""
    cells = [cell for _, line in found.lines for cell in line if cell is not None]
    return list(dict.fromkeys(cell.found["why"] or "" for cell in cells if cell.found["verdict"] == FAIL))


def letter(notes: Sequence[str], cell: Cell) -> str:
    return mark(notes.index(cell.found["why"] or ""))


def mark(place: int) -> str:
    """a to z, then aa, ab and so on."""
    before, last = divmod(place, 26)
    return (mark(before - 1) if before else "") + chr(ord("a") + last)


def protocol(found: PaperTable) -> str:
    """What the numbers are and how they were made, in sentences for a methods section."""
    several = len(found.seeds) > 1
    many = "image" if set(found.n) == {1} else "images"
    images = f"{range_text(found.n)} {many} of {listed([latex_text(pathless(name)) for name in found.datasets])}"
    mean = (
        rf"mean $\pm$ standard deviation ($n-1$) over {len(found.seeds)} seeds ({listed(map(str, found.seeds))})"
        if several
        else f"one seed ({found.seeds[0]})"
    )
    said = [f"Accuracy in percent on {images}, {mean}, for images as they are and under {'; '.join(attacks(found))}."]
    if several and (reach := furthest(found)) is not None:
        said.append(
            f"With the chance of the images, 95\\,\\% intervals reach at most {percent(reach)} points to either side."
        )
    if any(column[0] == WORST_CASE for column in found.columns):
        said.append("Under the worst case an image counts as correct only where no attack within the radius misled.")
    if any(cell is not None and cell.best for _, line in found.lines for cell in line) and len(found.lines) > 1:
        said.append("The highest number of a column is bold.")
    if found.tests:
        tests = listed([latex_text(test) for test in found.tests])
        said.append(
            rf"A number with {ALIKE} is not told apart from it at the 5\,\% level ({tests}; Holm's correction for all "
            "comparisons of a column)."
        )
    if notes := why_not(found):
        told = [f"{mark(i)}: {latex_text(note or 'its checks were not kept')}" for i, note in enumerate(notes)]
        said.append(f"Numbers that a check distrusts are not shown ({'; '.join(told)}).")
    made = [
        f"robustq {v.get('robustq', '?')} (kernels {v.get('kernel', '?')}) with PyTorch {v.get('torch', '?')}"
        for v in found.versions
    ]
    said.append(f"Evaluated with {latex_text(listed(list(dict.fromkeys(made))))}.")
    return " ".join(said)


def furthest(found: PaperTable) -> float | None:
    """How far the intervals for seeds and images reach from the numbers that are shown."""
    shown = [c.found for _, line in found.lines for c in line if c is not None and c.found["verdict"] != FAIL]
    reaches = [
        abs(end - one["robust_accuracy"])
        for one in shown
        for end in (one["robust_accuracy_total_low"], one["robust_accuracy_total_high"])
        if end is not None and one["robust_accuracy"] is not None
    ]
    return max(reaches, default=None)


def attacks(found: PaperTable) -> list[str]:
    """Each attack with its settings, norm and radii, once."""
    said: dict[str, list[str]] = {}
    for column in found.columns:
        if column[0] == WORST_CASE or not is_attack(column):
            continue
        _, norm, eps = column
        words = latex_text(pathless(found.recipes[column])) + (f", {NORMS.get(norm, norm)}" if norm else "")
        said.setdefault(words, []).extend([] if eps is None else [f"${eps_text(eps)}$"])
    return [words + (rf", $\varepsilon$ = {listed(radii)}" if radii else "") for words, radii in said.items()]


def range_text(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def listed(words: Iterable[str]) -> str:
    words = list(words)
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


FOLDERS = (
    re.compile(r"(?<![\w.)])(?:~|\.{1,2})?/(?:[^\s/:,()]+/)*(?=[^\s/:,()]+)"),  # of an absolute path
    re.compile(r"(?<=:)(?:[^\s/:,()]+/)+(?=[^\s/:,()]+)"),  # of a data set's place, such as csv:data/x.csv
    re.compile(r"(?:[^\s/:,()]+/)+(?=[^\s/:,()]+\.py\b)"),
)


def pathless(text: str) -> str:
    """A text without the folders of the files in it: where they lie is nobody's business but the author's."""
    for folders in FOLDERS:
        text = folders.sub("", text)
    return text
