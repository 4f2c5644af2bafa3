"""Commands that run jobs: they need both a store and a driver."""
