"""What may lie where a file is expected: the damages that every reader meets.

A damage replaces one file of a valid input. `REFUSED` ones must end in one of the reader's own
errors, whose message names the file; after any other the reader may also return, but nothing else.
"""

import os
import random
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

DEEP = 100_000


def _rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return damage


def _replace(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path must be short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def _flipped(content: bytes) -> bytes:
    generator = random.Random(0)
    changed = bytearray(content)
    for _ in range(1 + len(changed) // 64):
        changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
    return bytes(changed)


REFUSED: dict[str, Callable[[Path], None]] = {
    "missing": _replace(lambda path: None),
    "empty": _rewrite(lambda content: b""),
    "zeros": _rewrite(lambda content: bytes(len(content))),
    "noise": _rewrite(lambda content: random.Random(1).randbytes(max(64, len(content)))),
    "a pipe": _replace(os.mkfifo),
    "a socket": _replace(_socket),
    "an endless device": _replace(lambda path: path.symlink_to("/dev/zero")),
    "a folder": _replace(Path.mkdir),
    "a link to itself": _replace(lambda path: path.symlink_to(path.name)),
    "a link to nothing": _replace(lambda path: path.symlink_to("gone")),
}
TOLERATED: dict[str, Callable[[Path], None]] = {
    "half of it": _rewrite(lambda content: content[: len(content) // 2]),
    "flipped bits": _rewrite(_flipped),
    "not UTF-8": _rewrite(lambda content: b"\xff\xfe" + content),
    "deep brackets": _rewrite(lambda content: b"[" * DEEP),
    "deep braces": _rewrite(lambda content: b'{"a":' * DEEP),
    "a number": _rewrite(lambda content: b"42"),
    "a list of nulls": _rewrite(lambda content: b"[null, null]"),
    "an object": _rewrite(lambda content: b'{"": {}}'),
    "an enormous number": _rewrite(lambda content: b"9" * 100_000),
}
DAMAGES = REFUSED | TOLERATED
TELLING = (
    "missing",
    "empty",
    "half of it",
    "a list of nulls",
    "an enormous number",
    "deep brackets",
    "a pipe",
    "an endless device",
)
"""One of each kind: cut off, of a wrong type, too large, too deep, endless. The rest is slow."""
MOSTLY = [d if d in TELLING else pytest.param(d, marks=pytest.mark.slow) for d in sorted(DAMAGES)]


ABSENT = object()


def put(content: Any, place: str, value: Any) -> None:
    """Set, or with `ABSENT` delete, what stands at `place` of nested containers: `arms.0.mean`."""
    *parents, key = (int(part) if part.isdecimal() else part for part in place.split("."))
    for parent in parents:
        content = content[parent]
    content[key] = value
    if value is ABSENT:
        del content[key]


def every(step: int, values: Sequence[Any]) -> list[Any]:
    """The values as parameters of a test, all but one of so many in the slow tests."""
    slow = pytest.mark.slow
    return [pytest.param(v, marks=slow) if n % step else v for n, v in enumerate(values)]
