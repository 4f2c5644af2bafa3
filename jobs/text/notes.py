"""Notes beside an answer, and the logger `robustq`: -q leaves out all but errors, -v shows what is done too.

Notes are what a reader ought to know; they go to standard error. What is done meanwhile is logged at INFO, which -v
shows. In a program of the user's own the logger is Python's usual one: handlers and levels are theirs.
"""

import logging
import traceback

from robustq.jobs.text.safe_text import say

LOGGER = logging.getLogger("robustq")
WARNINGS = logging.getLogger("py.warnings")  # what Python's `warnings` become


class Teller(logging.Handler):
    """Hands records to a person as everything else is: a line without passwords, and the traceback of what failed."""

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        say(f"robustq: {text}" if record.levelno < logging.ERROR else f"robustq: error: {text}", err=True)
        if record.exc_info:
            say("".join(traceback.format_exception(*record.exc_info)), err=True)


def set_level(level: int) -> None:
    """Show records from this level on; at any but WARNING, the usual one, Python's own warnings are records too."""
    for logger in (LOGGER, WARNINGS):
        logger.setLevel(level)
        if not any(isinstance(handler, Teller) for handler in logger.handlers):
            logger.addHandler(Teller())
    LOGGER.propagate = False
    logging.captureWarnings(level != logging.WARNING)


def wanted() -> bool:
    """Whether notes and progress are shown."""
    return LOGGER.isEnabledFor(logging.WARNING)


def note(text: str) -> None:
    """A line to standard error, unless only errors are wanted."""
    if wanted():
        say(text, err=True)
