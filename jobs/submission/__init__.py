"""From a study to queued jobs."""
