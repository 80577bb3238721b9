"""A small local page for searching: plain HTML and a form, nothing from elsewhere. Its script adds
keys and copying; everything else works without.

It listens on the loopback interface only and answers no request for another host name, as a
foreign page could send by a name that it lets point here. All values are escaped by the template.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from methods.cascode.search.index import KINDS, KNOWN, Index
from methods.cascode.search.query import MOST_CHARACTERS, Request, Searcher, marked
from methods.cascode.search.store import SearchError
from shared.showing import printable

log = logging.getLogger(__name__)
HOST = "127.0.0.1"
MOST_RESULTS = 100
MOST_SHOWN = 20  # characters of a wrong value
MOST_LINES = 6  # of a result before it is opened
CHOICES = {
    "kind": ("Search in", {"code": "code", "docs": "documentation", "all": "both"}),
    "language": ("Language", {"": "any"} | {language: language for language in sorted(KNOWN)}),
}
EXAMPLES = ("read a configuration file", "write a table to disk", "connect to a server")
MOST_LOOKED_AT = 1_000  # texts for one example
_HERE = Path(__file__).parent
_HTML = "text/html; charset=utf-8"
_FILES = {"page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8"}
_AGES = (("day", 86_400), ("hour", 3_600), ("minute", 60))
_PROBLEMS = {
    HTTPStatus.FORBIDDEN: "This page answers this machine only: as localhost or 127.0.0.1.",
    HTTPStatus.NOT_FOUND: "This address is not a page of the tool.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "The search failed. Its terminal says why.",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class PageServer(ThreadingHTTPServer):
    """The page of one index: `searcher` is called for every search, so that it may return a newer
    one; `defaults` are what the form starts with, and what it does not ask for; port 0 takes a
    free one."""

    daemon_threads = True

    def __init__(self, searcher: Callable[[], Searcher], defaults: Request, port: int):
        self._searcher, self._defaults = searcher, defaults
        self._one_at_a_time = threading.Lock()  # a model uses all cores for one query
        pages = FileSystemLoader(_HERE)
        environment = Environment(loader=pages, autoescape=True, undefined=StrictUndefined)
        environment.filters.update(marked=marked, printable=printable, editor=editor_link)
        most = {"characters": MOST_CHARACTERS, "results": MOST_RESULTS, "lines": MOST_LINES}
        environment.globals.update(title="tenfold-search", choices=CHOICES, most=most)
        self._template = environment.get_template("page.html")
        self.files = {f"/{n}": (kind, (_HERE / n).read_bytes()) for n, kind in _FILES.items()}
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
        usual = self._defaults
        chosen = {"kind": usual.kind, "language": usual.language or "", "path": usual.path or ""}
        typed = {"q": "", "top": ""} | chosen | form
        typed["top"] = typed["top"] or str(min(usual.top, MOST_RESULTS))
        with self._one_at_a_time:
            searcher, answer = self._searcher(), None
            wrong, error = _problem(typed)
            try:
                if typed["q"] and not error:
                    answer = searcher.search(_request(typed, usual))
            except SearchError as problem:
                wrong, error = "" if typed["q"].strip() else "q", str(problem)
        index = searcher.index
        status = HTTPStatus.BAD_REQUEST if error else HTTPStatus.OK
        html = self._template.render(
            problem="",
            typed=typed,
            answer=answer,
            wrong=wrong,
            error=printable(error),
            index=index,
            contents=_contents(index),
            age=_age(index),
            examples=[] if answer or error else examples(index),
            root=printable(index.root.name or str(index.root)),
            model=printable(searcher.model.name),
        )
        return status, html.encode("utf-8", "replace")

    def problem(self, status: HTTPStatus) -> bytes:
        """HTML that says in plain words why there is no page, and nothing of the request."""
        problem = _PROBLEMS.get(status, status.description)
        return self._template.render(status=status, problem=problem).encode()


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    timeout = 30  # seconds that a silent client may hold a thread
    server_version, sys_version = "tenfold-search", ""

    def do_GET(self) -> None:
        if self.headers.get("Host", "").lower() not in self.server.hosts:
            return self.send_error(HTTPStatus.FORBIDDEN)
        try:
            parts = urlsplit(self.path)
            fields = parse_qs(parts.query, keep_blank_values=True)
            form = {name: values[-1] for name, values in fields.items()}
        except ValueError:
            return self.send_error(HTTPStatus.BAD_REQUEST)
        if parts.path in self.server.files:
            return self._send(HTTPStatus.OK, *self.server.files[parts.path])
        if parts.path != "/":
            return self.send_error(HTTPStatus.NOT_FOUND)
        try:
            status, html = self.server.page(form)
        except Exception:
            log.exception("no answer to %s", form)
            return self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
        return self._send(status, _HTML, html)

    do_HEAD = do_GET

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send a page of our own; `message` may repeat the request and is left out."""
        self.close_connection = True
        status = HTTPStatus(code)
        self._send(status, _HTML, self.server.problem(status))

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


