"""The upkeep of stores: sweeps removed with their files, stores merged."""
