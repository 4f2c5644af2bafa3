"""Numbers and rows as text. Knows no result."""
