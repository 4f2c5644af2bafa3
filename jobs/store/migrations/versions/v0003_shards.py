"""Shards, shares of a GPU, time limits, paused sweeps, the place of logs; probes, whose results have no accuracy."""

import sqlalchemy as sa
from alembic import op

revision = "3"
down_revision = "2"

V_RESULTS = """
CREATE VIEW v_results AS
SELECT j.id AS job_id, s.id AS sweep_id, s.name AS sweep, sj.model AS model, j.arch AS arch, j.defence AS defence,
       j.dataset AS dataset, j.attack AS attack, j.norm AS norm, j.eps AS eps, j.seed AS seed, j.recipe AS recipe,
       r.n AS n,
       r.clean_accuracy AS clean_accuracy, r.clean_accuracy_low AS clean_accuracy_low,
       r.clean_accuracy_high AS clean_accuracy_high,
       r.robust_accuracy AS robust_accuracy, r.robust_accuracy_low AS robust_accuracy_low,
       r.robust_accuracy_high AS robust_accuracy_high, r.any_draw_accuracy AS any_draw_accuracy,
       r.distance_median AS distance_median, r.distance_mean AS distance_mean,
       r.seconds AS seconds, r.device AS device, r.versions AS versions, r.recorded_at AS recorded_at, j.key AS key
FROM result r
JOIN job j ON j.id = r.job_id
JOIN sweep_job sj ON sj.job_id = j.id
JOIN sweep s ON s.id = sj.sweep_id
WHERE j.kind IN ('eval', 'worst')
"""


def upgrade() -> None:
    op.execute("DROP VIEW v_results")  # SQLite makes the table of results anew, and its view looks at that
    op.add_column("sweep", sa.Column("paused", sa.Boolean, nullable=False, server_default=sa.text("false")))
    op.add_column("job", sa.Column("parts", sa.Integer, nullable=False, server_default="0"))
    op.add_column("job", sa.Column("gpu_share", sa.Float))
    op.add_column("job", sa.Column("timeout_seconds", sa.Float))
    op.add_column("attempt", sa.Column("log", sa.Text))
    with op.batch_alter_table("result") as table:
        table.alter_column("clean_accuracy", existing_type=sa.Float, nullable=True)
        table.alter_column("robust_accuracy", existing_type=sa.Float, nullable=True)
    op.drop_index("job_queued", "job")
    queued = sa.text("state = 'queued'")
    op.create_index("job_next", "job", [sa.text("priority DESC"), "id"], sqlite_where=queued, postgresql_where=queued)
    op.create_index("job_state", "job", ["state", "cost"])
    if op.get_bind().dialect.name == "postgresql":  # SQLite's integers are long enough
        op.alter_column("artifact", "bytes", type_=sa.BigInteger)
    op.execute(V_RESULTS)
