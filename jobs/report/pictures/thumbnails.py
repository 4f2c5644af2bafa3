"""A data set's images beside attacked ones and their difference, as small PNGs for the page."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from robustlib.datasets import load
from robustq.jobs.report.pictures.image_outcomes import Outcome
from robustq.jobs.specs import DataRef

MOST_SIDE = 112  # of a picture on the page; larger images are shrunk to it


@dataclass(frozen=True)
class Data:
    """The data set's test split, or the reason why it cannot be shown; the classes by name, or by number without it."""

    dataset: load.Dataset | None
    reason: str
    names: tuple[str, ...]

    def name(self, label: int) -> str:
        return self.names[label] if label < len(self.names) else str(label)


def find_data(ref: DataRef) -> Data:
    try:
        if load.fingerprint(ref.place, ref.split, ref.reading) != ref.sha256:
            gone = f"the data set {ref.place} on this machine is another than the one that was evaluated"
            return Data(None, gone, ())
        dataset = load.load(ref.place, ref.split, ref.reading)
    except (OSError, ValueError) as error:  # the page is about results, and those are there
        return Data(None, str(error), ())
    return Data(dataset, "", dataset.names)


@dataclass(frozen=True)
class ImageTriple:
    """One image three ways, as data URLs, with its classes by name."""

    place: int
    clean: str
    attacked: str
    difference: str
    label: str
    before: str
    after: str

    @property
    def broken(self) -> bool:
        return self.after != self.label

    @property
    def misled(self) -> bool:
        """Whether the attack did it."""
        return self.broken and self.before == self.label

    @property
    def caption(self) -> str:
        """Its outcome in words."""
        if self.before != self.label:
            return f"{self.label}, misclassified without an attack, as {self.before}"
        return f"{self.label}, misclassified as {self.after}" if self.broken else f"{self.label} ✓ robust"


@dataclass(frozen=True)
class Drawn:
    """The first images of an evaluation.  magnified: factor of the difference, which is put on grey; None where there
    is none.
    """

    magnified: float | None
    images: tuple[ImageTriple, ...]


def draw(clean: np.ndarray, attacked: np.ndarray, found: Outcome, data: Data) -> Drawn:
    """clean, attacked: shape (N, C, H, W), in [0, 1]."""
    difference = np.nan_to_num(attacked - clean)
    largest = float(np.abs(difference).max(initial=0))
    scale = 0.5 / largest if largest else None
    images = tuple(
        ImageTriple(
            place,
            *(png_url(picture) for picture in (clean[place], attacked[place], 0.5 + (scale or 0) * difference[place])),
            *(data.name(label) for label in found.first[place]),
        )
        for place in range(len(attacked))
    )
    return Drawn(scale, images)


def png_url(image: np.ndarray) -> str:
    """An image of shape (C, H, W) in [0, 1] as a data URL."""
    levels = np.rint(np.nan_to_num(image).clip(0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(levels[0] if len(levels) == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0)))
    picture.thumbnail((MOST_SIDE, MOST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
