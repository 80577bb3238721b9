"""The local page: what it shows is escaped, and it talks to nobody but this machine."""

import http.client
import re
import socket
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from methods.cascode.search.page import HOST, PageServer
from methods.cascode.search.query import Request, Searcher
from methods.cascode.search.store import SearchError
from tests.unit.cascode_search_toy import HashingModel, build, searcher, write_tree

EVIL = "<script>alert(1)</script>"
FILES = {
    "page.py": f'def render(name):\n    """Show a page. {EVIL}"""\n    return "{EVIL}" + name\n',
    f'{EVIL.replace("/", "")}/"onload=.py': "def render_two(name):\n    return name\n",
    "one.py": "def render_three():\n    return 'same'\n",
    "two.py": "\n\ndef render_three():\n    return 'same'\n",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_tree(tmp_path_factory.mktemp("page").resolve(), FILES)
    build(root)
    return root


@pytest.fixture(scope="module")
def found(root: Path) -> Searcher:
    return searcher(root, rerank=True)


@pytest.fixture(scope="module")
def server(found: Searcher) -> Iterator[PageServer]:
    with PageServer(lambda: found, Request("", lines=5), port=0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


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


def test_the_form(server):
    response, body = ask(server)
    assert response.status == 200
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    page = Elements(body)
    assert "4 functions in 4 files" in page.text
    tags = [tag for tag, _ in page.found]
    assert ("form", {"action": "/", "method": "get", "role": "search"}) in page.found
    assert "article" not in tags


def test_results(server):
    body = search(server, q="render page", language="python", path="*.py", top="3")
    page = Elements(body)
    assert sum(tag == "article" for tag, _ in page.found) == 3
    assert "page.py:1" in page.text
    assert "<mark>page</mark>" in body.lower()
    assert ("span", {"class": "badge"}) in page.found
    assert "re-ranked" in page.text
    assert ("option", {"value": "python", "selected": None}) in page.found
    values = {a["name"]: a.get("value") for tag, a in page.found if tag == "input"}
    assert values == {"q": "render page", "path": "*.py", "top": "3"}
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


def test_no_script_and_nothing_from_elsewhere(server):
    body = search(server, q="render")
    tags = [tag for tag, _ in Elements(body).found]
    assert "script" not in tags
    assert "style" not in tags
    links = [v for _, a in Elements(body).found for k, v in a.items() if k in ("href", "src")]
    assert set(links) == {"/page.css", "/"}
    response, style = ask(server, "/page.css")
    assert response.headers["Content-Type"] == "text/css; charset=utf-8"
    assert not re.search(r"url\(|@import|http", style)
    assert "prefers-color-scheme: dark" in style


@pytest.mark.parametrize("path", ["/", "/?q=render", "/page.css", "/nothing", "/?top=x&q=a"])
def test_headers(server, path):
    """Of errors, too."""
    response, _ = ask(server, path)
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'self';")
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
    for host in (f"localhost:{server.server_port}", f"LOCALHOST:{server.server_port}"):
        assert ask(server, Host=host)[0].status == 200


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"q": "a", "language": "cobol"}, "known are python"),
        ({"q": "   "}, "the query is empty"),
    ],
)
def test_bad_forms(server, form, message):
    response, body = ask(server, "/?" + urlencode(form))
    assert response.status == 400
    assert message in Elements(body).text


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
