"""Pictures of results: accuracy by radius, confusion matrices, attacked images, training histories."""

import functools
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from robustq.jobs.results.columns import PageRow, Training
from robustq.jobs.text.numbers import times
from robustq.jobs.text.safe_text import numbered, one_line

LONGEST = 60  # letters of a text: a picture grows with its texts, and Agg draws none of more than 65,535 pixels

# Okabe and Ito's colours, which colour-blind readers can tell apart, with a marker each for black and white.
FIGURE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"
DASHES = ("-", "--", ":", "-.")


PNG, SVG, PDF = FORMS = ("png", "svg", "pdf")
METADATA: dict[str, dict[str, Any]] = {
    PNG: {"Software": "robustq"},
    SVG: {"Creator": "robustq", "Date": None},
    PDF: {"Creator": "robustq", "CreationDate": None},
}

# Names are texts: without these, two dollar signs make a formula of what is between, and TeX would run it.
AS_THEY_ARE: Any = {"text.parse_math": False, "text.usetex": False}
# Texts of a PDF stay texts, in fonts that journals take; what an SVG numbers, it numbers alike each time.
AS_THEY_ARE |= {"pdf.fonttype": 42, "svg.hashsalt": "robustq"}


def literal(draw: Callable[..., bytes]) -> Callable[..., bytes]:
    """Draw with texts as they are."""

    @functools.wraps(draw)
    def drawn(*args: Any, **options: Any) -> bytes:
        with matplotlib.rc_context(AS_THEY_ARE):
            return draw(*args, **options)

    return drawn


def words(text: Any, most: int = LONGEST) -> str:
    """A name as a picture can show it: in one line, without a part where it is long; letters that the font lacks,
    which would all be the same box, by their number.
    """
    font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    found = one_line(str(text))
    found = "".join(letter if font.get_char_index(ord(letter)) else numbered(letter) for letter in found[: 4 * most])
    return found if len(found) <= most else f"{found[: most * 2 // 3]}...{found[-most // 4 :]}"


def legend(axes: Axes, names: Iterable[Any], fontsize: int) -> None:
    """Of the lines that were drawn, in their order. As their labels, names that begin with _ would be left out."""
    lines = axes.get_lines()
    made = axes.legend(lines, [str(i) for i in range(len(lines))], fontsize=fontsize)
    for text, name in zip(made.get_texts(), names, strict=True):
        text.set_text(words(name))


def written(figure: Figure, form: str) -> bytes:
    """The figure as the bytes of a file; closes it. No date inside: the same results give the same file."""
    buffer = io.BytesIO()
    try:
        figure.savefig(buffer, format=form, dpi=110, bbox_inches="tight", metadata=METADATA[form])
    finally:
        plt.close(figure)
    return buffer.getvalue()


def style(i: int) -> dict[str, Any]:
    """Colour, mark and dash of the i-th line: of 28 no two look alike."""
    turn = i // len(FIGURE_COLOURS)
    mark = MARKERS[(i + turn) % len(MARKERS)]
    return {"color": FIGURE_COLOURS[i % len(FIGURE_COLOURS)], "marker": mark, "linestyle": DASHES[turn % len(DASHES)]}


@literal
def eps_curve(title: str, rows: Sequence[PageRow], form: str = PNG) -> bytes:
    """Accuracy by radius, a line a model: mean over seeds, band from the lowest to the highest interval's end."""
    seeds = len({row["seed"] for row in rows})
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    models = list(dict.fromkeys(row["model"] for row in rows))
    for i, model in enumerate(models):
        mine = [row for row in rows if row["model"] == model]
        radii = sorted({row["eps"] for row in mine if row["eps"] is not None})
        at = [[row for row in mine if row["eps"] == eps] for eps in radii]
        means = [float(np.mean([row["robust_accuracy"] for row in group])) for group in at]
        low = [min(row["robust_accuracy_low"] for row in group) for group in at]
        high = [max(row["robust_accuracy_high"] for row in group) for group in at]
        axes.plot(radii, means, **style(i))
        axes.fill_between(radii, low, high, color=style(i)["color"], alpha=0.15, linewidth=0)
    band = f"mean over {seeds} seeds, band from the lowest to the highest end of their" if seeds > 1 else "band:"
    axes.text(0.5, 1.01, f"{band} 95 % intervals", transform=axes.transAxes, ha="center", va="bottom", fontsize=7)
    axes.set_title(words(title), pad=16)
    axes.set(xlabel=f"eps ({rows[0]['norm']}, images in [0, 1])", ylabel="accuracy", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    legend(axes, models, 8)
    return written(figure, form)


@literal
def confusion(title: str, matrices: dict[str, np.ndarray], names: Sequence[str], form: str = PNG) -> bytes:
    """Confusion matrices side by side, each row as shares of its true class."""
    names = [words(name, LONGEST // 2) for name in names]
    figure, all_axes = plt.subplots(1, len(matrices), figsize=(4.6 * len(matrices), 4.4), squeeze=False)
    for axes, (label, counts) in zip(all_axes[0], matrices.items(), strict=True):
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set(title=words(label), xlabel="predicted class", ylabel="true class")
        ticks = range(len(names))
        axes.set_xticks(ticks, names, rotation=90, fontsize=7)
        axes.set_yticks(ticks, names, fontsize=7)
        if len(names) <= 20:
            for (row, column), count in np.ndenumerate(counts):
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count) if count else "", ha="center", va="center", fontsize=6, color=colour)
    figure.suptitle(words(title))
    figure.tight_layout()
    return written(figure, form)


@literal
def picture_grid(
    title: str, clean: np.ndarray, attacked: np.ndarray, captions: Sequence[tuple[str, str]], form: str = PNG
) -> bytes:
    """Clean images, attacked ones and their difference, magnified to the full range around grey.

    clean, attacked: (N, C, H, W) in [0, 1].  captions: one for the clean and one for the attacked image.
    """
    difference = attacked - clean
    scale = float(np.abs(difference).max())
    shown = [clean, attacked, 0.5 + difference / (2 * scale or 1)]
    how = "no difference" if scale == 0 else f"difference x{times(0.5 / scale)}"
    figure, all_axes = plt.subplots(3, len(clean), figsize=(1.35 * len(clean), 4.6), squeeze=False)
    for row, (images, label) in enumerate(zip(shown, ("clean", "attacked", how), strict=True)):
        for column, image in enumerate(images):
            axes = all_axes[row, column]
            picture = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if row < 2:
                axes.set_title(words(captions[column][row]), fontsize=7)
            if column == 0:
                axes.set_ylabel(label, fontsize=8)
    figure.suptitle(words(title))
    return written(figure, form)


@literal
def training_figure(rows: Sequence[Training], form: str = PNG) -> bytes:
    """Validation accuracy by epoch, clean and under PGD: a fall of the second alone is catastrophic overfitting."""
    figure, all_axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True)
    for axes, column in zip(all_axes, ("clean_accuracy", "attacked_accuracy"), strict=True):
        for i, row in enumerate(rows):
            history = row["extra"]["history"]
            epochs = [epoch["epoch"] + 1 for epoch in history]
            axes.plot(epochs, [epoch[column] for epoch in history], markersize=4, **style(i))
        axes.set(title=f"validation, {column.split('_')[0]}", xlabel="epoch", ylim=(-0.02, 1.02))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("accuracy")
    legend(all_axes[1], [f"{words(row['model'])}, seed {row['seed']}" for row in rows], 7)
    return written(figure, form)
