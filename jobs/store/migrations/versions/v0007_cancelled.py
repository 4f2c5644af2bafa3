"""A sweep's cancelled state as a column, beside whether it is paused. Before, events said so, by the sweep's name."""

import sqlalchemy as sa
from alembic import op

revision = "7"
down_revision = "6"

KINDS = {"sweep-cancelled": True, "sweep-wanted": False}
EVENT = sa.table("event", sa.column("id", sa.Integer), sa.column("kind", sa.Text), sa.column("data", sa.JSON))
SWEEP = sa.table("sweep", sa.column("name", sa.Text), sa.column("cancelled", sa.Boolean))


def upgrade() -> None:
    op.add_column("sweep", sa.Column("cancelled", sa.Boolean, nullable=False, server_default=sa.text("false")))
    db = op.get_bind()
    rows = db.execute(sa.select(EVENT.c.kind, EVENT.c.data).where(EVENT.c.kind.in_(KINDS)).order_by(EVENT.c.id))
    last = {data["sweep"]: KINDS[kind] for kind, data in rows}  # by name: the latest event of it counts
    for name in (name for name, cancelled in last.items() if cancelled):
        db.execute(sa.update(SWEEP).where(SWEEP.c.name == name).values(cancelled=True))
