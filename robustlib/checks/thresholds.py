"""Every check's threshold, with its reason: the one table that verdicts and documentation rest on. Free of torch."""

from collections.abc import Iterable
from dataclasses import dataclass

PASS, WARN, FAIL = VERDICTS = ("pass", "warn", "fail")


@dataclass(frozen=True)
class Limit:
    """A check's value is the worse the larger it is: above `warn` it warns, above `fail` it fails.

    blocking: whether failing it takes the word "robust" from the row; a failure of another check only warns.
    """

    meaning: str
    warn: float
    fail: float | None
    blocking: bool
    source: str


OURS = "ours"
CARLINI = "Carlini et al. 2019, https://arxiv.org/abs/1902.06705"
ATHALYE = "Athalye et al. 2018, https://arxiv.org/abs/1802.00420"
PINTOR = "Pintor et al. 2022, https://arxiv.org/abs/2106.09947"
CROCE = "Croce and Hein 2020, https://arxiv.org/abs/2003.01690"
ADAPTIVE = "Croce et al. 2022, https://arxiv.org/abs/2202.13711"
ADEBAYO = "Adebayo et al. 2018, https://arxiv.org/abs/1810.03292"
BLUECHER = "Bluecher et al. 2024, https://arxiv.org/abs/2401.06654"

LIMITS: dict[str, Limit] = {
    # Of the model, on 64 images.
    "eval-mode": Limit("layers that stay in training mode when asked to evaluate", 0, 0, True, CARLINI),
    "logits": Limit(
        "share of rows that are probabilities, not logits", 0, 0.5, True, "Croce and Hein's reference warns"
    ),
    "batch-independence": Limit(
        "largest change of a logit with its batch (1, 7, 64), in standard deviations of logits", 1e-3, 0.05, True, OURS
    ),
    "gradient": Limit("share of images without a gradient, or with NaN or infinity in it", 0, 0, True, ATHALYE),
    "zero-gradient": Limit("share of images at which the gradient of the cross-entropy is 0", 0.01, 0.25, True, PINTOR),
    "test-time": Limit(
        "adaptation to what is asked: 1 where only the state changes, 2 where answers do or a pass takes gradients",
        0,
        1,
        True,
        ADAPTIVE,
    ),
    # Of an evaluation.
    "chance": Limit("share of the most frequent class, over the clean accuracy", 0.7, 0.85, True, OURS),
    "normalisation": Limit(
        "clean accuracy that another usual normalisation adds, where it is near chance", 0.15, None, False, OURS
    ),
    "noise": Limit("robust images that the model misclassifies at one random point of the ball", 0, 0, True, CARLINI),
    "unmoved": Limit(
        "share of robust images that an attack without success leaves as they are, whatever radius it is given",
        0.5,
        0.9,
        True,
        CARLINI,
    ),
    "noise-nearer": Limit(
        "share of images misclassified at a random point nearer than an attack without limit came, or where it failed",
        0.01,
        0.05,
        True,
        CARLINI,
    ),
    "eight-bit": Limit(
        "share of adversarial images that are classified correctly after rounding to 8 bits", 0.5, None, False, OURS
    ),
    # Of several attacks on a model.
    "fgsm-beats-pgd": Limit(
        "share of images that FGSM finds adversarial examples of, and PGD none", 0.005, 0.05, True, CARLINI
    ),
    "square-beats-gradients": Limit(
        "share of images that Square finds adversarial examples of, and no attack with gradients",
        0.002,
        0.02,
        True,
        CARLINI,
    ),
    "accuracy-rises-with-eps": Limit("rise of robust accuracy from a radius to a larger one", 0, 0.02, True, CARLINI),
    # Of an audit.
    "adaptive-gap": Limit("naive robust accuracy minus that under the best attack tried", 0.07, 0.20, True, CROCE),
    "beyond-gradients": Limit(
        "robust accuracy under attacks with the model's own gradients, minus that under the best attack tried",
        0.01,
        0.05,
        True,
        CARLINI,
    ),
    "slope": Limit(
        "share of images whose loss rises by less than a tenth of what the gradient says, a step along it",
        0.2,
        None,
        False,
        ATHALYE,
    ),
    "backward-pass": Limit(
        "share of images at which the gradient is not the slope of the loss, by tiny differences in float64",
        0.1,
        None,
        False,
        OURS,
    ),
    "loss-landscape": Limit(
        "mean change of the margin over its mean size, for noise of the radius", 0.5, None, False, PINTOR
    ),
    "unbounded": Limit("share of images that are robust at a radius that allows any image", 0, 0.05, True, CARLINI),
    "convergence": Limit(
        "share of images that only twice the steps find adversarial examples of", 0.02, None, False, CARLINI
    ),
    "randomness": Limit("naive robust accuracy minus that under the expectation over draws", 0.03, 0.10, True, ATHALYE),
    "fresh-draws": Limit(
        "drop of the reported accuracy on fresh draws, in half widths of its interval", 1, 2, True, OURS
    ),
    "plateau": Limit("drop of robust accuracy from 10 draws a step to 40", 0.02, None, False, ATHALYE),
    "surrogate": Limit(
        "share of robust images that attacks on a surrogate find adversarial examples of", 0.005, 0.05, True, CARLINI
    ),
    # Of an explanation.
    "constant-map": Limit("share of images whose explanation is constant", 0.5, 0.5, True, OURS),
    "random-weights": Limit(
        "mean rank correlation of an explanation, with its signs, with that of randomised weights",
        0.8,
        0.8,
        True,
        f"{ADEBAYO}; the threshold is ours",
    ),
    "random-order": Limit(
        "p-value of the test that an explanation orders pixels better than chance",
        0.05,
        0.5,
        True,
        f"{BLUECHER}; the thresholds are ours",
    ),
}


@dataclass(frozen=True)
class CheckResult:
    """The result of a check. value: None if there was nothing to look at.  examples: indices in the data."""

    name: str
    value: float | None
    threshold: float
    verdict: str
    note: str
    examples: tuple[int, ...] = ()


def check_result(name: str, value: float | None, note: str = "", examples: Iterable[int] = ()) -> CheckResult:
    """The result of a check from its value, by the table."""
    limit = LIMITS[name]
    threshold = limit.warn if limit.fail is None else limit.fail
    if value is None:
        return CheckResult(name, None, threshold, PASS, note or "nothing to look at")
    verdict = WARN if value > limit.warn else PASS
    if limit.fail is not None and value > limit.fail:
        verdict = FAIL
    shown = tuple(int(place) for place in examples)[:20] if verdict != PASS else ()
    return CheckResult(name, float(value), threshold, verdict, note or limit.meaning, shown)


def overall(results: Iterable[CheckResult]) -> str:
    """The worst verdict; a failed check that is not blocking counts as a warning."""
    worst = PASS
    for result in results:
        verdict = result.verdict
        if verdict == FAIL and not LIMITS[result.name].blocking:
            verdict = WARN
        worst = max(worst, verdict, key=VERDICTS.index)
    return worst


def merge_results(parts: Iterable[CheckResult]) -> list[CheckResult]:
    """The results of several parts of an evaluation as one each: the worst, with the examples of all."""
    found: dict[str, CheckResult] = {}
    for part in parts:
        before = found.get(part.name)
        if before is None:
            found[part.name] = part
            continue
        worse = max(before, part, key=lambda one: (VERDICTS.index(one.verdict), one.value or 0.0))
        examples = tuple(sorted({*before.examples, *part.examples}))[:20]
        found[part.name] = CheckResult(worse.name, worse.value, worse.threshold, worse.verdict, worse.note, examples)
    return list(found.values())
