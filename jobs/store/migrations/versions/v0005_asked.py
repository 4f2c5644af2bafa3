"""An index for questions to results, for SQLite, whose rows of jobs hold their specs and are slow to read."""

from alembic import op

revision = "5"
down_revision = "4"

COLUMNS = ["attack", "eps", "norm", "seed", "kind", "arch", "defence", "dataset", "recipe", "subject", "key"]


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.create_index("job_asked", "job", COLUMNS)
