"""Inference: models called in batches, fast, in mixed precision, on threads."""
