"""Entries of an input: an image, its web texts, and what is wrong with either.

A fault is a kind, of which there are few, and behind a colon what happened to this entry.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from shared.data.readers.files import is_text, leaves, shortened

MOST_TEXTS = 100  # of an entry
LONGEST_TEXT = 10_000  # characters; what is longer is no caption
LONGEST_ENTRY = 1 << 20  # bytes of a JSON object or of a file with a text


class Place(NamedTuple):
    """Where bytes lie: in a whole file, or `size` of them from `offset` on."""

    path: str
    offset: int = 0
    size: int | None = None


@dataclass(frozen=True)
class Record:
    """One entry. `content` is what its writer needs besides: the JSON object, or the other files of
    a sample. `lost` is the share of the input that cannot be read because of its fault."""

    name: str
    texts: tuple[str, ...] = ()
    image: Place | None = None
    fault: str = ""  # why there is no image
    text_fault: str = ""  # why a text is left out
    content: Any = None
    lost: float = 0.0
    end: int = 0  # bytes of the input up to here

    @cached_property
    def key(self) -> str:
        """16 hex digits of name and texts: what the entry's random numbers depend on."""
        content = json.dumps([self.name, *self.texts]).encode()
        return hashlib.blake2b(content, digest_size=8).hexdigest()


class Block(NamedTuple):
    """Entries that go through the models together, however the work is shared and interrupted:
    the rounding of a network depends on what else is in its batch."""

    number: int
    records: tuple[Record, ...]


Write = Callable[[Record, str, str, bytes], None]
"""Writes a pair: the entry, the text's origin ("web", "web-2", "synthetic"), the text, and the
image's bytes, which are empty where `Source.copies` is false."""


class Source(Protocol):
    """An input: its entries in order, and a writer of pairs in the same format."""

    kind: str
    output: str  # name of what the writer makes
    copies: bool  # whether the output holds images

    @property
    def root(self) -> str | None:
        """Folder that no image's file may lie outside of; None in archives."""

    @property
    def size(self) -> int | None:
        """Bytes of the input, as `Record.end` counts them."""

    def describe(self) -> dict[str, Any]:
        """Kind, number of files, bytes, and a SHA-256 by which another input is told apart."""

    def records(self) -> Iterator[Record]: ...

    def writer(self, folder: Path) -> AbstractContextManager[Write]:
        """Pairs go to `folder`, whole when the context ends without an error, else not at all."""


def blocks(records: Iterable[Record], size: int) -> Iterator[Block]:
    """Cut entries into blocks of `size`, the last one perhaps smaller."""
    iterator, number = iter(records), 0
    while entries := tuple(islice(iterator, size)):
        yield Block(number, entries)
        number += 1


def texts_of(caption: Any) -> tuple[tuple[str, ...], str]:
    """The usable texts of a caption, a text or a list of them, and the first fault of the rest."""
    given = caption if isinstance(caption, list) else [caption]
    if len(given) > MOST_TEXTS:
        return (), f"too long: {len(given)} texts"
    faults = [_text_fault(text) for text in given] or ["no text"]
    usable = tuple(text for text, fault in zip(given, faults, strict=False) if not fault)
    return usable, next(filter(None, faults), "")


def _text_fault(text: Any) -> str:
    if not isinstance(text, str):
        return "no text" if text is None else f"no text: {shortened(text)}"
    if not is_text(text):
        return "not UTF-8: its text"
    if len(text) > LONGEST_TEXT:
        return f"too long: a text of {len(text)} characters"
    return "" if any(map(str.isalnum, text)) else f"no word: {shortened(text)}"


def decoded(content: bytes) -> str:
    """Text of UTF-8; a byte that is none becomes half a character, which `is_text` refuses."""
    return content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")


def name_fault(name: str) -> str:
    """Why an image's path is refused, or ""."""
    if "\0" in name or not is_text(name):
        return "not UTF-8: its path"
    return f"outside: {shortened(name)} leads out of its root" if leaves(name) else ""


_real = cache(os.path.realpath)


def outside(path: str, root: str | None) -> bool:
    """Whether a path leads, by a link, out of the folder `root`."""
    if root is None:
        return False
    real, folder = os.path.realpath(path), _real(root)
    return os.path.commonpath([real, folder]) != folder
