"""The page of one audit: a self-contained HTML file that looks as the report does."""

import shlex

from markupsafe import Markup

from robustlib import VERSION
from robustlib.audit.explanations import CAUSES, REMEDIES
from robustlib.metrics import wilson
from robustlib.number_text import counted
from robustq.jobs.report.page.html_table import Cell, Table, percent_cell, table_of, verdict_cell
from robustq.jobs.report.page.render import asset, environment, policy, script
from robustq.jobs.results.audits import AuditFound, audit_headline
from robustq.jobs.results.columns import Check
from robustq.jobs.text.numbers import eps_text

SCRIPTS = ("theme.js", "table.js")  # of the report's, without charts


def audit_html(found: AuditFound, store: str) -> str:
    """The page of an audit. store: where its result lies, as it may be told."""
    why, mend = CAUSES.get(found["cause"] or "", ("", ""))
    scripts = [script(name) for name in SCRIPTS]
    bad = [check for check in found["checks"] if check["verdict"] != "pass"]
    where = f"{found['norm']} {eps_text(found['eps'])}, {counted(found['n'], 'image')}, seed {found['seed']}"
    return (
        environment()
        .get_template("audit.html")
        .render(
            found=found,
            about=f"{where}, {found['seconds']:.1f} seconds. robustq {VERSION}.",
            headline=audit_headline(found),
            cause=why,
            remedy=mend,
            limits=[f"{left['attack']} was not tried: {left['why']}." for left in found["left_out"]],
            accuracies=accuracies_table(found),
            tried=tried_table(found),
            checks=checks_table(found["checks"]),
            bad=len(bad),
            command=f"robustq --store {shlex.quote(store)} replay --job {found['job_id']}",
            policy=policy(scripts, live=False),
            style=Markup(asset("page.css")),
            scripts=scripts,
        )
    )


def accuracies_table(found: AuditFound) -> Table | None:
    n = found["n"]
    named = {
        "clean images": found["clean_accuracy"],
        "under PGD alone": found["naive_robust_accuracy"],
        "under all that was tried": found["adaptive_robust_accuracy"],
    }
    rows = [
        {"on": name, "accuracy % [95 %]": percent_cell(value, *wilson(value * n, n))} for name, value in named.items()
    ]
    return table_of(
        "accuracies",
        "Accuracy in percent with its 95 % interval (Wilson); PGD with cross-entropy is the naive evaluation",
        rows,
    )


def tried_table(found: AuditFound) -> Table | None:
    rows = [
        {
            "attack": trial["attack"],
            "attacked": trial["attacked"],
            "broke": trial["broke"],
            "left robust %": percent_cell(trial["robust_accuracy"]),
            "seconds": round(trial["seconds"], 1),
            "what it does about hidden gradients": REMEDIES.get(trial["remedy"], "nothing"),
        }
        for trial in found["tried"]
    ]
    return table_of("tried", "Attacks in the order in which they were tried", rows)


def checks_table(checks: list[Check]) -> Table | None:
    """The checks, those that did not pass first."""
    order = {"fail": 0, "warn": 1}
    rows = [
        {
            "check": check["name"],
            "verdict": verdict_cell(check["verdict"]),
            "value": check["value"],
            "at most": check["threshold"],
            "what was found": check["note"],
            "images that show it": Cell(", ".join(map(str, check["examples"][:10]))),
        }
        for check in sorted(checks, key=lambda check: (order.get(check["verdict"], 2), check["name"]))
    ]
    return table_of("checks", "Signs that attacks were misled", rows)
