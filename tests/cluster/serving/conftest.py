"""The package that tests of packages have too."""

from tests.jobs.packages.conftest import made, place, trained

__all__ = ["made", "place", "trained"]
