"""The journal of a shard: what was worked out, a line a block, each with a checksum.

    <32 hex digits> <JSON>

The digits are a digest of the line's JSON and of the digits before it, so that a line that was
torn, damaged, left out or taken from elsewhere ends what is believed; the rest is cut and worked
out again, with the same result.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.files import open_own, open_regular, parse_json

_LONGEST = 1 << 28  # bytes of a line
_SYNCED = 5.0  # seconds between writes that also survive a loss of power


class Journal:
    """The journal while its shard is worked on; held by one process, see `shared.files.locked`."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, open_own(path)
        self._chain, self._synced = b"", time.monotonic()
        self.cut = 0  # bytes that were torn or damaged

    def replay(self) -> Iterator[Any]:
        """Yield what was written; after the last one the journal can be written on."""
        end = 0
        for content, place, chain in _lines(self._path):
            end, self._chain = place, chain
            yield content
        self.cut = os.fstat(self._file.fileno()).st_size - end
        self._file.truncate(end)

    def append(self, content: Any) -> None:
        """Write a line; killed at any moment, the process leaves all of it or a torn one."""
        text = json.dumps(content, separators=(",", ":")).encode()
        self._chain = _digits(self._chain, text)
        line = b"%s %s\n" % (self._chain, text)
        while line:
            line = line[self._file.write(line) :]
        if time.monotonic() - self._synced > _SYNCED or "end" in content:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> Iterator[Any]:
    """Yield what a journal holds, up to the first line that is torn or damaged."""
    return (content for content, _, _ in _lines(path))


def _lines(path: Path) -> Iterator[tuple[Any, int, bytes]]:
    """Yield each content, where it ends, and the digits to go on from."""
    chain, end = b"", 0
    with open_regular(path, follow_links=False) as file:
        while line := file.readline(_LONGEST):
            chain, end = _digits(chain, line[33:-1]), end + len(line)
            if line[:33] != chain + b" " or not line.endswith(b"\n"):
                return
            yield parse_json(line[33:-1]), end, chain


def _digits(chain: bytes, text: bytes) -> bytes:
    return hashlib.blake2b(chain + text, digest_size=16).hexdigest().encode()
