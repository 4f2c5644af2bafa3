"""A package behind HTTP: what answers, how requests are read and batched, and what is watched. Knows no Ray."""
