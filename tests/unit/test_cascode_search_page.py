"""The local page: what it shows is escaped, and it talks to nobody but this machine."""

import http.client
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, urlencode

import numpy as np
import pytest

from methods.cascode.search.index import KNOWN, Index
from methods.cascode.search.page import EXAMPLES, HOST, PageServer, examples
from methods.cascode.search.query import KIND_CHOICES, Request, Searcher
from methods.cascode.search.store import SearchError
from tests.unit.cascode_search_toy import FILES as TOY
from tests.unit.cascode_search_toy import HashingModel, build, searcher, write_tree

EVIL = "<script>alert(1)</script>"
FILES = {
    "page.py": f'def render(name):\n    """Show a page. {EVIL}"""\n    return "{EVIL}" + name\n',
    f'{EVIL.replace("/", "")}/"onload=.py': "def render_two(name):\n    return name\n",
    "one.py": "def render_three():\n    return 'same'\n",
    "two.py": "\n\ndef render_three():\n    return 'same'\n",
    "long.py": "def tall(name):\n" + "".join(f"    line_{n}(name)\n" for n in range(2, 12)),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_tree(tmp_path_factory.mktemp("page").resolve(), FILES)
    build(root)
    return root


@pytest.fixture(scope="module")
def found(root: Path) -> Searcher:
    return searcher(root, rerank=True)


@contextmanager
def serving(found: Searcher, defaults: Request) -> Iterator[PageServer]:
    with PageServer(lambda: found, defaults, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server(found: Searcher) -> Iterator[PageServer]:
    with serving(found, Request("", lines=9)) as server:
        yield server


def ask(
    server: PageServer, path: str = "/", method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, str]:
    connection = http.client.HTTPConnection(HOST, server.server_port, timeout=10)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response, body


def search(server: PageServer, **form: str) -> str:
    response, body = ask(server, "/?" + urlencode(form))
    assert response.status == 200
    return body


class Elements(HTMLParser):
    """All elements with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def fields(self) -> dict[str, str | None]:
        """What is in the form: of a selector, the first option or the one that is selected."""
        values, name = {}, ""
        for tag, a in self.found:
            if tag == "input":
                values[a["name"]] = a["value"]
            elif tag == "select":
                name = a["name"]
            elif tag == "option" and (name not in values or "selected" in a):
                values[name] = a["value"]
        return values

    def options(self, name: str) -> list[str | None]:
        """The values that a selector offers."""
        values, inside = [], False
        for tag, a in self.found:
            inside = a["name"] == name if tag == "select" else inside
            if inside and tag == "option":
                values.append(a["value"])
        return values

    def values(self, attribute: str) -> list[str | None]:
        return [a[attribute] for _, a in self.found if attribute in a]


def test_the_form(server):
    response, body = ask(server)
    assert response.status == 200
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    page = Elements(body)
    assert "5 functions in 5 files" in page.text
    tags = [tag for tag, _ in page.found]
    assert ("form", {"action": "/", "method": "get", "role": "search"}) in page.found
    assert "article" not in tags
    assert page.options("kind") == [*KIND_CHOICES]
    assert page.options("language") == ["", *sorted(KNOWN)]
    usual = {"q": "", "kind": "code", "language": "", "path": "", "top": "10"}
    assert page.fields() == usual


def test_the_form_starts_with_what_the_command_says(found):
    defaults = Request("", top=500, language="go", path="src", kind="all")
    expected = {"q": "", "kind": "all", "language": "go", "path": "src", "top": "100"}
    with serving(found, defaults) as server:
        assert Elements(ask(server)[1]).fields() == expected
        emptied = Elements(search(server, q="render", language="", path="", kind="code", top=""))
        changed = {"q": "render", "kind": "code", "language": "", "path": ""}
        assert emptied.fields() == expected | changed
        assert "article" in [tag for tag, _ in emptied.found]


@pytest.mark.parametrize(
    ("age", "words"),
    [
        (-90, "just now"),
        (59, "just now"),
        (60, "1 minute ago"),
        (3 * 3600 + 5, "3 hours ago"),
        (86_400 * 400, "400 days ago"),
    ],
)
def test_age(server, found, age, words):
    then = time.time() - age
    os.utime(found.index.path, (then, then))
    page = Elements(ask(server)[1])
    assert f"indexed {words}" in page.text
    [[stamp, local]] = [[a["datetime"], a["title"]] for tag, a in page.found if tag == "time"]
    assert abs(datetime.fromisoformat(stamp).timestamp() - then) < 1
    assert local == time.strftime("%Y-%m-%d %H:%M", time.localtime(then))


def test_contents(server, found, monkeypatch):
    kinds = np.array([0] * 1200 + [1, 1, 3])
    monkeypatch.setattr(found.index, "kinds", kinds)
    monkeypatch.setattr(found.index, "place_rows", np.zeros_like(kinds))
    said = "1,200 functions, 2 classes, 1 module in 5 files of page"
    assert said in Elements(ask(server)[1]).text


def test_an_unknown_age(server, found, monkeypatch):
    monkeypatch.setattr(found.index, "path", Path("/nothing/here"))
    assert "indexed" not in Elements(ask(server)[1]).text
    monkeypatch.setattr(os.path, "getmtime", lambda _: 1e18)
    response, body = ask(server)
    assert response.status == 200
    assert "indexed" not in Elements(body).text


def test_examples(tmp_path, server):
    """Out of the documentation, and links that search for it."""
    build(write_tree(tmp_path, TOY))
    index = searcher(tmp_path).index
    found = examples(index)
    assert len(found) == 3
    assert found == examples(index)
    assert {"read the settings from a json file", "connect to a server by tcp"} <= {*found}
    page = Elements(ask(server)[1])
    for example in ("show a page", *EXAMPLES[:2]):  # one that is documented
        assert example in page.text
        assert f"/?q={quote(example)}" in page.values("href")
    assert EXAMPLES[0] not in Elements(search(server, q="render")).text


def test_examples_of_texts_that_cannot_be_read(server, monkeypatch):
    def gone(self: Index, row: int) -> None:
        raise SearchError("another index has come")

    monkeypatch.setattr(Index, "text", gone)
    page = Elements(ask(server)[1])
    assert all(example in page.text for example in EXAMPLES)


def test_results(server):
    body = search(server, q="render page", language="python", path="*.py", top="3")
    page = Elements(body)
    assert sum(tag == "article" for tag, _ in page.found) == 3
    assert "page.py:1" in page.text
    assert "<mark>page</mark>" in body.lower()
    assert ("span", {"class": "badge"}) in page.found
    assert "re-ranked" in page.text
    assert ("option", {"value": "python", "selected": None}) in page.found
    typed = {"q": "render page", "kind": "code", "language": "python", "path": "*.py", "top": "3"}
    assert page.fields() == typed
    assert re.search(r"\bscore -?\d+\.\d\d\b", page.text)
    for jargon in ("first stage", "standardised", "inner product", "similarity"):
        assert jargon not in body
    assert "the same code in 1 more place" in search(server, q="three same")


def test_everything_is_escaped(server):
    """Code, paths, names and queries cannot add an element or an attribute."""
    plain = {tag for tag, _ in Elements(search(server, q="render")).found}
    for query in (EVIL, '"><img src=x onerror=alert(1)>', "' autofocus onfocus=alert(1) x='"):
        body = search(server, q=query, path="*", language="")
        page = Elements(body)
        assert {tag for tag, _ in page.found} <= plain | {"mark"}
        assert not any(name.startswith("on") for _, a in page.found for name in a)
        assert [a["value"] for tag, a in page.found if a.get("name") == "q"] == [query]
    assert EVIL in page.text
    assert EVIL not in body
    assert EVIL.replace("/", "") in page.text, "in a path, too"


def test_a_long_result_is_shortened(server):
    """Six lines are shown, the others after a click that needs no script; the rest is not sent."""
    body = search(server, q="tall", top="1")
    before, _, after = body.partition("<details>")
    assert "3 more lines" in after
    assert re.findall("line_(?:<mark>)?([0-9]+)", before.partition("<pre>")[2]) == list("23456")
    assert re.findall("line_(?:<mark>)?([0-9]+)", after) == list("789")
    assert "<details>" not in search(server, q="page", top="1")


def test_links_into_an_editor(server, found, root, monkeypatch):
    """Of one's own index only: another could name any file."""
    links = Elements(search(server, q="render two")).values("href")
    escaped = "%3Cscript%3Ealert%281%29%3Cscript%3E/%22onload%3D.py"
    assert f"vscode://file{quote(str(root))}/{escaped}:1" in links
    assert f"vscode://file{quote(str(root))}/long.py:1" in links
    monkeypatch.setattr(found.index, "own", False)
    assert "vscode" not in search(server, q="render two")


def test_nothing_found(server):
    page = Elements(search(server, q="render it", path="nowhere", language="go"))
    assert "article" not in [tag for tag, _ in page.found]
    for hint in ("fewer or other words", "code and documentation", "no path", "any language"):
        assert hint in page.text
    assert "/?q=render%20it&kind=all&language=&path=" in page.values("href")


def test_re_ranking_is_mentioned_where_it_was_done(server, root):
    assert " ms · re-ranked" in Elements(search(server, q="render")).text
    with serving(searcher(root), Request("")) as plain:
        assert re.search(r" ms\s*\n", Elements(search(plain, q="render")).text)


def test_nothing_from_elsewhere(server):
    """One script of our own, and nothing within the page."""
    page = Elements(search(server, q="render"))
    assert [a for tag, a in page.found if tag == "script"] == [{"src": "/page.js", "defer": None}]
    assert not {"style", "img", "iframe"} & {tag for tag, _ in page.found}
    assert not [name for _, a in page.found for name in a if name.startswith(("on", "style"))]
    links = {v for v in page.values("href") + page.values("src") if not v.startswith("vscode:")}
    assert links == {"/page.css", "/page.js", "/"}
    response, style = ask(server, "/page.css")
    assert response.headers["Content-Type"] == "text/css; charset=utf-8"
    assert not re.search(r"url\(|@import|http", style)
    assert "prefers-color-scheme: dark" in style
    response, script = ask(server, "/page.js")
    assert response.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert not re.search(r"http|import|eval|innerHTML|fetch|XML", script)


def test_what_needs_a_script_is_hidden_without(server):
    page = Elements(search(server, q="render"))
    buttons = [a for tag, a in page.found if tag == "button"]
    assert buttons[0] == {}
    assert buttons[1:] == [{"type": "button", "hidden": None}] * 4
    assert ("p", {"class": "quiet keys", "hidden": None}) in page.found


@pytest.mark.parametrize(
    "path", ["/", "/?q=render", "/page.css", "/page.js", "/nothing", "/?top=x&q=a"]
)
def test_headers(server, path):
    """Of errors, too."""
    response, _ = ask(server, path)
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'self'; script-src 'self';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert "Python" not in (response.headers["Server"] or "")


def test_only_this_machine_can_ask(server):
    """Not a page that lets its own name point to it."""
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_port}/"
    for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1", ""):
        response, body = ask(server, "/?q=render", Host=host)
        assert response.status == 403
        assert "render" not in body
        assert "functions" not in body, "nothing of the index"
        assert "answers this machine only" in body
    for host in (f"localhost:{server.server_port}", f"LOCALHOST:{server.server_port}"):
        assert ask(server, Host=host)[0].status == 200


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"language": "cobol"}, "known are c, cpp"),
        ({"q": "   "}, "the query is empty"),
        ({"top": "many"}, "from 1 to 100"),
        ({"top": "0"}, "from 1 to 100"),
        ({"top": "9" * 5000}, "from 1 to 100"),
        ({"kind": f'"{EVIL}'}, "known are code, docs, all"),
    ],
)
def test_errors_keep_what_was_typed(server, wrong, message):
    typed = {"q": "render <b>", "kind": "docs", "language": "go", "path": "src/*", "top": "7"}
    form = typed | wrong
    response, body = ask(server, "/?" + urlencode(form))
    page = Elements(body)
    assert response.status == 400
    assert message in page.text
    assert EVIL not in body
    # A selector can hold nothing else than it offers.
    kept = {"language": ""} if "language" in wrong else {"kind": "code"} if "kind" in wrong else {}
    assert page.fields() == form | kept
    [marked] = [a for _, a in page.found if "aria-invalid" in a]
    assert [marked["name"]] == [*wrong]
    assert marked["aria-describedby"] in page.values("id")
    assert len(page.values("autofocus")) == 1
    assert "autofocus" in marked


