"""The page as typed data, for its templates: a part for each section, named as it is there."""

from dataclasses import dataclass

from robustq.jobs.report.page.html_table import Cell, Table
from robustq.jobs.report.page.images import Grid, Missing
from robustq.jobs.report.page.plotly import Chart
from robustq.jobs.report.page.sweep_data import Sweep
from robustq.jobs.report.pictures.attribution_pictures import MapGrid


@dataclass(frozen=True)
class WorkDone:
    """How far the work is, in percent of its estimated cost, what runs, and the time left, in words.

    left_behind: what drivers that died hold, in words.
    """

    percent: float
    running: Table | None
    left: str = ""
    left_behind: str = ""


@dataclass(frozen=True)
class RadiusAnswer:
    """Who is best at a radius, whether it is told apart from the next ones, and what it gives up; a sentence each."""

    best: str
    apart: str
    price: str


@dataclass(frozen=True)
class Distrusted:
    """A model whose numbers are not trusted.  where: radii, in words."""

    model: str
    where: str
    cause: str


@dataclass(frozen=True)
class Verdict:
    """The answers, an answer a norm; what is not trusted, and what readers should know before they quote a number.

    best: at every radius.  compared: the others beside the best at the radii of the answers.
    """

    answers: list[RadiusAnswer]
    distrusted: list[Distrusted]
    limits: list[str]
    best: Table | None
    compared: Table | None


@dataclass(frozen=True)
class Attacks:
    """Which attack broke what, by image and by itself; distances that minimum-norm attacks found."""

    breakers: list[Chart]
    by_attack: Table | None
    distances: Table | None


@dataclass(frozen=True)
class Confusion:
    """How a model mistakes classes, clean and attacked: matrices, or of many classes the likeliest mistakes."""

    model: str
    where: str
    names: tuple[str, ...]
    matrices: list[tuple[str, list[list[Cell]]]]
    mistakes: Table | None


@dataclass(frozen=True)
class LostOutcome:
    """Outcomes that should be told of and that the store lost."""

    model: str
    where: str
    job: int


@dataclass(frozen=True)
class Classes:
    """Accuracy and confusions by class, of the models that stand best."""

    by_class: Table | None
    confusions: list[Confusion]
    lost: list[LostOutcome]


@dataclass(frozen=True)
class Pictures:
    """Attacked images.  reason: why the data set cannot be shown, empty where it can."""

    grids: list[Grid | Missing]
    reason: str


@dataclass(frozen=True)
class Explanations:
    """What attacks do to explanations: answers, a sentence each; those whose checks failed, and why; tables; maps.

    left_out: how many explanations kept maps besides, which the page does not show.
    """

    answers: list[str]
    distrusted: list[str]
    stability: Table | None
    measures: Table | None
    grids: list[MapGrid | Missing]
    left_out: int


@dataclass(frozen=True)
class Checks:
    """Audits, warnings and failures one by one, and how the results came through each check."""

    audits: Table | None
    found: Table | None
    summary: Table | None


@dataclass(frozen=True)
class Repeat:
    """How to repeat the study.  quoted: its name for a shell.  rows: all results, None without any."""

    quoted: str
    devices: list[str]
    versions: list[str]
    study: str
    rows: Table | None


@dataclass(frozen=True)
class Page:
    """All that the page says, its sections in their order; about: data, images, time and place in one line."""

    sweep: Sweep
    about: str
    progress: WorkDone
    verdict: Verdict
    leaderboard: Table | None
    curves: list[Chart]
    queries: list[Chart]
    tradeoff: list[Chart]
    attacks: Attacks
    classes: Classes
    pictures: Pictures
    explanations: Explanations | None
    training: list[Chart]
    checks: Checks
    cost: Table | None
    repeat: Repeat
