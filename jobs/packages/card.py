"""The card of a package, `card.json`: what the model is, what was measured of it, and every file by its hash.

Accuracies are fractions in [0, 1]; eps is in units of images in [0, 1]; times are in seconds, moments in ISO 8601, UTC.
A card may be anybody's: every number has its range here and every text its length, so that who reads one need not look.
"""

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from robustlib.arguments import Norm
from robustlib.monitoring.signals import MARGIN, NOISE, REPEATS
from robustlib.packages.contents import PackageError
from robustlib.packages.manifest import FORMAT, Package
from robustq.jobs.text.bounded_fields import (
    Asked,
    Count,
    Distance,
    End,
    Fraction,
    Gap,
    Likeness,
    Number,
    Said,
    Seconds,
    Seed,
    Sha256,
    Side,
    Text,
)
from robustq.jobs.text.safe_text import brief

MOST_SHOWN = 120  # letters of a place in the card, in an error
Verdict = Literal["pass", "warn", "fail"]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Share(Part):
    """An accuracy on n images, with Wilson's 95 % interval."""

    n: Count
    accuracy: Fraction
    low: Fraction
    high: Fraction


class Check(Part):
    """A check that an evaluation did not pass: docs/checks.md."""

    name: Text
    value: Number | None
    threshold: Number | None
    verdict: Verdict
    note: Text


class AuditTold(Part):
    """What an audit tried, and why the naive number does not hold, where it does not."""

    verdict: Verdict
    cause: Text | None
    naive_robust_accuracy: Fraction
    adaptive_robust_accuracy: Fraction
    tried: list[Said]


class Evaluation(Part):
    """A stored result of the network. kind: what it bounds, and from where.  checks: those not passed.

    job, key: its number in the store, and the hash of what was computed.  distances: of minimum-norm attacks.
    """

    kind: Literal["clean", "attack", "worst-case", "certificate", "audit", "corruption"]
    job: Count
    key: Sha256
    attack: Text
    norm: Norm | None
    eps: Distance | None
    recipe: Text
    seed: Seed
    clean: Share
    robust: Share
    distance_median: Distance | None
    verdict: Verdict | None
    checks: list[Check]
    audit: AuditTold | None = None
    seconds: Seconds
    device: Text
    versions: dict[Text, Text]
    recorded_at: Text


class Measured(Part):
    """A mean over images, with Student's 95 % interval; None for an interval of one image."""

    mean: Likeness
    low: End | None
    high: End | None


class Disturbed(Part):
    """Maps of images to which one thing was done, beside those of the images as they are. against: noise, an attack on
    the class by its name, or explanation-attack.  kept: images that still have the class that is explained.
    """

    against: Text
    kept: Count
    top_intersection: Measured | None
    spearman: Measured | None
    ssim: Measured | None


class Explained(Part):
    """What noise and attacks of radius eps do to an explanation of the network. target: the class that is explained.

    n: images that were explained.  recipe: all parameters, the share of pixels that are top among them.  verdict: of
    the checks of the network, and of the sanity of the explanation.  checks: those not passed.  disturbed: noise first.
    """

    job: Count
    key: Sha256
    method: Text
    target: Literal["predicted", "true"]
    norm: Norm
    eps: Distance
    recipe: Text
    seed: Seed
    n: Count
    verdict: Verdict | None
    checks: list[Check]
    disturbed: list[Disturbed]
    seconds: Seconds
    device: Text
    versions: dict[Text, Text]
    recorded_at: Text


class ClassAccuracy(Part):
    """Clean accuracy on the images of one class."""

    name: Text
    n: Count
    accuracy: Fraction | None


class Training(Part):
    """How the network was trained. settings: all of them.  validation: accuracies on images held out, at its end."""

    objective: Text
    settings: Said
    seed: Seed
    key: Sha256
    validation: dict[Text, Number]
    seconds: Seconds
    device: Text
    versions: dict[Text, Text]


class Code(Part):
    """The user's code that builds the network, which is not in the package. sha256: of it and what it imports."""

    name: Text
    sha256: Sha256


class Defence(Part):
    """A defence around the network, by its name."""

    name: Text
    params: Said


class Network(Part):
    """arch: its architecture by name, None for the user's own `code`.  weights: the hash of where they came from.

    defence: put around it, the first next to it; the programs have it in them.
    """

    arch: Text | None
    code: Code | None
    options: Said
    defence: list[Defence]
    normalisation: dict[Text, list[Number]] | None
    parameters: Count
    weights: Sha256 | None


class Preprocessing(Part):
    """What an image must go through before the program has it. size: (height, width) in pixels."""

    input: Text
    output: Text
    layout: Literal["NCHW"]
    channels: Side
    size: tuple[Side, Side]
    colours: Text
    dtype: Literal["float32"]
    range: tuple[Fraction, Fraction]
    from_bytes: Text
    reading: Said


