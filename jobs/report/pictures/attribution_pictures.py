"""Pictures of attributions: colours that suit signed and unsigned ones, a legend for each, and the change of a map."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from robustq.jobs.report.pictures.thumbnails import png_url

Colour = tuple[int, int, int]

# Okabe and Ito's blue and vermilion, which colour-blind readers can tell apart, darker towards the ends. Lightness
# falls evenly from nothing to the ends, so that black and white still shows how much.
SIGNED: tuple[Colour, ...] = ((0, 42, 74), (0, 114, 178), (247, 247, 247), (213, 94, 0), (96, 36, 0))
UNSIGNED: tuple[Colour, ...] = ((247, 247, 247), (86, 180, 233), (0, 114, 178), (0, 28, 50))
SHARE = 0.99  # of a map's pixels lie within its colours: one bright pixel would leave the others pale
LEGEND = 64  # colours in a legend
SOFT = "explana\u00adtion"  # may be broken there, where a phone has no room for it


@dataclass(frozen=True)
class Legend:
    """What the colours mean, with the words at both ends and, of signed ones, in the middle."""

    url: str
    low: str
    middle: str
    high: str


@dataclass(frozen=True)
class Panel:
    """An image, its map, and how that differs from the first one's, as data URLs with texts for who cannot see them.

    label: what was done to the image.  change: empty of the first.
    """

    label: str
    image: str
    image_alt: str
    map: str
    map_alt: str
    change: str = ""
    change_alt: str = ""


@dataclass(frozen=True)
class ExplainedImage:
    """An image with its maps: as it is, and under what was done to it."""

    caption: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class MapGrid:
    """The first images of one model by one method.  legend: of the maps.  change_legend: of their differences."""

    title: str
    images: tuple[ExplainedImage, ...]
    legend: Legend
    change_legend: Legend


def flattened(attribution: np.ndarray) -> np.ndarray:
    """An attribution of shape (1 or C, H, W) as one value a pixel, the channels' sum, scaled to at most 1."""
    values = np.nan_to_num(attribution.astype(np.float64)).sum(0)
    largest = float(np.quantile(np.abs(values), SHARE)) or float(np.abs(values).max())
    return (values / largest).clip(-1, 1) if largest else values


def coloured(values: np.ndarray, colours: tuple[Colour, ...]) -> np.ndarray:
    """Values from 0 to 1 as colours in [0, 1], shape (3, H, W): those between the given ones are mixed."""
    places = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(values, places, channel) for channel in zip(*colours, strict=True)]) / 255


def is_signed(maps: Mapping[str, np.ndarray]) -> bool:
    """Whether the maps of a method tell what speaks for a class from what speaks against it."""
    return any(bool((values < 0).any()) for values in maps.values())


def map_url(values: np.ndarray, *, signed: bool) -> str:
    """A flattened map as a picture."""
    return png_url(coloured((values + 1) / 2, SIGNED) if signed else coloured(values, UNSIGNED))


def legend(*, signed: bool) -> Legend:
    ramp = np.linspace(-1 if signed else 0, 1, LEGEND)[None]
    low, middle = ("against the class", "nothing") if signed else ("nothing", "")
    return Legend(map_url(ramp, signed=signed), low, middle, "for the class" if signed else "matters most")


def change_legend() -> Legend:
    return Legend(
        map_url(np.linspace(-1, 1, LEGEND)[None], signed=True), "less than in the clean map", "as there", "more"
    )


def explained_image(
    place: int,
    label: str,
    images: Mapping[str, np.ndarray],
    maps: Mapping[str, np.ndarray],
    common: Mapping[str, float],
    classes: Mapping[str, str],
    *,
    signed: bool,
) -> ExplainedImage:
    """Panels of one image. images, maps: by what was done to it, the clean one first, shape (C, H, W).

    common: share of the top pixels that the map has in common with the clean one.  classes: what the model takes each
    image for.  label: its true class.
    """
    flat = {name: flattened(values) for name, values in maps.items()}
    first = next(iter(images))
    panels = []
    for name, image in images.items():
        shown = {"image_alt": f"Image {place}, {name}: {label}, taken for {classes[name]}"}
        shown["map_alt"] = f"Map of image {place}, {name}: {where(flat[name])}"
        if name != first:
            shown["map_alt"] += f"; {100 * common[name]:.0f} % of the top pixels are those of the clean map"
            shown |= {"change": map_url((flat[name] - flat[first]).clip(-1, 1), signed=True)}
            shown |= {"change_alt": f"Change of the map of image {place} under {name}"}
        head = name.replace("-", " ").replace("explanation", SOFT)
        panels.append(Panel(head, png_url(image), map=map_url(flat[name], signed=signed), **shown))
    told = ", ".join(f"{name} {100 * common[name]:.0f} %" for name in images if name != first)
    return ExplainedImage(f"Class {label}; top pixels in common: {told}", tuple(panels))


def where(values: np.ndarray) -> str:
    """Where in the image a map's weight lies, in words."""
    weight = np.abs(values)
    if not weight.any():
        return "nothing"
    rows, columns = (np.arange(size) + 0.5 for size in weight.shape)
    down = float((weight.sum(1) * rows).sum() / weight.sum() / len(rows))
    across = float((weight.sum(0) * columns).sum() / weight.sum() / len(columns))
    vertical = "upper" if down < 0.45 else "lower" if down > 0.55 else "middle"
    side = "left" if across < 0.45 else "right" if across > 0.55 else "centre"
    return (
        f"its weight lies in the {vertical} {side}"
        if (vertical, side) != ("middle", "centre")
        else "its weight lies in the middle"
    )
