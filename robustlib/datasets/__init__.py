"""Data sets: what their files hold, decoded as it is needed into a cache."""
