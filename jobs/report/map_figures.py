"""Pictures of attributions for papers and slides: images, their maps, and how those change."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from robustq.jobs.report.figures import PNG, literal, words, written
from robustq.jobs.report.pictures.attribution_pictures import SIGNED, UNSIGNED, coloured, flattened, is_signed
from robustq.jobs.store.explanations.maps import KeptMaps

MOST = 3  # images of a picture


@literal
def maps_figure(title: str, kept: KeptMaps, captions: Sequence[Sequence[str]], form: str = PNG) -> bytes:
    """The first images, two rows each: as they are and as they were disturbed, and their maps below.

    captions: of each image's maps, in the order of `kept`.
    """
    names, count = list(kept.images), min(MOST, len(kept.index))
    signed = is_signed(kept.maps)
    figure, panels = plt.subplots(
        2 * count, len(names), figsize=(1.7 * len(names), 3.5 * count + 0.8), squeeze=False, layout="constrained"
    )
    for row in range(count):
        for column, name in enumerate(names):
            upper, lower = panels[2 * row, column], panels[2 * row + 1, column]
            image = kept.images[name][row].transpose(1, 2, 0).clip(0, 1)
            upper.imshow(image if image.shape[2] == 3 else image[:, :, 0], cmap="gray", vmin=0, vmax=1)
            lower.imshow(picture(kept.maps[name][row], signed).transpose(1, 2, 0))
            lower.set_xlabel(words(captions[row][column]), fontsize=8)
            if row == 0:
                upper.set_title(words(name.replace("-", " ")), fontsize=9)
    for panel in panels.flat:
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    said = "blue: against the class, red: for it" if signed else "the darker, the more a pixel matters"
    figure.suptitle(f"{words(title)}\n{said}; below: top pixels in common with the clean map", fontsize=10)
    return written(figure, form)


def picture(attribution: np.ndarray, signed: bool) -> Any:
    """Its colours, shape (3, H, W)."""
    values = flattened(attribution)
    return coloured((values + 1) / 2, SIGNED) if signed else coloured(values, UNSIGNED)