class Data(Part):
    """The data set of all numbers here. sha256: of its files' content."""

    name: Text
    split: Text
    sha256: Sha256


class Reattack(Part):
    """What the program does on images that were attacked, or not. network_accuracy: of the network, on the same images.

    what: "clean" are the evaluation's originals, "transfer" its attacked images, made on the network, "square" is an
    attack on the program itself.  differing: places of images to which program and network give different classes, of
    "square" those that it broke and no stored attack had.
    """

    what: Literal["clean", "transfer", "square"]
    job: Count | None
    attack: Text | None
    norm: Norm | None
    eps: Distance | None
    queries: Count | None
    seed: Seed | None
    program: Share
    network_accuracy: Fraction | None
    differing: list[Count]
    largest_difference: Gap | None
    note: Text = ""


class Latency(Part):
    """Seconds of a call with so many images. runs: calls that were timed."""

    batch: Count
    p50: Seconds
    p99: Seconds
    runs: Count


class Program(Part):
    """A program of the package as it was judged. tolerance: most that a logit may differ by, None where an accuracy is
    the limit: then it may lose `accuracy_loss`.  why: these limits.
    """

    file: Text
    precision: Literal["float32", "int8"]
    largest_difference: Gap
    tolerance: Gap | None
    accuracy_loss: Fraction
    why: Text
    rows: list[Reattack]
    latency: list[Latency]
    device: Text
    threads: Count
    runtime: Text


class Flagged(Part):
    """The share of n images, or queries, that a signal flags, with Wilson's 95 % interval: of queries at so many
    samples as there are attacks.
    """

    n: Count
    rate: Fraction
    low: Fraction
    high: Fraction


class SignalRate(Part):
    """What a signal does on some images. signal: one of robustlib.monitoring.signals.

    on: "clean" images; "stored" are attacked images of the stored evaluation; "square" are queries of Square;
    "adaptive" is an attack that knows the signal.  fooled: the share of them that are misclassified.  missed:
    misclassified, and not flagged; of query attacks, at none of their queries. Both None of clean images.
    """

    signal: Text
    on: Literal["clean", "stored", "square", "adaptive"]
    flagged: Flagged
    fooled: Fraction | None
    missed: Fraction | None
    note: Text


class Monitoring(Part):
    """Signals that the served program may be under attack, as they were measured: monitoring, never a defence.

    sigma, copies: of the noise of votes, and how many.  window, nearest: queries of a client that are remembered, and
    which of the nearest is looked at.  thresholds: by signal.  ranges: of each image's statistics.
    """

    sigma: Fraction
    copies: Asked
    window: Asked
    nearest: Asked
    thresholds: dict[Text, Number]
    ranges: dict[Text, tuple[Number, Number]]
    rates: list[SignalRate]
    note: Text

    @field_validator("thresholds")
    @classmethod
    def each_signal(cls, thresholds: dict[str, float]) -> dict[str, float]:
        if missing := {NOISE, MARGIN, REPEATS} - thresholds.keys():
            raise ValueError(f"expected one of each signal, got none of {', '.join(sorted(missing))}")
        return thresholds


class Golden(Part):
    """Images to try the programs on. tolerance: most that a logit may differ by on another machine, by program."""

    file: Text
    n: Count
    tolerance: dict[Text, Gap]


class File(Part):
    sha256: Sha256
    bytes: Count


class Card(Part):
    """All of a package. warnings: what a reader must know first.  not_said: what the numbers do not say.

    monitoring: None where it was not measured, as in packages of before there was any.  explanations: those that the
    store has, none in packages of before.
    """

    format: Literal["robustq-package/1"] = FORMAT
    name: Text
    made_at: Text
    made_with: dict[Text, Text]
    warnings: list[Text]
    evaluated: bool
    network: Network
    preprocessing: Preprocessing
    classes: list[Text]
    data: Data
    clean: Share | None
    clean_by_class: list[ClassAccuracy]
    evaluations: list[Evaluation]
    training: Training | None
    programs: list[Program]
    golden: Golden
    not_said: list[Text]
    files: dict[Text, File]
    monitoring: Monitoring | None = None
    explanations: list[Explained] = []


def card_of(package: Package) -> Card:
    """The card of a package that was opened. Raises PackageError for one that is not of this format."""
    try:
        return Card.model_validate(package.card)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        where = where if len(where) <= MOST_SHOWN else brief(where, MOST_SHOWN)
        raise PackageError(f"it is no card of this format: {where}: {first['msg']}") from error


def card_bytes(card: Card) -> bytes:
    """The card as it is stored, and as its digest is made of."""
    return (card.model_dump_json(indent=1) + "\n").encode()


def schema_bytes() -> bytes:
    """The JSON schema of a card."""
    return (json.dumps(Card.model_json_schema(), indent=1) + "\n").encode()
