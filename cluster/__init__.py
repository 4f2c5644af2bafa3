"""Running jobs on Ray: the only package that knows Ray."""
