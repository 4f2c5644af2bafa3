"""Commands for models on their way to use."""
