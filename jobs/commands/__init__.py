"""Commands that need only a store, and the text they print."""
