"""Packages: a model as one folder or ZIP archive of files that a card names. Free of torch."""
