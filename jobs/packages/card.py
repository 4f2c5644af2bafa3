"""The card of a package, `card.json`: what the model is, what was measured of it, and every file by its hash.

Accuracies are fractions in [0, 1]; eps is in units of images in [0, 1]; times are in seconds, moments in ISO 8601, UTC.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from robustlib.packages.contents import PackageError
from robustlib.packages.manifest import FORMAT, Package

Fraction = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Verdict = Literal["pass", "warn", "fail"]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Share(Part):
    """An accuracy on n images, with Wilson's 95 % interval."""

    n: int
    accuracy: Fraction
    low: Fraction
    high: Fraction


class Check(Part):
    """A check that an evaluation did not pass: docs/checks.md."""

    name: str
    value: float | None
    threshold: float | None
    verdict: Verdict
    note: str


class AuditTold(Part):
    """What an audit tried, and why the naive number does not hold, where it does not."""

    verdict: Verdict
    cause: str | None
    naive_robust_accuracy: Fraction
    adaptive_robust_accuracy: Fraction
    tried: list[dict[str, Any]]


class Evaluation(Part):
    """A stored result of the network. kind: what it bounds, and from where.  checks: those not passed.

    job, key: its number in the store, and the hash of what was computed.  distances: of minimum-norm attacks.
    """

    kind: Literal["clean", "attack", "worst-case", "certificate", "audit", "corruption"]
    job: int
    key: Sha256
    attack: str
    norm: str | None
    eps: float | None
    recipe: str
    seed: int
    clean: Share
    robust: Share
    distance_median: float | None
    verdict: Verdict | None
    checks: list[Check]
    audit: AuditTold | None = None
    seconds: float
    device: str
    versions: dict[str, str]
    recorded_at: str


class Measured(Part):
    """A mean over images, with Student's 95 % interval; None for an interval of one image."""

    mean: float
    low: float | None
    high: float | None


class Disturbed(Part):
    """Maps of images to which one thing was done, beside those of the images as they are. against: noise, an attack on
    the class by its name, or explanation-attack.  kept: images that still have the class that is explained.
    """

    against: str
    kept: int
    top_intersection: Measured | None
    spearman: Measured | None
    ssim: Measured | None


class Explained(Part):
    """What noise and attacks of radius eps do to an explanation of the network. target: the class that is explained.

    n: images that were explained.  recipe: all parameters, the share of pixels that are top among them.  verdict: of
    the checks of the network, and of the sanity of the explanation.  checks: those not passed.  disturbed: noise first.
    """

    job: int
    key: Sha256
    method: str
    target: Literal["predicted", "true"]
    norm: str
    eps: float
    recipe: str
    seed: int
    n: int
    verdict: Verdict | None
    checks: list[Check]
    disturbed: list[Disturbed]
    seconds: float
    device: str
    versions: dict[str, str]
    recorded_at: str


class ClassAccuracy(Part):
    """Clean accuracy on the images of one class."""

    name: str
    n: int
    accuracy: Fraction | None


class Training(Part):
    """How the network was trained. settings: all of them.  validation: accuracies on images held out, at its end."""

    objective: str
    settings: dict[str, Any]
    seed: int
    key: Sha256
    validation: dict[str, float]
    seconds: float
    device: str
    versions: dict[str, str]


class Code(Part):
    """The user's code that builds the network, which is not in the package. sha256: of it and what it imports."""

    name: str
    sha256: Sha256


class Network(Part):
    """arch: its architecture by name, None for the user's own `code`.  weights: the hash of where they came from.

    defence: put around it, the first next to it; the programs have it in them.
    """

    arch: str | None
    code: Code | None
    options: dict[str, Any]
    defence: list[dict[str, Any]]
    normalisation: dict[str, list[float]] | None
    parameters: int
    weights: Sha256 | None


class Preprocessing(Part):
    """What an image must go through before the program has it. size: (height, width) in pixels."""

    input: str
    output: str
    layout: Literal["NCHW"]
    channels: int
    size: tuple[int, int]
    colours: str
    dtype: Literal["float32"]
    range: tuple[float, float]
    from_bytes: str
    reading: dict[str, Any]


