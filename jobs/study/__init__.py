"""A study file as checked data."""
