"""How a store of an older schema becomes one of this: Alembic scripts, from the first schema on."""
