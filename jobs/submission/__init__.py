"""The way from a study to queued jobs."""
