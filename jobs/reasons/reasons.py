"""The reasons why results warn or fail, in words: their checks, those of a worst case's parts, a failed audit."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, select

from robustlib.checks.thresholds import FAIL, LIMITS, PASS, WARN
from robustlib.number_text import beyond, percents
from robustq.jobs.store.bulk_insert import chunks
from robustq.jobs.store.schema import audit, check_result, job, job_dep, result

Found = Mapping[str, Any]  # a check: its name, value, threshold, verdict, note


def limit_of(check: Found) -> float | None:
    """The limit that a check went beyond: where it warns the lower one, which stored thresholds are not."""
    limit = LIMITS.get(check["name"])
    return limit.warn if limit is not None and check["verdict"] == WARN else check["threshold"]


def reason_of(check: Found) -> str:
    """A check in a few words: "zero-gradient 0.9 > 0.25"; with its note where there was no value."""
    limit = limit_of(check)
    if check["value"] is None or limit is None:
        return f"{check['name']}: {check['note']}"
    return f"{check['name']} {beyond(check['value'], limit)}"


def weighs(check: Found, verdict: str) -> bool:
    """Whether a check is a reason for a row's verdict: failures that do not block only warn."""
    limit = LIMITS.get(check["name"])
    if check["verdict"] == FAIL and (limit is None or limit.blocking):
        return verdict == FAIL
    return check["verdict"] != PASS and verdict == WARN


def reasons(db: Connection, verdicts: Mapping[int, str | None]) -> dict[int, str]:
    """Why each of these results warns or fails, each reason once; results that do neither are left out.

    verdicts: by number of job, as the rows have them.
    """
    asked = {id_: verdict for id_, verdict in verdicts.items() if verdict in (WARN, FAIL)}
    own = checks_of(db, asked)
    found = {id_: [reason_of(one) for one in own.get(id_, ()) if weighs(one, asked[id_])] for id_ in asked}
    audits = failed_audits(db, [id_ for id_ in asked if asked[id_] == FAIL and not found[id_]])
    parts = parts_of(db, [id_ for id_ in asked if not found[id_] and id_ not in audits])
    of_parts = checks_of(db, {need for needs in parts.values() for need in needs})
    for id_, needs in parts.items():
        told = [one for need in needs for one in of_parts.get(need, ()) if weighs(one, asked[id_])]
        found[id_] = [reason_of(one) for one in told]
    return {id_: joined([*found[id_], *audits.get(id_, ())]) for id_ in asked}


def joined(words: Iterable[str]) -> str:
    """Reasons in one text, each once."""
    return "; ".join(dict.fromkeys(filter(None, words))) or UNKNOWN


UNKNOWN = "its checks were not kept"


def checks_of(db: Connection, ids: Iterable[int]) -> dict[int, list[Found]]:
    """What did not pass, by job."""
    found: dict[int, list[Found]] = {}
    c = check_result.c
    for some in chunks(list(ids)):
        query = select(c.job_id, c.name, c.value, c.threshold, c.verdict, c.note).order_by(c.job_id, c.name)
        for row in db.execute(query.where(c.job_id.in_(some) & (c.verdict != PASS))).mappings():
            found.setdefault(row["job_id"], []).append(dict(row))
    return found


def failed_audits(db: Connection, ids: Sequence[int]) -> dict[int, list[str]]:
    """What audits of the same model, data and norm found that takes the trust from these results: as in v_results."""
    found: dict[int, list[str]] = {}
    own, told = result.alias("own"), result.alias("told")
    columns = (job.c.id, audit.c.job_id.label("audit"), audit.c.robust_accuracy, told.c.extra)
    same = (audit.c.subject == job.c.subject) & (audit.c.norm == job.c.norm) & (audit.c.verdict == FAIL)
    no_better = (job.c.eps >= audit.c.eps) & (own.c.robust_accuracy <= audit.c.robust_accuracy + 0.02)
    query = select(*columns).join(own, own.c.job_id == job.c.id).join(audit, same & ~no_better)
    query = query.join(told, told.c.job_id == audit.c.job_id).order_by(audit.c.job_id)
    for some in chunks(list(ids)):
        for row in db.execute(query.where(job.c.id.in_(some))):
            cause = ((row.extra or {}).get("audit") or {}).get("cause")
            (left,) = percents([row.robust_accuracy])
            words = f"the audit of job {row.audit} left {left} %" + (f", cause {cause}" if cause else "")
            found.setdefault(row.id, []).append(words)
    return found


def parts_of(db: Connection, ids: Sequence[int]) -> dict[int, list[int]]:
    """The evaluations that worst cases among these are the worst of."""
    found: dict[int, list[int]] = {}
    for some in chunks(list(ids)):
        query = select(job_dep.c.job_id, job_dep.c.needs_id).join(job, job.c.id == job_dep.c.job_id)
        for id_, need in db.execute(query.where(job_dep.c.job_id.in_(some) & (job.c.kind == "worst"))):
            found.setdefault(id_, []).append(need)
    return found
