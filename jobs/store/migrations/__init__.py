"""Migrations of a store from older schemas to this one: Alembic scripts, from the first schema on."""
