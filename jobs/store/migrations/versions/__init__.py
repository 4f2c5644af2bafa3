"""One file a step. A step never changes once it has landed: stores out there were made by it."""
