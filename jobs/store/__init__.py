"""The store: the database, and the files beside it."""
