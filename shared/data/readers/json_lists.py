"""Lists in JSON of any length, an item at a time: millions of them would fill the memory."""

from codecs import getincrementaldecoder
from collections.abc import Iterator
from json import JSONDecoder
from typing import Any, BinaryIO

from shared.data.readers.files import one_line

LONGEST_ITEM = 1 << 20  # bytes
_SPACE = " \t\r\n"
_PIECE = 1 << 16  # bytes


class MalformedError(ValueError):
    """A list is no JSON from the byte `place` on."""

    def __init__(self, reason: str, place: int) -> None:
        super().__init__(reason)
        self.place = place


def list_items(file: BinaryIO, decoder: JSONDecoder) -> Iterator[tuple[Any, int]]:
    """Yield the items of a JSON list, each with how far the file is read; MalformedError where it
    is none, or an item is longer than LONGEST_ITEM. A byte that is no UTF-8 becomes half a
    character, see `is_text`."""
    pieces = getincrementaldecoder("utf-8")("surrogateescape")
    text, at = "", 0  # what is in memory, and how far it is used

    def more() -> bool:
        nonlocal text, at
        piece = file.read(_PIECE)
        text, at = text[at:] + pieces.decode(piece, final=not piece), 0
        return bool(piece)

    def sign() -> str:
        """The next character that is no space; "" at the end."""
        nonlocal at
        while True:
            while at < len(text) and text[at] in _SPACE:
                at += 1
            if at < len(text) or not more():
                return text[at : at + 1]

    def check(right: bool, reason: str) -> None:
        if not right:
            rest = len(text[at:].encode("utf-8", "surrogateescape"))
            raise MalformedError(reason, file.tell() - rest)

    more()
    text = text.removeprefix("\ufeff")
    check(sign() == "[", "it does not begin with a bracket")
    at, first = at + 1, True
    while (found := sign()) != "]":
        if not first:
            check(found == ",", "no comma between entries" if found else "cut off")
            at += 1
        check(sign() != "", "cut off")
        while True:
            reason = ""
            try:
                value, end = decoder.raw_decode(text, at)
                used = end - at
                if text[end : end + 1] in tuple(",]" + _SPACE):  # else a number may go on
                    break
            except RecursionError:
                reason = "it is nested too deep"
            except ValueError as error:
                reason = one_line(error)
            long = len(text) - at > LONGEST_ITEM
            if long or not more():
                check(not reason, f"more than {LONGEST_ITEM} bytes of an entry" if long else reason)
                break
        at, first = at + used, False
        yield value, file.tell()
    at += 1
    check(sign() == "", "something follows the list")
