"""Files of code-search data sets: entries, their texts, and which files belong to a split.

CodeSearchNet's layout is that of the CodeBERT repository (docs/papers/cascode.md, section 6.1), or
the archives as they were published; AdvTest is CodeXGLUE's, CosQA is that of its authors. `code`
and `original_string` hold the documentation, hence the answer, and are never read.
"""

import gzip
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.readers.files import (
    is_integer,
    is_text,
    most_unpacked,
    not_found,
    open_data,
    read_json,
    shortened,
)
from shared.files import parse_json

Kind = Literal["query", "code"]
Accept = Callable[[Mapping[str, Any]], bool]
LINES = (".jsonl", ".jsonl.gz")
LONGEST = 1 << 26  # bytes of a line


class Text(NamedTuple):
    """An entry: the identity that a query shares with its code, and the texts asked for or ""."""

    identity: str
    query: str
    code: str


class Reader:
    """The entries of `files`, one after another.

    `.jsonl` and `.jsonl.gz` have one entry a line, `.json` a list of them, `.txt` one object of
    codes and their identities (CosQA's candidates). An entry that can't be used is left out and
    counted: broken JSON or UTF-8, a key missing or of a wrong type, a text without a word.

    Attributes, of what has been read: `total` entries; `unusable` ones, with the place and the
    `problem` of the first; `refused` by `accept`.

    Args:
        kinds: texts to read; the other kind may be missing.
        identity: the key of the entries' identity.
        accept: leaves out an entry for which it is false.
    """

    def __init__(
        self,
        files: Sequence[Path],
        kinds: Collection[Kind],
        identity: str = "url",
        accept: Accept | None = None,
    ) -> None:
        self.files, self.kinds = files, kinds
        self.identity, self.accept = identity, accept
        self.total = self.unusable = self.refused = 0
        self.problem = ""

    def __iter__(self) -> Iterator[Text]:
        """Read the files; a reader is gone through once.

        Raises:
            DataCorruptError: a file as a whole: it is damaged, cut off, or has no entries.
        """
        for path in self.files:
            before = self.total
            for where, content in _entries(path, self.identity):
                self.total += 1
                try:
                    entry = _parsed(content)
                    text = self._text(entry)
                except _UnusableError as error:
                    self.unusable += 1
                    self.problem = self.problem or f"{where}: {error}"
                    continue
                if self.accept is None or self.accept(entry):
                    yield text
                else:
                    self.refused += 1
            if self.total == before:
                raise DataCorruptError(f"{path}: no entries")

    def _text(self, entry: dict[str, Any]) -> Text:
        identity = entry.get(self.identity)
        if identity == "" or not (is_text(identity) or is_integer(identity)):
            raise _UnusableError(
                f"its {self.identity!r} is {shortened(identity)}, expected a text or number"
            )
        query = query_text(entry) if "query" in self.kinds else ""
        return Text(str(identity), query, code_text(entry) if "code" in self.kinds else "")


def query_text(entry: Mapping[str, Any]) -> str:
    """`docstring_tokens` joined by spaces; `doc` where they are no list (CosQA's web queries)."""
    if isinstance(entry.get("docstring_tokens"), list):
        return _joined(entry, "docstring_tokens")
    return _joined(entry, "doc" if "doc" in entry else "docstring_tokens")


def query_tokens(entry: Mapping[str, Any]) -> list[str]:
    """The tokens of a query; of one that is a text, its words."""
    tokens = entry.get("docstring_tokens")
    return tokens if isinstance(tokens, list) else query_text(entry).split()


def code_text(entry: Mapping[str, Any]) -> str:
    """`code_tokens` joined by spaces; AdvTest's test files call them `function_tokens`."""
    return _joined(entry, "function_tokens" if "function_tokens" in entry else "code_tokens")


