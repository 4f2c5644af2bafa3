"""The checks of an explanation: does it depend on the weights, and does it find what the class depends on?"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from robustlib.checks.thresholds import PASS, WARN, CheckResult, check_result
from robustlib.metrics import CLEAN
from robustlib.number_text import counted
from robustlib.settings import EXPLANATION_SANITY

FEWEST = 5  # images: of fewer the test cannot come below its level, whatever it sees


def sanity_checks(similarity: np.ndarray, gains: np.ndarray, random_gains: np.ndarray) -> list[CheckResult]:
    """What speaks for and against an explanation, of images that it was made for; shape (n,) each.

    similarity: each image's rank correlation of the map with that of randomised weights; NaN where it is constant.
    gains, random_gains: each image's `robustlib.explanations.sanity.relevance`, and that of a random order of pixels.
    Raises ValueError for no image.
    """
    if len(similarity) == 0:
        raise ValueError("expected explanations of at least one image, got none")
    return [constant_map(similarity), random_weights(similarity), random_order(gains, random_gains)]


def explanation_checks(columns: Mapping[str, np.ndarray]) -> list[CheckResult]:
    """The same from per-example columns, see robustlib.evaluation.explanation_stability: of the images explained."""
    clean = (columns["against"] == CLEAN) & (columns["prediction"] == columns["explained"])
    if not clean.any():
        return [replace(check_result("random-order", None, "no image was explained"), verdict=WARN)]
    return sanity_checks(*(columns[name][clean] for name in EXPLANATION_SANITY))


def constant_map(similarity: np.ndarray) -> CheckResult:
    share = float(np.isnan(similarity).mean())
    found = check_result("constant-map", share)
    return noted(found, "the map is constant on most images")


def random_weights(similarity: np.ndarray) -> CheckResult:
    if np.isnan(similarity).mean() > 0.5:
        return check_result("random-weights", None, "the map is constant on most images")
    alike = float(np.nanmean(similarity))
    found = check_result("random-weights", alike)
    return noted(
        found,
        f"the map hardly changes with randomised weights: rank correlation {alike:.2f}, "
        f"below {found.threshold} expected",
    )


def random_order(gains: np.ndarray, random_gains: np.ndarray) -> CheckResult:
    """The p-value of Wilcoxon's signed-rank test, one-sided, on the same images."""
    from scipy import stats  # takes a second, which a driver that puts shards together has no use for

    if len(gains) < FEWEST:
        images = counted(len(gains), "image is", "images are")
        found = check_result("random-order", None, f"{images} too few for the test, {FEWEST} may do")
        return replace(found, verdict=WARN)
    differences = gains - random_gains
    test: Any = stats.wilcoxon(differences, alternative="greater") if differences.any() else None
    found = check_result("random-order", 1.0 if test is None else float(test.pvalue))
    return noted(
        found,
        f"its order of pixels is no better than a random one: relevance gain {gains.mean():.3f}, "
        f"random {random_gains.mean():.3f}",
    )


def noted(found: CheckResult, words: str) -> CheckResult:
    """The check with these words where it warns or fails."""
    return found if found.verdict == PASS else replace(found, note=words)
