"""The share of a device that each attempt held, for device hours. Of attempts before it is not known."""

import sqlalchemy as sa
from alembic import op

revision = "8"
down_revision = "7"


def upgrade() -> None:
    op.add_column("attempt", sa.Column("gpus", sa.Float))
    op.add_column("attempt", sa.Column("cpus", sa.Float))
