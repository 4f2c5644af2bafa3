"""Questions to stored results."""
