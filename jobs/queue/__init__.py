"""The life of a job, from queued to done."""
