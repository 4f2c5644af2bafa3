"""Signals that a served model may be under attack, and attacks that know them: monitoring, never a defence."""
