"""The adaptive audit of a model."""
