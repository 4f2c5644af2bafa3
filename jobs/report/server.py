"""The page of a sweep served on this machine, following the store while the sweep runs. Reads, never writes."""

import hashlib
import html
import json
import socket
import threading
from dataclasses import dataclass

import uvicorn
from sqlalchemy import Connection, select
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from robustq.jobs.errors import RobustqError, SpecError
from robustq.jobs.queue.status import IsGone
from robustq.jobs.report.compared_sweeps import compared_section
from robustq.jobs.report.page.cache import PageCache, nobody_is
from robustq.jobs.report.page.render import render_page, render_sections
from robustq.jobs.report.page.sections import make_page
from robustq.jobs.report.page.sweep_data import gather, page_state
from robustq.jobs.store.connection import Store, check_store, store_exists
from robustq.jobs.store.database.sqlite_files import identity
from robustq.jobs.store.database.store_url import parse_url
from robustq.jobs.store.schema import meta
from robustq.jobs.store.sweeps import find_sweep, latest_sweeps
from robustq.jobs.text.safe_text import address, hide
from robustq.jobs.web import listening
from robustq.jobs.web.access_token import HEADERS, Door
from robustq.jobs.web.listening import OnlyHere, is_loopback
from robustq.jobs.web.server_limits import ACCEPTED, CONNECTIONS, Patient, Server, Slices, Together


@dataclass(frozen=True)
class Made:
    """The page of a sweep in one state.  names: of the sweeps that it offers.  whole: as HTML.  live: see `Pages`."""

    tag: str
    names: list[str]
    whole: bytes
    live: bytes


class Pages:
    """The store's pages, each made again only when the store has changed, or a driver has died. Pages are made one at a
    time.
    """

    def __init__(self, store: Store, is_gone: IsGone = nobody_is):
        self.store, self.is_gone, self.lock = store, is_gone, threading.Lock()
        self.found = False  # whether there was a store yet
        self.cache = PageCache(is_gone)
        self.last: dict[tuple[int, int | None], Made] = {}  # by sweep, and the one beside it
        self.mark = ""

    def there(self) -> bool:
        """Whether there is a store, which may come later than this server. Raises StoreError for what is none."""
        if not self.found and store_exists(self.store.url):
            check_store(self.store, create=False)
            self.found = True
        return self.found

    def forget(self, db: Connection) -> None:
        """Drop what was read of a store that another has taken the place of."""
        if (mark := self.mark_of(db)) != self.mark:
            self.cache, self.last, self.mark = PageCache(self.is_gone), {}, mark

    def mark_of(self, db: Connection) -> str:
        """By what a store is told from another."""
        path = parse_url(self.store.url)[1]
        return repr((db.execute(select(meta.c.created_at)).scalar(), path and identity(path)))

    def chosen(self, db: Connection, name: str | None) -> tuple[int | None, list[str]]:
        """The sweep of this name or the latest, and the names that there are."""
        names = list(latest_sweeps(db))
        return (find_sweep(db, name or names[0]) if names else None), names

    def beside(self, db: Connection, sweep_id: int | None, other: str | None) -> int | None:
        """The sweep that the page's is compared with, if another one was asked for."""
        found = None if sweep_id is None or not other else find_sweep(db, other)
        return None if found == sweep_id else found

    def tag(self, name: str | None, other: str | None = None) -> str:
        """An ETag of what the page of a sweep would show."""
        if not self.there():
            return NO_STORE
        with self.store.begin() as db:
            sweep_id, names = self.chosen(db, name)
            state = self.mark_of(db) + (repr(names) if sweep_id is None else page_state(db, sweep_id, self.is_gone))
            if (beside := self.beside(db, sweep_id, other)) is not None:
                state += page_state(db, beside, self.is_gone)
        return f'"{hashlib.sha256(state.encode()).hexdigest()[:32]}"'

    def made(self, name: str | None, other: str | None = None) -> Made:
        """The page of a sweep, made once a state of it, however many ask."""
        if not self.there():
            return Made(NO_STORE, [], waiting(self.store), NOTHING)
        # Before what it stands for, so that a change in between is shown at the next question.
        tag = self.tag(name, other)
        with self.lock, self.store.begin() as db:
            self.forget(db)
            sweep_id, names = self.chosen(db, name)
            if sweep_id is None:
                return Made(tag, [], empty(self.store), NOTHING)
            place = sweep_id, self.beside(db, sweep_id, other)
            if (last := self.last.get(place)) is None or (last.tag, last.names) != (tag, names):
                page = make_page(db, self.store.artifacts, gather(db, sweep_id, self.cache), self.cache)
                rendered = render_sections(page)
                if place[1] is not None:
                    ids, both = (sweep_id, place[1]), (page.sweep.name, str(other))
                    at = 1 + next((i for i, section in enumerate(rendered) if section.name == "verdict"), -1)
                    rendered.insert(at, compared_section(db, ids, both))
                # Of each sweep one page beside another is kept: there are very many pairs.
                self.last = {p: m for p, m in self.last.items() if p[0] != sweep_id or None in (p[1], place[1])}
                found = {"about": page.about, "sections": [vars(section) for section in rendered]}
                whole = render_page(page, rendered, live=names, beside=other).encode()
                self.last[place] = Made(tag, names, whole, json.dumps(found).encode())
            return self.last[place]

    def live(self, name: str | None, other: str | None = None) -> tuple[str, bytes]:
        """An ETag, and as JSON the sections with their hashes, by which the page replaces those that changed."""
        made = self.made(name, other)
        return made.tag, made.live


