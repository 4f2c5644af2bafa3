"""What a worker does with one job."""
