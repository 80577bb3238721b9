"""A small local page for searching: plain HTML, a form, no script, nothing from elsewhere.

It listens on the loopback interface only and answers no request for another host name, as a
foreign page could send by a name that it lets point here. All values are escaped by the template.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from methods.cascode.extraction import LANGUAGES
from methods.cascode.search.query import MOST_CHARACTERS, Request, Searcher, marked
from methods.cascode.search.store import SearchError
from shared.showing import printable

log = logging.getLogger(__name__)
HOST = "127.0.0.1"
PORT = 8356
MOST_RESULTS, MOST_DIGITS = 100, 20
_HERE = Path(__file__).parent
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class PageServer(ThreadingHTTPServer):
    """The page of one index: `searcher` is called for every search, so that it may return a newer
    one; `defaults` are of what the form does not ask for; port 0 takes a free one."""

    daemon_threads = True

    def __init__(self, searcher: Callable[[], Searcher], defaults: Request, port: int = PORT):
        self._searcher, self._defaults = searcher, defaults
        self._one_at_a_time = threading.Lock()  # a model uses all cores for one query
        pages = FileSystemLoader(_HERE)
        environment = Environment(loader=pages, autoescape=True, undefined=StrictUndefined)
        environment.filters.update(marked=marked, printable=printable)
        self._template = environment.get_template("page.html")
        self.style = (_HERE / "page.css").read_bytes()
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            said = f"cannot listen on port {port}: {error.strerror}; take another with --port N"
            raise SearchError(said) from error
        names = {HOST, "localhost"}
        self.hosts = {f"{name}:{self.server_port}" for name in names}
        self.hosts |= names if self.server_port == 80 else set()
        self.url = f"http://{HOST}:{self.server_port}/"

    def page(self, form: dict[str, str]) -> tuple[HTTPStatus, bytes]:
        """Status and HTML for what a form says."""
        with self._one_at_a_time:
            searcher = self._searcher()
            request, answer, error = self._defaults, None, ""
            try:
                request = _request(form, self._defaults)
                answer = searcher.search(request) if request.query else None
            except SearchError as problem:
                error = str(problem)
        index = searcher.index
        html = self._template.render(
            title="tenfold-search",
            request=request,
            answer=answer,
            error=printable(error),
            counts=index.counts,
            root=printable(index.root.name or str(index.root)),
            model=printable(searcher.model.name),
            languages=LANGUAGES,
            most_characters=MOST_CHARACTERS,
            most_results=MOST_RESULTS,
        )
        status = HTTPStatus.BAD_REQUEST if error else HTTPStatus.OK
        return status, html.encode("utf-8", "replace")


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    timeout = 30  # seconds that a silent client may hold a thread
    server_version, sys_version = "tenfold-search", ""

    def do_GET(self) -> None:
        if self.headers.get("Host", "").lower() not in self.server.hosts:
            return self.send_error(HTTPStatus.FORBIDDEN, "This page answers on localhost only")
        try:
            parts = urlsplit(self.path)
            form = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        except ValueError:
            return self.send_error(HTTPStatus.BAD_REQUEST)
        if parts.path == "/page.css":
            return self._send(HTTPStatus.OK, "text/css; charset=utf-8", self.server.style)
        if parts.path != "/":
            return self.send_error(HTTPStatus.NOT_FOUND)
        try:
            status, html = self.server.page(form)
        except Exception:
            log.exception("no answer to %s", form)
            return self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
        return self._send(status, "text/html; charset=utf-8", html)

    do_HEAD = do_GET

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def end_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: queries are nobody's business."""


def _request(form: dict[str, str], defaults: Request) -> Request:
    """Raises SearchError for values that the form does not offer."""
    language, top = form.get("language") or None, form.get("top") or str(defaults.top)
    if language is not None and language not in LANGUAGES:
        raise SearchError(f"language {language!r}: known are {', '.join(LANGUAGES)}")
    if not (top.isdecimal() and len(top) <= MOST_DIGITS and 1 <= int(top) <= MOST_RESULTS):
        raise SearchError(f"results {top[:MOST_DIGITS]!r}: from 1 to {MOST_RESULTS}")
    path = form.get("path") or None
    return replace(defaults, query=form.get("q", ""), top=int(top), language=language, path=path)
