"""Files of code-search data sets: which ones belong to a split, entries, their texts and token ids.

CodeSearchNet's layout is that of the CodeBERT repository (docs/papers/cascode.md, section 6.1), or
the archives as they were published; AdvTest is CodeXGLUE's, CosQA is that of its authors. `code`
and `original_string` hold the documentation, hence the answer; it is taken out of the latter where
a row asks for it, `code` is never read.
"""

import gzip
import hashlib
import logging
import warnings
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from methods.cascode.tokenizer import CodeTokenizer, TokenRows
from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.loading.feature_cache import Arrays, cache_key, cached
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

log = logging.getLogger(__name__)
Kind = Literal["query", "code"]
Codes = Literal["tokens", "original"]
Accept = Callable[[Mapping[str, Any]], bool]
LINES = (".jsonl", ".jsonl.gz")
LONGEST = 1 << 26  # bytes of a line
LONGEST_SOURCE = 10_000  # letters of an original code that are read: far more than a model sees
VERSION = 1  # of token ids that are kept
CHUNK = 1000  # texts tokenised at once
LEAKING = 0.05  # share of codes with their query inside, beyond which it is no coincidence
TELLING = 20  # letters of a query that are in a code by no coincidence


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
    `problem` of the first; `refused` by `accept`. `kinds` are read, the other kind may be missing;
    `identity` is the key of the entries' identity. Codes are `code_text` or, "original", what
    GraphCodeBERT reads, `original_text`.
    """

    def __init__(
        self,
        files: Sequence[Path],
        kinds: Collection[Kind],
        identity: str = "url",
        accept: Accept | None = None,
        codes: Codes = "tokens",
    ) -> None:
        self.files, self.kinds = files, kinds
        self.code_text = original_text if codes == "original" else code_text
        self.identity, self.accept = identity, accept
        self.total = self.unusable = self.refused = 0
        self.problem = ""

    def __iter__(self) -> Iterator[Text]:
        """Read the files, once; a DataCorruptError if one is damaged, cut off or has no entry."""
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
            found = f"its {self.identity!r} is {shortened(identity)}"
            raise _UnusableError(f"{found}, expected a text or number")
        query = query_text(entry) if "query" in self.kinds else ""
        return Text(str(identity), query, self.code_text(entry) if "code" in self.kinds else "")


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


def original_text(entry: Mapping[str, Any]) -> str:
    """`original_string` without comments and documentation, its tokens joined by spaces, as
    GraphCodeBERT reads codes, whose parser cuts them where `code_pieces` does but for rare ones."""
    from methods.cascode.cleaning import SourceError, code_pieces, without_comments

    source, language = entry.get("original_string"), entry.get("language")
    if not (isinstance(source, str) and isinstance(language, str) and is_text(source)):
        raise _UnusableError("its 'original_string' and 'language' are no texts")
    if len(source) > LONGEST_SOURCE:  # whole lines, as half a text is no Python
        source = source[:LONGEST_SOURCE].rpartition("\n")[0]
    try:
        text = " ".join(" ".join(code_pieces(without_comments(source, language))).split())
    except SourceError as error:
        raise _UnusableError(f"its 'original_string' is no {language}: {error}") from error
    if not text:
        raise _UnusableError("its 'original_string' is nothing but comments")
    return text


def code_search_net_files(root: Path, language: str, part: str) -> list[Path]:
    """`root`/<language>/<part>.jsonl or .jsonl.gz; part is train, valid, test or codebase.

    Also the published archives, `root`/<language>/final/jsonl/<part>/*.jsonl.gz: their codebase is
    all of valid and test, as in GraphCodeBERT's version (docs/papers/cascode.md, section 6.2).
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


class Encoded(NamedTuple):
    """N entries: their identities, and their texts by kind."""

    urls: list[str]
    tokens: dict[Kind, TokenRows]  # without special tokens
    numbers: dict[Kind, NDArray[np.int64]]  # (N,) 64 bits; equal for texts equal in lower case


def encode_files(
    files: Sequence[Path],
    kinds: Sequence[Kind],
    tokenizer: CodeTokenizer,
    lengths: Mapping[Kind, int],
    identity: str,
    chosen: tuple[str, Accept] | None,
    max_corrupt: float,
    cache: str | None,
    codes: Codes = "tokens",
) -> Encoded:
    """Read `files` (see `Reader`) and tokenise their texts of `kinds`.

    Warns of entries that can't be used, and of codes that contain their own query: code needs to
    come without its documentation, which is the answer (docs/papers/cascode.md, section 10).

    Args:
        lengths: tokens of each kind that are kept.
        chosen: a name and a rule of which entries are used; None: all.
        max_corrupt: share of entries that can't be used, beyond which it is a DataCorruptError.
        cache: folder of arrays, named by a hash of all that they depend on; None keeps none.
        codes: see `Reader`.
    """
    rule, accept = chosen or (None, None)
    key = cache_key(
        files, VERSION, tokenizer.fingerprint, dict(lengths), list(kinds), identity, rule, codes
    )
    reader = Reader(files, kinds, identity, accept, codes)
    make = partial(_arrays, reader, tokenizer, lengths)
    arrays = make() if cache is None else cached(cache, key, make)[0]
    total, unusable, refused, leaking = arrays["counts"].tolist()
    problem, name = arrays["problem"].tobytes().decode(), named(files)
    if unusable > max_corrupt * total:
        raise DataCorruptError(
            f"{unusable} of {total} entries can't be used, more than max_corrupt={max_corrupt:g}; "
            f"the first is {problem}. Repair them or raise max_corrupt"
        )
    if unusable:
        words = f"{unusable} of {total} entries are left out; the first is {problem}"
        warnings.warn(words, stacklevel=2)
    if refused:
        log.info("%s: %d of %d entries are left out by %r", name, refused, total, rule)
    if leaking > LEAKING * total:
        words = f"{name}: {leaking} of {total} codes contain their query"
        warnings.warn(f"{words}; code_tokens must come without the documentation", stacklevel=2)
    data, ends = arrays["urls"].tobytes(), arrays["url_ends"].tolist()
    return Encoded(
        [data[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)],
        {kind: TokenRows(arrays[f"{kind}_ids"], arrays[f"{kind}_ends"]) for kind in kinds},
        {kind: arrays[f"{kind}_numbers"] for kind in kinds},
    )


def named(files: Sequence[Path]) -> str:
    """Name of the files for messages."""
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"


def _arrays(reader: Reader, tokenizer: CodeTokenizer, lengths: Mapping[Kind, int]) -> Arrays:
    kinds = reader.kinds
    urls: list[bytes] = []
    tokens: dict[Kind, list[TokenRows]] = {kind: [] for kind in kinds}
    numbers: dict[Kind, list[int]] = {kind: [] for kind in kinds}
    leaking = 0
    texts = iter(reader)
    while chunk := list(islice(texts, CHUNK)):
        urls += [text.identity.encode() for text in chunk]
        leaking += sum(map(_leaks, chunk))
        for kind in kinds:
            plain = [getattr(text, kind) for text in chunk]
            rows = [ids[: lengths[kind]] for ids in tokenizer.encode(plain)]
            tokens[kind].append(TokenRows.of(rows))
            numbers[kind] += map(_number, plain)
    if not urls:
        left_out = f"{reader.refused} on purpose, {reader.unusable} as unusable {reader.problem}"
        none = f"{named(reader.files)}: none of {reader.total} entries is left"
        raise DataCorruptError(f"{none}; left out are {left_out}".rstrip())
    arrays: Arrays = {
        "counts": np.array([reader.total, reader.unusable, reader.refused, leaking]),
        "problem": np.frombuffer(reader.problem.encode(errors="replace"), np.uint8),
        "urls": np.frombuffer(b"".join(urls), np.uint8),
        "url_ends": np.cumsum([len(url) for url in urls]),
    }
    for kind in kinds:
        joined = TokenRows.joined(tokens[kind])
        arrays |= {f"{kind}_ids": joined.ids, f"{kind}_ends": joined.ends}
        arrays[f"{kind}_numbers"] = np.array(numbers[kind], np.int64)
    return arrays


def _number(text: str) -> int:
    digest = hashlib.blake2b(text.lower().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _leaks(text: Text) -> bool:
    """Whether the code contains the beginning of its query, spaces and case aside."""
    query = "".join(text.query.split()).lower()[: 2 * TELLING]
    return len(query) >= TELLING and query in "".join(text.code.split()).lower()


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
    if isinstance(content, dict):
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
            message = f"{path}: damaged or cut off ({error}), after {where}"
            raise DataCorruptError(message) from error


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
