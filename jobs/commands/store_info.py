"""The facts about a store that `robustq db info` prints."""

from typing import Any

from robustq.jobs.queue.status import counts
from robustq.jobs.store.connection import connect_store, schema_version
from robustq.jobs.store.schema import SCHEMA_VERSION
from robustq.jobs.text.safe_text import address


def info(url: str) -> dict[str, Any]:
    """The store's schema version, the one that this robustq reads, and what is in it."""
    with connect_store(url).begin() as db:
        version = schema_version(db, address(url))
        found = {"store": address(url), "schema_version": version, "reads": SCHEMA_VERSION}
        return found | {f"{state}_jobs": n for state, n in counts(db).items()}
