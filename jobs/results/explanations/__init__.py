"""Questions to stored explanations."""
