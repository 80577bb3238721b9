"""The demo page in headless Chromium: each tab answers, nothing is markup, nothing leaves."""

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.browser import Browser, browser
from tests.processes import started
from tests.unit.demo_toy import EVIL, KINDS, write_checkpoint, write_detector, write_pictures

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed"),
]

# The server's program reports each connection that it opens to another machine.
SERVER = """
import sys
def report(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        place = arguments[1] if event == "socket.connect" else arguments
        if isinstance(place, tuple) and place[0] not in ("127.0.0.1", "localhost", "::1", None):
            print("LEFT", event, place, file=sys.stderr, flush=True)
sys.addaudithook(report)
from shared.cli import main
main()
"""
HELPERS = """
window.shown = (e) => e.getClientRects().length > 0;
window.all = (selector) => [...document.querySelectorAll(selector)];
window.field = (label) => all('label').filter(l => shown(l) && l.innerText.trim() == label)
    .map(l => l.querySelector('textarea, input'))[0];
window.put = (label, text) => {
    const kind = field(label).tagName == 'INPUT' ? HTMLInputElement : HTMLTextAreaElement;
    Object.getOwnPropertyDescriptor(kind.prototype, 'value').set.call(field(label), text);
    field(label).dispatchEvent(new Event('input', {bubbles: true}));
};
window.button = (name) => all('button:not([role=tab])')
    .filter(b => shown(b) && b.innerText.trim() == name)[0];
window.open_tab = (name) => all('button[role=tab]').filter(b => b.innerText.trim() == name)
    .forEach(b => b.click());
window.images = () => all('img').filter(shown);
window.upload = () => all('input[type=file]').filter(e => shown(e.parentElement))[0];
true
"""


@contextmanager
def served(place: Path) -> Iterator[tuple[str, Any]]:
    """Address of the page of four tiny models, and the file of what its server says."""
    files = [write_checkpoint(place / f"{kind}.ckpt", kind) for kind in KINDS]
    detector, names = write_detector(place)
    folder = write_pictures(place / "pictures")
    command = [sys.executable, "-c", SERVER, "demo", *files, detector, f"images={folder}", "port=0"]
    with started([*command, f"texts={names}", "device=cpu"]) as process:
        end = time.monotonic() + 300
        while not (found := re.search(r"http://\S+", whole(process.stdout))):
            assert process.poll() is None, whole(process.stderr)
            assert time.monotonic() < end, "the page was not served in time"
            time.sleep(0.5)
        yield found[0], process.stderr


def whole(file: Any) -> str:
    """All that a program has written to a file, which it goes on writing to."""
    return os.pread(file.fileno(), 1 << 20, 0).decode()


def say(page: Browser, tab: str, picture: Path | None, label: str, text: str, button: str) -> None:
    """Fill in a tab and press its button."""
    page.run(f"open_tab({tab!r})")
    page.wait(f"!!button({button!r}) && !!field({label!r})")
    if picture is not None:
        page.wait("!!upload()")
        page.run("all('#chosen').forEach(e => e.id = ''); upload().id = 'chosen'")
        page.choose_file("#chosen", picture)
        page.wait("images().length > 0")
    page.run(f"put({label!r}, {text!r})")
    page.run(f"button({button!r}).click()")


def status(address: str, **headers: str) -> int:
    try:
        with urlopen(Request(address, headers=headers), timeout=30) as reply:
            return reply.status
    except HTTPError as error:
        return error.code


def test_every_tab_answers_in_text_and_nothing_leaves(tmp_path: Path) -> None:
    picture = tmp_path / "pictures" / "red.png"
    with served(tmp_path) as (address, complaints), browser(tmp_path / "profile") as page:
        page.call("Page.navigate", url=address)
        page.wait("document.querySelectorAll('button[role=tab]').length >= 5")
        page.run(HELPERS)

        page.wait("!!button('Write a caption')")
        page.run("button('Write a caption').click()")
        note = "field('Not possible') && field('Not possible').value"
        assert page.wait(note) == "Choose a picture first."
        say(page, "Caption", picture, "Prompt", "a red", "Write a caption")
        caption = page.wait("field('Caption, without the prompt').value")
        assert caption.startswith(EVIL)
        assert not page.run("!!field('Not possible')")

        say(page, "Question", picture, "Question", "what is this?", "Answer")
        assert page.wait("field('Answer').value") == f"{EVIL} (100.0 %)"
        page.run("put('Question', '')")
        page.run("button('Answer').click()")
        assert page.wait(note) == "Type a question first."

        large = tmp_path / f"large {EVIL}.png"
        large.write_bytes(b"\0" * (17 << 20))
        page.run("all('button').filter(b => shown(b) && b.ariaLabel == 'Remove Image')[0].click()")
        page.wait("!!upload()")
        page.run("all('#chosen').forEach(e => e.id = ''); upload().id = 'chosen'")
        page.choose_file("#chosen", large)
        page.wait("document.body.innerText.includes('The picture is larger than 16 MiB.')")
        assert page.run("all('[onerror], [src=x]').length") == 0

        say(page, "Match", picture, "Text", "a red doggy", "Do they match?")
        assert page.wait("field('Probability of a match').value").endswith(" %")
        page.wait("images().length == 6")  # the picture; as it is seen, the text, three words

        words, button = "Classes, with commas between", "Find objects"
        say(page, "Detect", picture, words, f"thing, {EVIL}", button)
        said = page.wait("field('Scores').value")
        assert {line.rpartition(" ")[0].rpartition(" ")[0] for line in said.splitlines()} <= {
            "thing", EVIL,
        }  # fmt: skip
        page.wait("images().length == 2")
        page.run(f"put({words!r}, 'zebra')")
        page.run(f"button({button!r}).click()")
        assert "No embedding of 'zebra', of 2 known" in page.wait(note)

        say(page, "Search", None, "Which of the 3 pictures?", "a dog", "Find pictures")
        page.wait("images().length == 3 && images().every(i => i.naturalWidth == 256)")
        names = page.run("document.body.innerText")
        assert f"% {EVIL}.png" in names
        assert "below/**bold**\\u202egpj.png" in names

        assert page.run("all('[onerror], [src=x]').length") == 0
        assert (page.dialogs, page.errors) == ([], [])
        places = {request.partition(":")[0] for request in page.requests}
        assert places <= {"http", "data", "blob"}
        assert all(r.startswith(address) for r in page.requests if r.startswith("http"))
        assert whole(complaints) == ""

        assert status(address) == 200
        assert status(address, Host="elsewhere.example") == 403
        assert status(address, Origin="http://elsewhere.example") == 403
        for path in (picture, tmp_path / "vqa.ckpt", "/etc/passwd"):
            assert status(f"{address}gradio_api/file={path}") in (403, 404)
