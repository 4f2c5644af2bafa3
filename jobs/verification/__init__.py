"""Whether stored results still come out the same."""