NOTHING = b'{"about": "", "sections": []}'
NO_STORE = '"no store"'  # the ETag of a page that waits for one
EMPTY = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>robustq</title>
<meta http-equiv="refresh" content="2"></head><body><main><h1>{head}</h1>
<p>{what}: <code>robustq run STUDY</code> makes one. This page looks again by itself.</p>
</main></body></html>"""


def empty(store: Store) -> bytes:
    what = f"The store {html.escape(address(store.url))} holds no sweep"
    return EMPTY.format(head="No sweep yet", what=what).encode()


def waiting(store: Store) -> bytes:
    what = f"There is no store {html.escape(address(store.url))}"
    return EMPTY.format(head="No store yet", what=what).encode()


def asked(request: Request) -> tuple[str | None, str | None]:
    """The sweep that a request names, and the one beside it."""
    return request.query_params.get("sweep"), request.query_params.get("with")


def application(store: Store, token: str, *, anywhere: bool = False, is_gone: IsGone = nobody_is) -> ASGIApp:
    """The server: the page, and what has changed of it, for those who have the token."""
    pages, once = Pages(store, is_gone), Together()

    async def whole(request: Request) -> Response:
        made = await once(pages.made, *asked(request))
        return Slices(made.whole, headers=HEADERS, media_type="text/html")

    async def live(request: Request) -> Response:
        names, known = asked(request), request.headers.get("if-none-match")
        if known is not None and known == await once(pages.tag, *names):
            return Response(status_code=304, headers=HEADERS | {"ETag": known})
        made = await once(pages.made, *names)
        return Slices(made.live, headers=HEADERS | {"ETag": made.tag}, media_type="application/json")

    async def refuse(_: Request, error: Exception) -> Response:
        return PlainTextResponse(f"{hide(str(error))}\n", 404 if isinstance(error, SpecError) else 503, HEADERS)

    routes = [Route("/", whole), Route("/live", live)]
    inner = Starlette(routes=routes, exception_handlers={RobustqError: refuse})
    return OnlyHere(Door(inner, token), anywhere=anywhere, command="robustq ui")


def listen(host: str, port: int, *, insecure: bool) -> socket.socket:
    """A socket to serve on. Raises SpecError for a host that others can reach, unless told so, and a port in use."""
    if not is_loopback(host) and not insecure:
        raise SpecError(
            f"--host {host} lets others on the network read the store: expected 127.0.0.1, ::1 or localhost; "
            "--insecure serves it nevertheless"
        )
    return listening.listen(host, port)


def configuration(store: Store, token: str, *, insecure: bool, is_gone: IsGone = nobody_is) -> uvicorn.Config:
    return uvicorn.Config(
        application(store, token, anywhere=insecure, is_gone=is_gone),
        http=Patient,
        ws="none",
        log_level="warning",
        access_log=False,  # addresses have tokens in them
        server_header=False,
        lifespan="off",
        limit_concurrency=CONNECTIONS,
        backlog=ACCEPTED,
    )


def serve(store: Store, found: socket.socket, token: str, *, insecure: bool, is_gone: IsGone = nobody_is) -> None:
    """Serve until interrupted, which is the proper end. is_gone: see `PageCache`."""
    try:
        Server(configuration(store, token, insecure=insecure, is_gone=is_gone)).run(sockets=[found])
    except KeyboardInterrupt:
        return
