"""What is to be done and what came of it: specs, the store that is also the queue, queries, exports. Knows no Ray."""
