"""The identity of a driver's process, by something that no clock changes."""

import sqlalchemy as sa
from alembic import op

revision = "6"
down_revision = "5"


def upgrade() -> None:
    op.add_column("driver", sa.Column("process", sa.Text))
