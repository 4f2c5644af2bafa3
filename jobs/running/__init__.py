"""Running one job in a worker."""
