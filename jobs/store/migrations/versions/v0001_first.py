"""The first schema: stores of version 1 start from here, with nothing to be done."""

revision = "1"
down_revision = None


def upgrade() -> None:
    pass