class Data(Part):
    """The data set of all numbers here. sha256: of its files' content."""

    name: str
    split: str
    sha256: Sha256


class Reattack(Part):
    """What the program does on images that were attacked, or not. network_accuracy: of the network, on the same images.

    what: "clean" are the evaluation's originals, "transfer" its attacked images, made on the network, "square" is an
    attack on the program itself.  differing: places of images to which program and network give different classes, of
    "square" those that it broke and no stored attack had.
    """

    what: Literal["clean", "transfer", "square"]
    job: int | None
    attack: str | None
    norm: str | None
    eps: float | None
    queries: int | None
    seed: int | None
    program: Share
    network_accuracy: Fraction | None
    differing: list[int]
    largest_difference: float | None
    note: str = ""


class Latency(Part):
    """Seconds of a call with so many images. runs: calls that were timed."""

    batch: int
    p50: float
    p99: float
    runs: int


class Program(Part):
    """A program of the package as it was judged. tolerance: most that a logit may differ by, None where an accuracy is
    the limit: then it may lose `accuracy_loss`.  why: these limits.
    """

    file: str
    precision: Literal["float32", "int8"]
    largest_difference: float
    tolerance: float | None
    accuracy_loss: Fraction
    why: str
    rows: list[Reattack]
    latency: list[Latency]
    device: str
    threads: int
    runtime: str


class Flagged(Part):
    """The share of n images, or queries, that a signal flags, with Wilson's 95 % interval: of queries at so many
    samples as there are attacks.
    """

    n: int
    rate: Fraction
    low: Fraction
    high: Fraction


class SignalRate(Part):
    """What a signal does on some images. signal: one of robustlib.monitoring.signals.

    on: "clean" images; "stored" are attacked images of the stored evaluation; "square" are queries of Square;
    "adaptive" is an attack that knows the signal.  fooled: the share of them that are misclassified.  missed:
    misclassified, and not flagged; of query attacks, at none of their queries. Both None of clean images.
    """

    signal: str
    on: Literal["clean", "stored", "square", "adaptive"]
    flagged: Flagged
    fooled: Fraction | None
    missed: Fraction | None
    note: str


class Monitoring(Part):
    """Signals that the served program may be under attack, as they were measured: monitoring, never a defence.

    sigma, copies: of the noise of votes, and how many.  window, nearest: queries of a client that are remembered, and
    which of the nearest is looked at.  thresholds: by signal.  ranges: of each image's statistics.
    """

    sigma: float
    copies: int
    window: int
    nearest: int
    thresholds: dict[str, float]
    ranges: dict[str, tuple[float, float]]
    rates: list[SignalRate]
    note: str


class Golden(Part):
    """Images to try the programs on. tolerance: most that a logit may differ by on another machine, by program."""

    file: str
    n: int
    tolerance: dict[str, float]


class File(Part):
    sha256: Sha256
    bytes: int


class Card(Part):
    """All of a package. warnings: what a reader must know first.  not_said: what the numbers do not say.

    monitoring: None where it was not measured, as in packages of before there was any.  explanations: those that the
    store has, none in packages of before.
    """

    format: Literal["robustq-package/1"] = FORMAT
    name: str
    made_at: str
    made_with: dict[str, str]
    warnings: list[str]
    evaluated: bool
    network: Network
    preprocessing: Preprocessing
    classes: list[str]
    data: Data
    clean: Share | None
    clean_by_class: list[ClassAccuracy]
    evaluations: list[Evaluation]
    training: Training | None
    programs: list[Program]
    golden: Golden
    not_said: list[str]
    files: dict[str, File]
    monitoring: Monitoring | None = None
    explanations: list[Explained] = []


def card_of(package: Package) -> Card:
    """The card of a package that was opened. Raises PackageError for one that is not of this format."""
    try:
        return Card.model_validate(package.card)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PackageError(f"it is no card of this format: {where}: {first['msg']}") from error


def card_bytes(card: Card) -> bytes:
    """The card as it is stored, and as its digest is made of."""
    return (card.model_dump_json(indent=1) + "\n").encode()


def schema_bytes() -> bytes:
    """The JSON schema of a card."""
    return (json.dumps(Card.model_json_schema(), indent=1) + "\n").encode()