def test_an_error_that_is_of_no_field(server, monkeypatch):
    def gone(self: Searcher, request: Request) -> None:
        raise SearchError("another index has come: ask again")

    monkeypatch.setattr(Searcher, "search", gone)
    response, body = ask(server, "/?q=render")
    page = Elements(body)
    assert response.status == 400
    assert "ask again" in page.text
    assert page.fields()["q"] == "render"
    assert not page.values("aria-invalid")


@pytest.mark.parametrize(
    ("path", "method", "status", "words"),
    [
        (f"/{EVIL}", "GET", 404, "not a page of the tool"),
        ("/?q=" + "word+" * 20_000, "GET", 414, "too long"),
        (f"/{EVIL}", "POST", 501, "does not support"),
        ("/", EVIL, 501, "does not support"),
        (f"x://[{EVIL}", "GET", 400, "Bad request"),
    ],
)
def test_pages_of_errors(server, path, method, status, words):
    """In the same dress, with a way home, and with nothing of the request."""
    response, body = ask(server, path, method=method)
    page = Elements(body)
    assert response.status == status
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert words in page.text
    assert {*page.values("href")} == {"/page.css", "/"}
    assert "alert" not in body + response.reason


def test_odd_requests(server):
    odd = ("%ff%fe", "%00", "a" * 60_000, quote("\ud800", errors="replace"))
    expected = {
        404: ["/../etc/passwd", "/page.html", "/%00"],
        200: [f"/?q={query}x" for query in odd],
        414: ["/?q=" + "word+" * 20_000],
    }
    for status, paths in expected.items():
        for path in paths:
            assert ask(server, path)[0].status == status, path[:20]
    assert ask(server, method="POST")[0].status == 501
    response, body = ask(server, "/?q=render", method="HEAD")
    assert (response.status, body) == (200, "")
    with socket.create_connection((HOST, server.server_port), timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01 garbage\r\n\r\n")
        assert b"400" in connection.recv(1000)
    assert ask(server)[0].status == 200


def test_an_error_is_no_leak(server, monkeypatch, caplog):
    def broken(self: HashingModel, texts: list[str]) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(HashingModel, "encode_queries", broken)
    response, body = ask(server, "/?q=render")
    assert response.status == 500
    assert "secret" not in body
    assert "The search failed" in Elements(body).text
    assert "secret detail" in caplog.text
    monkeypatch.undo()
    assert ask(server, "/?q=render")[0].status == 200


def test_several_at_once(server):
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(ask(server, "/?q=render")[0].status))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 8


def test_a_taken_port(server, found):
    with pytest.raises(SearchError, match=f"port {server.server_port}: .*--port N"):
        PageServer(lambda: found, Request(""), port=server.server_port)
