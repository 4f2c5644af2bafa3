"""Headers of tar files that say no more than a file's name: what stands there is read into memory whole."""

import tarfile
from typing import Any

MOST_BYTES = 2**16  # of a long name, or of what a PAX header says besides
EXTRA = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class TooLarge(ValueError):
    """A header that says more than a name and a few facts."""


class Modest(tarfile.TarInfo):
    """A member of a tar file, for `tarfile.open(tarinfo=...)`. Raises TooLarge for a header beside it that is large."""

    @classmethod
    def frombuf(cls, *args: Any, **kwargs: Any) -> Any:
        found = super().frombuf(*args, **kwargs)
        if found.type in EXTRA and found.size > MOST_BYTES:
            raise TooLarge(f"a header of {found.size} bytes, expected at most {MOST_BYTES}")
        return found
