"""The page of one model's explanations: a self-contained HTML file that looks as the report does."""

import shlex
from collections.abc import Sequence

from markupsafe import Markup
from sqlalchemy import Connection

from robustlib import VERSION
from robustlib.number_text import counted
from robustq.jobs.report.page.cache import PageCache
from robustq.jobs.report.page.explanations import explanations
from robustq.jobs.report.page.render import asset, environment, policy, script
from robustq.jobs.results.explanations.columns import ExplanationRow
from robustq.jobs.results.explanations.rows import explanation_rows
from robustq.jobs.results.filters import Filters
from robustq.jobs.text.numbers import eps_text

SCRIPTS = ("theme.js", "table.js")  # of the report's, without charts


def explain_html(db: Connection, root: str, sweep_id: int, store: str) -> str:
    """The page of a sweep of explanations.

    root: the store's artifacts.  store: where the results lie, as it may be told.
    """
    rows = explanation_rows(db, Filters(sweep_id))
    cache, row = PageCache(), rows[0]
    spec = cache.details(db, [row["job_id"]])[row["job_id"]].spec
    section = explanations(db, root, rows, cache.data(spec.get("data")), cache)
    about = f"{row['dataset']}, {row['norm']} {eps_text(row['eps'])}, {counted(row['n'], 'image')}, seed {row['seed']}"
    scripts = [script(name) for name in SCRIPTS]
    return (
        environment()
        .get_template("explain.html")
        .render(
            model=row["model"],
            about=f"{about}, on {row['device']}. robustq {VERSION}.",
            section=section,
            commands=[f"robustq --store {shlex.quote(store)} replay --job {job}" for job in job_ids(rows)],
            policy=policy(scripts, live=False),
            style=Markup(asset("page.css")),
            scripts=scripts,
        )
    )


def job_ids(rows: Sequence[ExplanationRow]) -> list[int]:
    return list(dict.fromkeys(row["job_id"] for row in rows))
