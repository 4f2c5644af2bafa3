"""The interval of the median distance, and queries, beside results; those of stored outcomes are counted."""

import math

import numpy as np
import pyarrow as pa
import sqlalchemy as sa
from alembic import op

revision = "9"
down_revision = "8"

V_RESULTS = """
CREATE VIEW v_results AS
SELECT j.id AS job_id, s.id AS sweep_id, s.name AS sweep, sj.model AS model, j.arch AS arch, j.defence AS defence,
       j.dataset AS dataset, j.attack AS attack, j.norm AS norm, j.eps AS eps, j.seed AS seed, j.recipe AS recipe,
       r.n AS n,
       r.clean_accuracy AS clean_accuracy, r.clean_accuracy_low AS clean_accuracy_low,
       r.clean_accuracy_high AS clean_accuracy_high,
       r.robust_accuracy AS robust_accuracy, r.robust_accuracy_low AS robust_accuracy_low,
       r.robust_accuracy_high AS robust_accuracy_high, r.any_draw_accuracy AS any_draw_accuracy,
       CASE WHEN EXISTS (
           SELECT 1 FROM audit a WHERE a.subject = j.subject AND a.norm = j.norm AND a.verdict = 'fail'
           AND NOT (j.eps >= a.eps AND r.robust_accuracy <= a.robust_accuracy + 0.02)
       ) THEN 'fail' ELSE r.verdict END AS verdict,
       r.distance_median AS distance_median, r.distance_median_low AS distance_median_low,
       r.distance_median_high AS distance_median_high, r.distance_mean AS distance_mean,
       r.queries AS queries, r.queries_most AS queries_most,
       r.seconds AS seconds, r.device AS device, r.versions AS versions, r.recorded_at AS recorded_at, j.key AS key
FROM result r
JOIN job j ON j.id = r.job_id
JOIN sweep_job sj ON sj.job_id = j.id
JOIN sweep s ON s.id = sj.sweep_id
WHERE j.kind IN ('eval', 'worst', 'audit')
"""

V_CHECKS = """
CREATE VIEW v_checks AS
SELECT v.sweep AS sweep, v.model AS model, v.attack AS attack, v.norm AS norm, v.eps AS eps, v.seed AS seed,
       c.name AS name, c.value AS value, c.threshold AS threshold, c.verdict AS verdict, c.note AS note,
       c.examples AS examples, c.job_id AS job_id, v.sweep_id AS sweep_id
FROM check_result c
JOIN v_results v ON v.job_id = c.job_id
"""

NEW = {
    "distance_median_low": sa.Float,
    "distance_median_high": sa.Float,
    "queries": sa.BigInteger,
    "queries_most": sa.Integer,
}
RESULT = sa.table("result", sa.column("job_id"), *map(sa.column, NEW))
BLOB = sa.table("example_blob", sa.column("job_id"), sa.column("data", sa.LargeBinary))
JOB = sa.table("job", sa.column("id"), sa.column("kind", sa.Text))


def upgrade() -> None:
    op.execute("DROP VIEW v_checks")
    op.execute("DROP VIEW v_results")
    for name, kind in NEW.items():
        op.add_column("result", sa.Column(name, kind))
    db = op.get_bind()
    kinds = sa.select(BLOB.c.job_id, JOB.c.kind).join(JOB, JOB.c.id == BLOB.c.job_id).order_by(BLOB.c.job_id)
    for job_id, kind in db.execute(kinds).all():
        found = counted(db.execute(sa.select(BLOB.c.data).where(BLOB.c.job_id == job_id)).scalar_one())
        if kind == "worst":  # of whose images each has the queries of the attack that did it most harm
            found["queries"] = None
        if any(value is not None for value in found.values()):
            db.execute(sa.update(RESULT).where(RESULT.c.job_id == job_id).values(**found))
    op.execute(V_RESULTS)
    op.execute(V_CHECKS)


def counted(data: bytes) -> dict[str, float | int | None]:
    """What outcomes of before tell: how many queries were at which radius of several they do not; nothing of outcomes
    that are damaged.
    """
    low = high = queries = None
    try:
        table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
        success = table.column("success").to_numpy()
        by = np.array([name or "" for name in table.column("broken_by").cast(pa.string()).to_pylist()])
        distances = table.column("distance").to_numpy()[success & (by != "clean")]
        known = table.column("queries").drop_null().to_numpy() if "queries" in table.column_names else ()
        asked = np.asarray(known, np.int64)
    except (pa.ArrowException, OSError, KeyError):
        return dict.fromkeys(NEW)
    ordered, n, below = np.sort(distances), len(distances), 0.0
    rank = max(0, int(n / 2 - 5 * math.sqrt(n)))
    while rank < n // 2 and below + fair_coin(n, rank) <= 0.025:
        below += fair_coin(n, rank)
        rank += 1
    if rank:
        low, high = float(ordered[rank - 1]), float(ordered[-rank])
    if len(asked):
        queries = int(asked.sum())
    return {"distance_median_low": low, "distance_median_high": high, "queries": queries, "queries_most": None}


def fair_coin(n: int, heads: int) -> float:
    ways = math.lgamma(n + 1) - math.lgamma(heads + 1) - math.lgamma(n - heads + 1)
    return math.exp(ways - n * math.log(2))
