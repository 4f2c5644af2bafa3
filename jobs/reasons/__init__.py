"""Reasons why results warn or fail."""
