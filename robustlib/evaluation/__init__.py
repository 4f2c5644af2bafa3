"""Attacks run over a data set, and accuracies."""
