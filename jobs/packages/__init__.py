"""Packages of models: made with what the store says of them, and verified."""