def examples(index: Index) -> list[str]:
    """Three queries to start with: short documentation from all over the index, or usual ones."""
    found: list[str] = []
    functions = index.place_rows[index.kinds == KINDS.index("function")]
    for rows in np.array_split(functions, 3):
        abouts = (_about(index, row) for row in rows[:MOST_LOOKED_AT])
        with suppress(SearchError):  # texts are read when needed: another index may have come
            found += next(([about] for about in abouts if about and about not in found), [])
    return [*found, *(usual for usual in EXAMPLES if usual not in found)][:3]


def editor_link(path: str, line: int, root: Path) -> str:
    """An address that VS Code, and editors that follow it, open a file of the root by."""
    return f"vscode://file{quote(os.fsencode(root / path))}:{line}"


def _about(index: Index, row: int) -> str:
    """The first sentence of a text's documentation, if it is 3 to 8 plain words."""
    if index.description["text"] == "code":  # which has no documentation
        return ""
    words = index.text(row).partition("\n")[0].partition(". ")[0].removesuffix(".").split()
    plain = 3 <= len(words) <= 8 and all(part.isalpha() for w in words for part in w.split("-"))
    return " ".join(words).lower() if plain else ""


def _contents(index: Index) -> str:
    """How many entries of each kind there are."""
    counts = zip(np.bincount(index.kinds, minlength=len(KINDS)).tolist(), KINDS, strict=True)
    ends = {kind: "es" if kind.endswith("s") else "s" for kind in KINDS}
    return ", ".join(f"{n:,} {kind}{ends[kind] * (n != 1)}" for n, kind in counts if n)


def _age(index: Index) -> tuple[str, str, str] | None:
    """When the index was written, if known: in words, for machines, and by the clock here."""
    try:
        then = os.path.getmtime(index.path)
        when = datetime.fromtimestamp(then).astimezone()
    except (OSError, ValueError, OverflowError):  # it is gone, or its time is no time
        return None
    counts = ((int((time.time() - then) // size), unit) for unit, size in _AGES)
    past = next((f"{n} {unit}{'s' * (n > 1)} ago" for n, unit in counts if n > 0), "just now")
    return past, when.isoformat(timespec="seconds"), f"{when:%Y-%m-%d %H:%M}"


def _problem(typed: dict[str, str]) -> tuple[str, str]:
    """The field with a value that the form does not offer, and what to say of it; else no texts."""
    for name, (_, options) in CHOICES.items():
        if typed[name] not in options:
            known = ", ".join(filter(None, options))
            return name, f"{name} {typed[name][:MOST_SHOWN]!r}: known are {known}"
    top = typed["top"]
    if not (top.isdecimal() and len(top) <= MOST_SHOWN and 1 <= int(top) <= MOST_RESULTS):
        return "top", f"results {top[:MOST_SHOWN]!r}: from 1 to {MOST_RESULTS}"
    return "", ""


def _request(typed: dict[str, str], usual: Request) -> Request:
    language, path = typed["language"] or None, typed["path"] or None
    query, top, kind = typed["q"], int(typed["top"]), typed["kind"]
    return replace(usual, query=query, top=top, kind=kind, language=language, path=path)
