"""The estimated cost of each job, for bundles and the time left. Jobs of before count as equal."""

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    op.add_column("job", sa.Column("cost", sa.Float, nullable=False, server_default="1"))
