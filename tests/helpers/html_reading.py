"""A page as browsers read it, and the store that it was made from."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import TypeVar

import uvicorn

from robustq.jobs.report.page.cache import PageCache
from robustq.jobs.report.page.page_model import Page
from robustq.jobs.report.page.sections import make_page
from robustq.jobs.report.page.sweep_data import gather
from robustq.jobs.report.server import configuration, listen
from robustq.jobs.report.write import write_report
from robustq.jobs.store.connection import Store, open_store
from robustq.jobs.web.server_limits import Server

T = TypeVar("T")


class Elements(HTMLParser):
    """What a page is made of, as browsers see it: tags with their attributes, the texts of scripts and of cells."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag if tag != "script" or dict(attrs).get("type") is None else "data"
        if self.inside == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside not in ("data", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def report(store: Store, name: str = "made-up") -> str:
    out = Path(store.artifacts).parent / "page.html"
    write_report(store, name, out, None)
    return out.read_text(encoding="utf-8")


def page_of(store: Store, sweep_id: int) -> Page:
    """What the page is made from."""
    cache = PageCache()
    with store.begin() as db:
        return make_page(db, store.artifacts, gather(db, sweep_id, cache), cache)


def there(part: T | None) -> T:
    """A part of the page that has something to say."""
    assert part is not None
    return part


TOKEN = "of-tests-0123456"


@contextmanager
def running(config: uvicorn.Config) -> Iterator[int]:
    """The port of a server while the block runs."""
    listening = listen("127.0.0.1", 0, insecure=False)
    server = Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def served(file: Path) -> Iterator[int]:
    """The port at which the pages of a store are served while the block runs, to those who have TOKEN."""
    reading = open_store(str(file))
    with running(configuration(reading, TOKEN, insecure=False)) as port:
        yield port
    reading.engine.dispose()
