"""Sections of documents and configuration, found line by line: nothing is parsed, expanded or run.
All readers take time in proportion to the text."""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import PurePath
from string import punctuation
from typing import NamedTuple

from methods.cascode.extraction.function import Function

MOST = 2000  # characters of one entry
_MOST_NAME = 200
_SUFFIXES = {
    **{".md": "markdown", ".markdown": "markdown", ".rst": "rst", ".toml": "toml", ".json": "json"},
    **{".yaml": "yaml", ".yml": "yaml", ".ini": "ini", ".cfg": "ini"},
}
_TEXTS = ("readme", "changelog", "contributing")  # with the suffix .txt
_LOCKS = ("package-lock.json", "npm-shrinkwrap.json", "pnpm-lock.yaml")  # no suffix tells
_FENCE = re.compile(r" {0,3}(`{3,}+(?=[^`]*\Z)|~{3,}+)")
_HEADING = re.compile(r" {0,3}(\#{1,6})[ \t]++(.*)")
_QUOTES = ('"""', "'''")  # of TOML's texts of several lines
_HEADER_OF = {  # of a part, at the beginning of a line
    "toml": r"\[{1,2}+([^\[\]=,\n]++)\]{1,2}+[ \t]*+(?:\#|$)|([\w.\"'-]++)[ \t]*+=",
    "ini": r"\[([^\]\n]++)\]|([^\s=:#;\[][^=:\n]*+)[=:]",
    "yaml": r"\"([^\"\n]++)\":(?:\s|$)|([^\s#&*!|>%@\[\]{},:\"-][^:\n]*+):(?:\s|$)",
}
_HEADERS = {language: re.compile(header) for language, header in _HEADER_OF.items()}
_JSON = re.compile(
    r"""(?P<key>"(?:[^"\\]|\\.)*+(?:"|\Z)) | //[^\n]*+ | /\*.*?(?:\*/|\Z) | [\[\]{}]""",
    re.DOTALL | re.VERBOSE,
)
_COLON = re.compile(r"\s*+:")


class Part(NamedTuple):
    """A part of a text, up to the next one."""

    start: int  # its first character
    body: int  # that of what documents it
    title: str
    level: int = 1


def document_language_of(path: str | PurePath) -> str | None:
    """How a file of text is to be read; None for code, locks and all else."""
    name = PurePath(PurePath(path).name.lower())
    if name.suffix == ".txt" and name.name.startswith(_TEXTS):
        return "rst"
    return None if name.name in _LOCKS else _SUFFIXES.get(name.suffix)


