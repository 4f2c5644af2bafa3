"""The page of a sweep: data from the store, ranked, drawn and written as HTML."""
