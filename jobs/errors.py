"""Errors that the user can mend: jobs/commands/base.py turns them into a line and an exit code. Any other is a bug."""


class RobustqError(Exception):
    """Base of all errors that the user can mend."""


class SpecError(RobustqError, ValueError):
    """A study, job or option names something that does not exist, or leaves something out."""


class ArtifactError(SpecError):
    """A file that a job left behind is not what it was. path: where it lies.  reason: "missing", "damaged" or
    "unreadable".
    """

    def __init__(self, path: str, reason: str, message: str):
        super().__init__(message)
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.path, self.reason, str(self))


class StoreError(RobustqError):
    """The store cannot be used: missing, foreign, of another version, full or read-only."""


class StoreAway(StoreError):
    """The server of a store does not answer, and may again. found: what of it is known, without the mend."""

    def __init__(self, found: str, mend: str):
        super().__init__(f"{found}; {mend}")
        self.found = found


class RunError(RobustqError):
    """Work cannot be done here: no such device, no room on the disk, no cluster to be reached."""


class Unprinted(RobustqError):
    """What a command found cannot be printed: exit code 1, since the command itself was right."""


class JobsFailed(RobustqError):
    """The queue is empty but some jobs failed: exit code 1, not 2, since the command itself was right."""
