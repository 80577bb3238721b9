"""Headless Chromium for tests, driven by its protocol through two pipes; nothing to install."""

import base64
import json
import os
import select
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.processes import started

OPTIONS = [
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
    "disable-background-networking", "disable-component-update", "disable-sync",
    "remote-debugging-pipe",
    "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "disable-dev-shm-usage",
]  # fmt: skip
PATIENCE = 60.0  # seconds for one thing to happen


class Browser:
    """One page; `requests` are the addresses that it asked for, `dialogs` what popped up, and
    `errors` what scripts threw."""

    def __init__(self, commands: int, replies: int):
        self._commands, self._replies, self._unread = commands, replies, b""
        self._count, self._session = 0, ""
        self.requests: list[str] = []
        self.dialogs: list[str] = []
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command; events that come first are noted."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        end, number = time.monotonic() + PATIENCE, self._count
        while (reply := self._read(end)).get("id") != number:
            self._note(reply)
        assert "error" not in reply, (method, reply)
        return reply["result"]

    def run(self, script: str) -> Any:
        """The value of a script, which may be a promise."""
        told = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait(self, script: str) -> Any:
        """The first value of a script that is true."""
        end = time.monotonic() + PATIENCE
        while not (value := self.run(script)):
            assert time.monotonic() < end, (script, self.errors, self.run(TEXT))
            time.sleep(0.1)
        return value

    def choose_file(self, selector: str, path: Path) -> None:
        """Put a file into a field for files."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def screenshot(self, path: Path, width: int, height: int = 900) -> None:
        """Write a picture of the whole page at that width."""
        sizes = {"deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, **sizes)
        time.sleep(0.7)  # for what moves to stand
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _read(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._replies], [], [], max(0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._replies, 1 << 16)
            assert part, "the browser has ended"
            self._unread += part
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        details = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])
        elif event.get("method") == "Page.javascriptDialogOpening":
            self.dialogs.append(details["message"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(details["exceptionDetails"]))


TEXT = "document.body.innerText"


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile; the test is skipped where Chromium is not installed."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    (command_end, commands), (replies, reply_end) = os.pipe(), os.pipe()
    # Chromium reads commands from descriptor 3 and answers on 4.
    shell = ["bash", "-c", f'exec "$0" "$@" 3<&{command_end} 4>&{reply_end}', chromium]
    options = [*(f"--{option}" for option in OPTIONS), f"--user-data-dir={profile}"]
    try:
        with started([*shell, *options], pass_fds=(command_end, reply_end)):
            os.close(command_end)
            os.close(reply_end)
            yield Browser(commands, replies)
    finally:
        os.close(commands)
        os.close(replies)
