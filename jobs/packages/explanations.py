"""The explanations of a card: what a store has of the model's maps, and the section of its page. Loads no torch."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from robustlib.checks.thresholds import FAIL
from robustlib.metrics import CLEAN
from robustq.jobs.packages.card import Disturbed, Explained, Measured
from robustq.jobs.packages.chosen_model import Chosen
from robustq.jobs.packages.markdown_table import table
from robustq.jobs.packages.stored_numbers import checks_told, jobs_of, moment, of_jobs
from robustq.jobs.results.aggregate import rows_by
from robustq.jobs.results.explanations.columns import ExplanationRow
from robustq.jobs.results.explanations.rows import explanation_rows
from robustq.jobs.store.bulk_insert import chunks
from robustq.jobs.text.numbers import eps_text

SAME = ("key", "method", "target", "norm", "eps", "recipe", "seed", "n", "verdict", "seconds", "device", "versions")
HOW = (
    "How alike the network's maps are to those of the images as they are: means over images with 95 % intervals. Top-k "
    "is the share of the most important pixels that both have in common. Noise of the same norm and size stands beside "
    "the attacks: only what they do beyond it is theirs. A steady map is no right map, and one that failed a check "
    "says nothing, however steady it is."
)


def read_explanations(db: Connection, chosen: Chosen) -> list[Explained]:
    """The stored explanations of the model, each with what noise and attacks did to it."""
    rows = [row for some in chunks(jobs_of(db, chosen)) for row in explanation_rows(db, of_jobs(some))]
    return [explained(db, mine) for mine in rows_by(rows, "job_id").values()]


def explained(db: Connection, rows: Sequence[ExplanationRow]) -> Explained:
    """The rows of a job as the card has them, without that of the images as they are."""
    first: Any = rows[0]
    return Explained(
        job=first["job_id"],
        checks=checks_told(db, first["job_id"]),
        disturbed=[
            Disturbed(
                against=row["against"],
                kept=row["kept"],
                top_intersection=measured(row, "top_intersection"),
                spearman=measured(row, "spearman"),
                ssim=measured(row, "ssim"),
            )
            for row in rows
            if row["against"] != CLEAN
        ],
        recorded_at=moment(first["recorded_at"]),
        **{name: first[name] for name in SAME},
    )


def measured(row: Any, name: str) -> Measured | None:
    mean, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    return None if mean is None else Measured(mean=mean, low=low, high=high)


def explanations_text(rows: Sequence[Explained]) -> str:
    """The section of the page; empty where there is no explanation."""
    if not rows:
        return ""
    lines = [
        (
            one.job, one.method, one.target, f"{one.norm}, eps {eps_text(one.eps)}", done.against, one.n, done.kept,
            *(measured_text(value, one.verdict) for value in (done.top_intersection, done.spearman, done.ssim)),
            one.verdict, one.seed, one.recipe,
        )
        for one in rows
        for done in one.disturbed
    ]  # fmt: skip
    head = (
        "job", "explanation", "class", "within", "images with", "n", "class kept", "top-k", "Spearman", "SSIM",
        "verdict", "seed", "recipe",
    )  # fmt: skip
    bad = [f"- job {one.job}: {check.name} {check.verdict} ({check.note})" for one in rows for check in one.checks]
    checks = ["Checks that did not pass:\n\n" + "\n".join(bad)] if bad else []
    return "\n\n".join(["## Explanations under attack", HOW, table(head, lines), *checks])


def measured_text(value: Measured | None, verdict: str | None) -> str:
    """A mean with its interval, unless a check of the explanation failed."""
    if value is None:
        return ""
    if verdict == FAIL:
        return f"not trusted ({value.mean:.3f})"
    ends = "" if value.low is None or value.high is None else f" [{value.low:.3f}, {value.high:.3f}]"
    return f"{value.mean:.3f}{ends}"
