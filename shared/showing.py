"""Values of files on a terminal, a page or in Markdown: shown as they are, whatever they hold."""

import re
import unicodedata
from collections.abc import Sequence

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_SIGNS = re.compile(r"[\\`*\[\]|]|<(?=[a-zA-Z/!?])|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])|~(?=~)")
_BEGINNING = re.compile(r"^(?:#{1,6}(?=\s|$)|[-+](?=\s|$)|[-=]{2,}|>)")
_NUMBERED = re.compile(r"^(\d{1,9})(?=[.)](?:\s|$))")
_ADDRESS = re.compile(r"(?i)\b[a-z][a-z0-9+.-]*(?=://)|\b(?:mailto|xmpp)(?=:)|\bwww(?=\.)")
_MAIL = re.compile(r"@(?=[\w.-]*\.)")
_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # could forge what a terminal or a page shows


def printable(text: str) -> str:
    """Text in which control characters, as of terminals or of text direction, are spelled out."""
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in _INVISIBLE else char
        for char in text.replace("\t", "    ")
    )


def escaped(text: str) -> str:
    """Markdown of a text in one line, which opens no tag, link, picture, heading, list, table or
    block of code."""
    line = _SIGNS.sub(r"\\\g<0>", _line(text))
    line = _BEGINNING.sub(r"\\\g<0>", line)
    line = _NUMBERED.sub(r"\1\\", line)
    # An address becomes a link by itself: of mail no escape keeps it, a space of no width does.
    return _MAIL.sub("@\u200b", _ADDRESS.sub(r"\g<0>\\", line))


def code(text: str) -> str:
    """Markdown of a text in one line as code."""
    line = _line(text) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown of a table of texts, figures to the right."""
    lines = [[c if c == "-" else escaped(c) for c in line] for line in (header, *rows)]
    lines.insert(1, ["---", *["--:"] * (len(header) - 1)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _line(text: str) -> str:
    return _CONTROL.sub(" ", text).strip()
