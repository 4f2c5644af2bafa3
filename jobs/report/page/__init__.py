"""The page on a sweep: what the store knows, ranked, drawn and written as HTML."""
