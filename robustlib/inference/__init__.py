"""How a model is called: batched, fast, in mixed precision, on threads."""
