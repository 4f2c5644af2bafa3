"""Requests that are not answered with a result: a status and one line."""

from typing import Any

CLOSE = {"Connection": "close"}


class Refused(Exception):
    """A request that cannot be answered, and why, in one line.

    status: of HTTP.  headers: sent with it.
    """

    def __init__(self, status: int, line: str, headers: dict[str, str] | None = None):
        super().__init__(line)
        self.status, self.line, self.headers = status, line, headers or {}

    def as_data(self) -> dict[str, Any]:
        return {"error": self.line}


def busy(line: str, seconds: float) -> Refused:
    """A server that has no room now.  seconds: after which it may, at least one is said."""
    return Refused(503, line, {"Retry-After": str(max(1, min(60, round(seconds))))})


def stopping() -> Refused:
    return Refused(503, "the server is stopping: ask another one, or again later", {"Retry-After": "5"} | CLOSE)