def documents(source: str, path: str | PurePath) -> list[Function]:
    """Entries of kind "document", by line, without tokens.

    Markdown, reStructuredText: one a section, named "Title > Subtitle", and one named as the file
    for what stands before the first. Configuration: one for each key and table at the top; one
    named as the file where none is. Each with the first MOST characters of its text.
    """
    language = document_language_of(path)
    if language is None:
        raise ValueError(f"{path}: neither a document nor configuration")
    text = source.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    text = text.encode(errors="replace").decode()
    parts = list(_READERS[language](text))
    is_prose = language in ("markdown", "rst")
    if is_prose or not parts:
        parts.insert(0, Part(0, 0, PurePath(path).name, 0))
    ends = [match.start() for match in re.finditer("\n", text)]
    bounds = [*(part.start for part in parts), len(text)]
    found: list[Function] = []
    around: list[Part] = []  # sections that hold the present one
    for part, (start, end) in zip(parts, pairwise(bounds), strict=True):
        about = text[part.body : end].strip("\n")[:MOST].rstrip()
        if not about and not part.level:
            continue
        while around and around[-1].level >= part.level:
            around.pop()
        around += [part] if part.level else []
        name = " > ".join(p.title for p in around[-6:]) if is_prose and around else part.title
        last = start + max(len(text[start:end].rstrip()), 1) - 1
        lines = bisect_left(ends, start) + 1, bisect_left(ends, last) + 1
        name = name or PurePath(path).name
        found.append(Function(name, language, about, "", (), about, *lines, "document"))
    return found


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines and where they begin."""
    start = 0
    for line in text.split("\n"):
        yield start, line
        start += len(line) + 1


def _title(text: str) -> str:
    """The text as one short line."""
    return " ".join(text.split())[:_MOST_NAME].rstrip()


def _rule(line: str) -> str:
    """The mark that a line consists of, as under a title; else ""."""
    line = line.rstrip()
    return line[0] if line and line[0] in punctuation and not line.strip(line[0]) else ""


def _markdown(text: str) -> Iterator[Part]:
    """Sections under `# Title` and underlined titles; what is fenced is only text."""
    fence = "---" if text.startswith("---\n") else ""  # of YAML in front
    above = before = ""  # text of the lines above
    offset = 0
    for start, line in _lines(text):
        mark, rule, title, begin = _FENCE.match(line), _rule(line), "", start
        shown = line.strip()
        if fence:
            if rule == fence[0] and len(shown) >= len(fence) and start:
                fence = ""
            shown = ""
        elif mark:
            fence, shown = mark.group(1), ""
        elif heading := _HEADING.match(line):
            level, shown = len(heading.group(1)), ""
            title = heading.group(2).rstrip()
            opened = title.rstrip("#")
            title = _title(opened if opened[-1:] in ("", " ", "\t") else title)
        elif rule in ("=", "-") and above and above[0] not in "-*+>|<" and not before:
            title, level, begin, shown = _title(above), 1 if rule == "=" else 2, offset, ""
        if title:
            yield Part(begin, start + len(line) + 1, title, level)
        before, above, offset = above, shown, start


def _rst(text: str) -> Iterator[Part]:
    """Sections under underlined titles, whose marks rank as they come."""
    ranks: dict[tuple[str, bool], int] = {}
    lines = [(0, ""), *_lines(text)]
    for (top, first), (middle, second), (start, line) in zip(
        lines, lines[1:], lines[2:], strict=False
    ):
        title, rule = second.strip(), _rule(line)
        over = bool(rule) and _rule(first) == rule and len(first) >= len(title)
        indented = second[:1].isspace() and not over
        fits = len(line.rstrip()) >= max(2, len(title))
        if rule and title and fits and not indented and not _rule(second):
            level = ranks.setdefault((rule, over), len(ranks) + 1)
            yield Part(top if over else middle, start + len(line) + 1, _title(title), level)


def _configuration(header: re.Pattern[str]) -> Callable[[str], Iterator[Part]]:
    """A reader of tables and keys at the top; comments right above one belong to it."""

    def read(text: str) -> Iterator[Part]:
        quote, table, comment = "", False, None
        for start, line in _lines(text):
            found = None if quote else header.match(line)
            for mark in _QUOTES if header is _HEADERS["toml"] else ():
                if quote in ("", mark) and line.count(mark) % 2:
                    quote = "" if quote else mark
            begin = start if comment is None else comment
            comment = begin if line[:1] in ("#", ";") else None
            if found and (found.group(1) or not table):
                table = bool(found.group(1)) and header is not _HEADERS["yaml"]
                title = found.group(1) or found.group(2)
                yield Part(begin, begin, _title(title.strip().strip("'\"")))

    return read


def _json(text: str) -> Iterator[Part]:
    """The keys of the outermost object; of an array none."""
    depth = 0
    objects = text.lstrip().startswith(("{", "/"))
    for token in _JSON.finditer(text):
        mark = token.group()
        depth += (mark in ("{", "[")) - (mark in ("}", "]"))
        if depth == 1 and objects and token["key"] and _COLON.match(text, token.end()):
            yield Part(token.start(), token.start(), _title(mark.strip('"')))


_READERS = {
    "markdown": _markdown,
    "rst": _rst,
    "json": _json,
    **{language: _configuration(header) for language, header in _HEADERS.items()},
}