def code_search_net_files(root: Path, language: str, part: str) -> list[Path]:
    """`root`/<language>/<part>.jsonl or .jsonl.gz; part is train, valid, test or codebase.

    Also the published archives, `root`/<language>/final/jsonl/<part>/*.jsonl.gz: their codebase is
    all of valid and test, as in GraphCodeBERT's version (docs/papers/cascode.md, section 6.2).

    Raises:
        DataNotFoundError: neither is there.
    """
    folder = root / language
    if not folder.is_dir():
        there = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        hint = f". Languages that {root} has: {', '.join(there)}" if there else ""
        raise DataNotFoundError(f"{not_found(folder)}{hint}")
    published = folder / "final" / "jsonl"
    parts = ("valid", "test") if part == "codebase" else (part,)
    files = [path for name in parts for path in sorted((published / name).glob("*.jsonl*"))]
    return files or [lines_file(folder, part)]


def lines_file(folder: Path, name: str) -> Path:
    """`folder`/`name`.jsonl or .jsonl.gz; a DataNotFoundError if neither is there."""
    for suffix in LINES:
        if (path := folder / f"{name}{suffix}").is_file():
            return path
    raise DataNotFoundError(f"{not_found(folder / f'{name}{LINES[0]}')}; {LINES[1]} serves as well")


def only_file(folder: Path, pattern: str) -> Path:
    """The file of `folder` that matches the pattern; a DataNotFoundError for none or several."""
    paths = sorted(folder.glob(pattern))
    if len(paths) == 1:
        return paths[0]
    if paths:
        raise DataNotFoundError(f"{folder}: {', '.join(p.name for p in paths)} match {pattern}")
    raise DataNotFoundError(not_found(folder / pattern))


class _UnusableError(ValueError):
    """One entry can't be used; the message says why."""


def _entries(path: Path, identity: str) -> Iterator[tuple[str, Any]]:
    """(where, entry); of files with lines the bytes of each line that isn't blank."""
    if path.name.endswith(LINES):
        yield from _lines(path)
        return
    content, is_map = read_json(path), path.suffix == ".txt"
    if not isinstance(content, dict if is_map else list):
        expected = "an object of codes" if is_map else "a list of entries"
        raise DataCorruptError(f"{path}: expected {expected}, got {type(content).__name__}")
    if is_map:
        content = [{"code_tokens": code, identity: name} for code, name in content.items()]
    for number, entry in enumerate(content):
        yield f"{path}, entry {number}", entry


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    where, number = "its beginning", 0
    with open_data(path) as raw:
        file: Any = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        left = most_unpacked(raw)
        try:
            while line := file.readline(LONGEST):
                number += 1
                where = f"{path}, line {number}"
                left -= len(line)
                if len(line) == LONGEST or left < 0:
                    raise EOFError("it unpacks to more than any data does")
                if not line.endswith(b"\n"):
                    _check_whole(line, where)
                if line.strip():
                    yield where, line
        except (OSError, EOFError, zlib.error) as error:
            raise DataCorruptError(
                f"{path}: damaged or cut off ({error}), after {where}"
            ) from error


def _check_whole(line: bytes, where: str) -> None:
    """A last line without its end that is broken, too, is where a file was cut off."""
    try:
        _parsed(line)
    except _UnusableError as error:
        raise DataCorruptError(f"{where}: the file ends within it, it was cut off") from error


def _parsed(content: Any) -> dict[str, Any]:
    if isinstance(content, bytes):
        try:
            content = parse_json(content.decode())
        except ValueError as error:
            kind = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "no JSON"
            raise _UnusableError(f"{kind} ({error})") from error
    if not isinstance(content, dict):
        raise _UnusableError(f"no object but {type(content).__name__}")
    return content


def _joined(entry: Mapping[str, Any], key: str) -> str:
    """The words of a text or of a list of tokens, one space between them."""
    value = entry.get(key)
    if isinstance(value, list) and all(isinstance(token, str) for token in value):
        value = " ".join(value)
    if not isinstance(value, str):
        got = type(value).__name__ if key in entry else "nothing"
        raise _UnusableError(f"its {key!r} is {got}, expected a list of texts")
    text = " ".join(value.split())
    if not text:
        raise _UnusableError(f"no word in its {key!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _UnusableError(f"half a character in its {key!r}") from error
    return text
