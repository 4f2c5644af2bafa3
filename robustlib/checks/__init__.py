"""Checks of whether a number deserves trust, each with its threshold in one table (robustlib.checks.thresholds)."""
