"""Clusters that are reached from elsewhere."""
