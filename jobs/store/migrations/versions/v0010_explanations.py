"""Explanations beside results: what came of them under each disturbance, with a view of its own."""

import sqlalchemy as sa
from alembic import op

revision = "10"
down_revision = "9"

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
WHERE j.kind IN ('eval', 'worst', 'audit') AND (j.attack IS NULL OR j.attack <> 'explain')
"""

V_EXPLANATIONS = """
CREATE VIEW v_explanations AS
SELECT j.id AS job_id, s.id AS sweep_id, s.name AS sweep, sj.model AS model, j.arch AS arch, j.defence AS defence,
       j.dataset AS dataset, j.attack AS attack, e.method AS method, e.target AS target, j.norm AS norm, j.eps AS eps,
       j.seed AS seed, e.against AS against, j.recipe AS recipe, e.n AS n, e.kept AS kept,
       e.top_intersection AS top_intersection, e.top_intersection_low AS top_intersection_low,
       e.top_intersection_high AS top_intersection_high,
       e.near_top_intersection AS near_top_intersection, e.near_top_intersection_low AS near_top_intersection_low,
       e.near_top_intersection_high AS near_top_intersection_high,
       e.spearman AS spearman, e.spearman_low AS spearman_low, e.spearman_high AS spearman_high,
       e.ssim AS ssim, e.ssim_low AS ssim_low, e.ssim_high AS ssim_high,
       e.deletion AS deletion, e.deletion_low AS deletion_low, e.deletion_high AS deletion_high,
       e.insertion AS insertion, e.insertion_low AS insertion_low, e.insertion_high AS insertion_high,
       r.clean_accuracy AS clean_accuracy, r.verdict AS verdict, r.seconds AS seconds, r.device AS device,
       r.versions AS versions, r.recorded_at AS recorded_at, j.key AS key
FROM explanation e
JOIN result r ON r.job_id = e.job_id
JOIN job j ON j.id = r.job_id
JOIN sweep_job sj ON sj.job_id = j.id
JOIN sweep s ON s.id = sj.sweep_id
WHERE j.kind = 'eval'
"""

V_CHECKS = """
CREATE VIEW v_checks AS
SELECT v.sweep AS sweep, v.model AS model, v.attack AS attack, v.norm AS norm, v.eps AS eps, v.seed AS seed,
       c.name AS name, c.value AS value, c.threshold AS threshold, c.verdict AS verdict, c.note AS note,
       c.examples AS examples, c.job_id AS job_id, v.sweep_id AS sweep_id
FROM check_result c
JOIN (
    SELECT job_id, sweep, sweep_id, model, attack, norm, eps, seed FROM v_results
    UNION ALL
    SELECT job_id, sweep, sweep_id, model, attack, norm, eps, seed FROM v_explanations WHERE against = 'clean'
) v ON v.job_id = c.job_id
"""

MEASURES = ("top_intersection", "near_top_intersection", "spearman", "ssim", "deletion", "insertion")


def upgrade() -> None:
    op.execute("DROP VIEW v_checks")
    op.execute("DROP VIEW v_results")
    op.create_table(
        "explanation",
        sa.Column("job_id", sa.Integer, sa.ForeignKey("job.id"), primary_key=True),
        sa.Column("against", sa.Text, primary_key=True),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("kept", sa.Integer, nullable=False),
        *(sa.Column(f"{name}{end}", sa.Float) for name in MEASURES for end in ("", "_low", "_high")),
    )
    op.execute(V_RESULTS)
    op.execute(V_EXPLANATIONS)
    op.execute(V_CHECKS)
