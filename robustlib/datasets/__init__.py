"""Data sets: their files, decoded as images are needed, into a cache."""
