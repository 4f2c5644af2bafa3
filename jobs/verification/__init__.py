"""Verification of stored results: whether they still come out the same."""
