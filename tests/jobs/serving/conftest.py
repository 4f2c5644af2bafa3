"""The package that tests of packages have too."""

from tests.jobs.packages.conftest import made, measured, place, trained

__all__ = ["made", "measured", "place", "trained"]
