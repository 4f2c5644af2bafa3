"""A served package on Ray: replicas of the same application, behind Ray Serve's proxy."""
