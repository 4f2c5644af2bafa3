"""Jobs and their results: specs, the store that is also the queue, queries, exports. Knows no Ray."""
