"""A Ray cluster that is reached from elsewhere."""
