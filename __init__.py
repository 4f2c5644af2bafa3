"""robustq: robustness numbers you can trust, for a whole sweep of networks, defences, attacks and radii."""

from robustlib import VERSION as __version__

__all__ = ["__version__"]
