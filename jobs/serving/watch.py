"""The interface of what watches requests: signals that something is tried, which are told and change no answer."""

from typing import Protocol

import numpy as np

from robustq.jobs.serving.answers import Answer


class Watch(Protocol):
    """Looks at each request after it was answered. One thread asks it at a time."""

    def look(
        self, client: str, images: np.ndarray, answers: list[Answer], *, request: str = ""
    ) -> list[tuple[str, ...]]:
        """The names of the signals that each image raises.

        client: who asked.  images: float32 in [0, 1], shape (B, C, H, W), of one request.  request: its id.
        """
        ...

    def counters(self) -> dict[str, int]:
        """How often each signal was raised, by its name."""
        ...

    def close(self) -> None:
        """End, when nothing more is to be looked at."""
        ...
