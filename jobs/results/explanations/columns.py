"""The columns of a row of explanations: one thing that was done to the images of one job."""

from typing import TypedDict

from robustlib.settings import EXPLANATION_ATTACK, NOISE


class ExplanationRow(TypedDict):
    """A row of v_explanations, its columns in the order in which they are exported; and why it warns or fails.

    method: the explanation.  target: the class that is explained, predicted or true.  against: clean for the images as
    they are, noise, explanation-attack, or the name of an attack on the class; all of radius eps in norm, eps in units
    of images in [0, 1].  n: images that were explained, over which the means are.  kept: of them those that still have
    the class that is explained on the clean image.  top_intersection to ssim: of a map with that of the clean image,
    None in clean rows.  deletion, insertion: of a map on its own image.  *_low, *_high: ends of 95 % intervals.
    """

    sweep: str
    model: str
    arch: str | None
    defence: str | None
    dataset: str
    attack: str
    method: str
    target: str
    norm: str
    eps: float
    seed: int
    against: str
    recipe: str
    n: int
    kept: int
    top_intersection: float | None
    top_intersection_low: float | None
    top_intersection_high: float | None
    near_top_intersection: float | None
    near_top_intersection_low: float | None
    near_top_intersection_high: float | None
    spearman: float | None
    spearman_low: float | None
    spearman_high: float | None
    ssim: float | None
    ssim_low: float | None
    ssim_high: float | None
    deletion: float | None
    deletion_low: float | None
    deletion_high: float | None
    insertion: float | None
    insertion_low: float | None
    insertion_high: float | None
    clean_accuracy: float
    verdict: str | None
    why: str | None
    seconds: float
    device: str
    versions: dict[str, str]
    recorded_at: float
    key: str
    job_id: int


EXPLANATION_COLUMNS = tuple(ExplanationRow.__annotations__)
# What makes two explanations the same but for the model and the seed.
SAME_EXPLANATION = ("dataset", "method", "target", "norm", "eps", "recipe")


def place_of(against: str) -> tuple[int, str]:
    """The order of what was done to images: as they are, noise, attacks on the class, the one on the explanation."""
    known = {"clean": 0, NOISE: 1, EXPLANATION_ATTACK: 3}
    return known.get(against, 2), against
