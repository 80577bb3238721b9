"""From a folder of code to an index: read, extract, encode what is new, write.

Nothing of what a folder holds is executed or imported. A run that is killed goes on where it was,
and its index is the one an undisturbed run makes, part by part: the texts that lack a vector are
encoded in an order that does not depend on when it was killed.
"""

import os
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cached_property
from operator import attrgetter, itemgetter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from methods.cascode.cleaning import summary
from methods.cascode.extraction import Function, SourceError, language_of, outline
from methods.cascode.extraction.documents import documents
from methods.cascode.lexical import subtokens
from methods.cascode.search import seal, store
from methods.cascode.search.index import (
    FLOAT,
    KINDS,
    KNOWN,
    Entry,
    Index,
    IndexedFile,
    Vectors,
    parts_of,
)
from methods.cascode.search.models import Encoder, Settings
from methods.cascode.search.store import DATABASE, SearchError, StoppedError, packed
from methods.cascode.search.walking import (
    OTHER,
    Scope,
    SkippedError,
    decode,
    digest,
    language_at,
    read_bytes,
    walk,
)
from shared.files import UnsafeFileError, parse_json

TEXTS = ("both", "short", "code")
LIMIT = 1_000_000  # bytes of a file
BATCH = 256  # functions between two writes
READ_BATCH = 500  # files
FEW = 300  # texts that are encoded sooner than torch is imported
WEIGHT = 2  # of a description beside the code; chosen on validation questions, docs/decisions/033
LIGHT = "light"
Show = Callable[[str, int, int], None]  # what is being done, how much of it, of how many
Strong = Callable[[str], Encoder]  # the same model, faster, in a precision or "auto"


@dataclass(frozen=True)
class Options:
    root: Path  # the folder
    home: Path  # of the index
    text: str = "both"  # what is encoded: description and code, one of them
    limit: int = LIMIT  # larger files are left out
    scope: Scope = field(default_factory=Scope)
    seconds: float = float("inf")  # after which files that have changed are left for another run


@dataclass
class Report:
    """What a run did. `skipped` holds the paths by reason, `behind` those that it had no time for,
    `notes` what a user should know."""

    files: int = 0
    texts: int = 0
    extracted: int = 0
    encoded: int = 0
    seconds: float = 0.0
    bytes: int = 0
    precision: str = ""
    unchanged: bool = False
    kinds: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    unread: Counter[str] = field(default_factory=Counter)  # files of other kinds, by suffix
    behind: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def functions(self) -> int:
        """The number of entries of all kinds."""
        return self.kinds.total()

    @property
    def seen(self) -> int:
        return self.files + sum(map(len, self.skipped.values()))


def build_index(
    options: Options, model: Encoder, settings: Settings, show: Show, strong: Strong | None = None
) -> Report:
    """Bring the index of a folder up to date; only what has changed is extracted and encoded, by
    `strong` if it is much. Where that cannot be done, a SearchError says why, and the index that
    was there stays."""
    start, report = time.perf_counter(), Report()
    try:
        with store.locked(options.home):
            old = _old_index(options.home, report)
            with closing(store.Writer(options.home)) as writer:
                _Run(options, model, strong, show, report, old, writer).build(settings)
    except UnsafeFileError as error:
        raise SearchError(
            f"{error.filename} {error.strerror}: remove it, or take another place with --index PATH"
        ) from error
    except (OSError, sqlite3.Error) as error:
        kept = "stays" if os.path.isfile(options.home / DATABASE) else "there was none"
        reason = getattr(error, "strerror", None) or error
        raise SearchError(
            f"cannot write to {options.home}: {reason}. The old index: {kept}. Free some space or "
            "take another place with --index PATH, then run the same command to go on"
        ) from error
    if reason := seal.problem():
        report.notes.append(f"no key is kept, so the next run takes nothing over: {reason}")
    report.seconds = time.perf_counter() - start
    return report


def _old_index(home: Path, report: Report) -> Index | None:
    """The index that is there, if anything in it can be taken over."""
    if not os.path.lexists(home / DATABASE):
        return None
    try:
        old = Index(home, any_tool=True)
        if not old.own:
            raise SearchError(f"it {store.FOREIGN}")
        return old
    except StoppedError:
        return None
    except SearchError as error:
        report.notes.append(f"built anew, as the old index cannot be used: {error}")
        return None


class _Read(NamedTuple):
    """A file with its entries, and the place of the same file in the old index."""

    file: IndexedFile
    entries: list[Entry]
    old: int | None = None


@dataclass(frozen=True)
class _Run:
    """What a run works with; `old` and rows of a run that was stopped are taken over."""

    options: Options
    model: Encoder
    strong: Strong | None
    show: Show
    report: Report
    old: Index | None
    writer: store.Writer
    stamps: dict[str, tuple[str, str | None]] = field(default_factory=dict)  # and why not read

    def build(self, settings: Settings) -> None:
        options, model, report, old = self.options, self.model, self.report, self.old
        until = time.monotonic() + options.seconds
        if options.seconds < float("inf") and self.writer.stopped():
            raise SearchError("a run was stopped")  # what it has done would be lost
        files = self.read(until)
        files, vectors = self.vectors(files, settings.normalize, until)
        report.files = len(files)
        report.kinds.update(KINDS[entry.kind] for read in files for entry in read.entries)
        if not report.functions:
            self._refuse()
        report.texts = len({entry.text for read in files for entry in read.entries})
        loaded = {key: getattr(model, key) for key in ("name", "fingerprint", "dimension")}
        description = {
            "root": ".." if options.home.parent == options.root else str(options.root),
            "tool": store.tool_version(),
            "model": asdict(settings) | loaded | {"precision": report.precision},
            "text": options.text,
            "limit": options.limit,
            "scope": {key: list(value) for key, value in vars(options.scope).items()},
        }
        found = [read.file for read in files]
        if old and (old.description, old.files) == (description, found):
            report.unchanged, report.bytes = True, old.bytes
            self.writer.forget(self.stamps)
            return
        self.show("writing", 0, 1)
        parts = parts_of([(read.file, read.entries) for read in files], vectors, old)
        report.bytes = self.writer.publish(description, parts, self.stamps)
        self.show("writing", 1, 1)

    @cached_property
    def _same(self) -> bool:
        """Whether what the old index has of an unchanged file is what would be found now."""
        made = self.old.description if self.old else {}
        wanted = {"tool": store.tool_version(), "text": self.options.text}
        return all(made.get(key) == value for key, value in wanted.items())

    @cached_property
    def _comparable(self) -> bool:
        """Whether vectors of the old index are of this model."""
        if self.old is None:
            return False
        same = self.old.description["model"]["fingerprint"] == self.model.fingerprint
        if not same:
            self.report.notes.append("another model: every function is encoded anew")
        return same and self.old.description["text"] == self.options.text

    def read(self, until: float) -> list[_Read]:
        """All files that can be read, by path, each with its entries by line."""
        options, report, old = self.options, self.report, self.old
        kind = f"functions {store.tool_version()} {options.text}"
        kept = self.writer.kept(kind).items()
        known = {key: [Entry(*entry) for entry in parse_json(content)] for key, content in kept}
        stamps = old.stamps if old and self._same else {}
        contents = (
            {_key(file): place for place, file in enumerate(old.files)} if stamps and old else {}
        )
        files: list[_Read] = []
        new: dict[str, bytes] = {}
        foreign: list[str] = []
        found = sorted(walk(options.root, options.home, options.scope), key=itemgetter(0))
        for number, (path, reason, stamp) in enumerate(found):
            self.show("reading", number, len(found))
            place = self._places.get(path)
            before, why = stamps.get(path, ("", None))
            try:
                if reason is None and stamp and before == stamp:
                    self.stamps[path] = (stamp, why)
                    if why is None and old and place is not None:
                        files.append(_Read(old.files[place], old.entries(place), place))
                        continue
                    reason = why
                if reason is not None:
                    raise SkippedError(reason)
                if time.monotonic() > until:
                    self._leave(files, path, place)
                    continue
                content = read_bytes(options.root, path, options.limit)
                source, is_foreign = decode(content)
                file = IndexedFile(path, language_at(path) or "", digest(content))
                if (key := _key(file)) not in known:
                    if old and key in contents:
                        known[key] = old.entries(contents[key])
                    else:
                        known[key] = _extract(source, file, options.text)
                        new[key] = packed(known[key])
                        report.extracted += 1
                self.stamps[path] = (stamp, None)
            except SkippedError as skipped:
                if reason == OTHER:
                    report.unread[PurePosixPath(path).suffix.lower() or "without a suffix"] += 1
                    continue
                if reason is None and stamp:
                    self.stamps[path] = (stamp, str(skipped))
                report.skipped[str(skipped)].append(path)
                continue
            same = old is not None and place is not None and old.files[place] == file
            files.append(_Read(file, known[key], place if same and self._same else None))
            foreign += [path] * is_foreign
            if len(new) == READ_BATCH:
                self.writer.keep(kind, new)
                new = {}
        self.writer.keep(kind, new)
        self.show("reading", len(found), len(found))
        if foreign:
            report.notes.append(f"not UTF-8, read as Latin-1: {examples(foreign)}")
        return files

    def _leave(self, files: list[_Read], path: str, place: int | None) -> None:
        """Leave a file for another run, as it was."""
        self.report.behind.append(path)
        self.stamps.pop(path, None)
        if self.old and place is not None:
            files.append(_Read(self.old.files[place], self.old.entries(place), place))

    def _refuse(self) -> None:
        report = self.report
        left_out = ", ".join(f"{len(paths)} {why}" for why, paths in report.skipped.items())
        seen = f"{report.seen} files of {', '.join(sorted(KNOWN))} seen"
        seen += left_out and f", left out: {left_out}"
        raise SearchError(f"no function found in {self.options.root}: {seen}. No index was written")

    def vectors(
        self, files: list[_Read], normalize: bool, until: float
    ) -> tuple[list[_Read], Vectors]:
        """The files, and (n, d) vectors of their entries; what is new is encoded, the longest texts
        first. Files for which time has not sufficed are as they were."""
        known = self._known(files)
        wanted = {
            (read.file.path, entry.text): _pieces(read.file.path, entry.text, self.options.text)
            for read in files
            if not (self._comparable and read.old is not None)
            for entry in read.entries
            if (read.file.path, entry.text) not in known
        }
        pieces = dict.fromkeys(piece for pieces in wanted.values() for piece in pieces)
        encoded, new = self.encode(list(pieces), until)
        self.report.encoded = sum(not new.isdisjoint(pieces) for pieces in wanted.values())
        for key, pieces_of_it in wanted.items():
            if all(piece in encoded for piece in pieces_of_it):
                known[key] = _joined([encoded[piece] for piece in pieces_of_it], normalize)
        settled: list[_Read] = []
        found = [np.empty((0, self.model.dimension), FLOAT)]
        for read in files:
            path, size = read.file.path, len(settled)
            if self._comparable and read.old is not None:
                settled.append(read)
                found.append(self._old_vectors(read.old))
            elif all((path, entry.text) in known for entry in read.entries):
                settled.append(read)
                found += [known[path, entry.text][None] for entry in read.entries]
            else:
                self._leave(settled, path, self._places.get(path))
                found += [self._old_vectors(left.old or 0) for left in settled[size:]]
        return settled, np.concatenate(found)

    def _known(self, files: Sequence[_Read]) -> dict[tuple[str, str], Vectors]:
        """Vectors of entries that files had before they changed, by path and text."""
        known: dict[tuple[str, str], Vectors] = {}
        for path in (read.file.path for read in files if self._comparable and read.old is None):
            if self.old and (place := self._places.get(path)) is not None:
                texts = (entry.text for entry in self.old.entries(place))
                rows = self._old_vectors(place)
                known |= {(path, text): row for text, row in zip(texts, rows, strict=True)}
        return known

    def _old_vectors(self, place: int) -> Vectors:
        assert self.old is not None
        return self.old.vectors[slice(*self.old.bounds[place : place + 2])]

    @cached_property
    def _places(self) -> dict[str, int]:
        """The place of each file in the old index."""
        return {file.path: place for place, file in enumerate(self.old.files)} if self.old else {}

    def encode(self, texts: Sequence[str], until: float) -> tuple[dict[str, Vectors], set[str]]:
        """Vectors of different texts but those for which there is no time, and which are new."""
        if not texts:
            made = self.old.description["model"] if self.old else {"precision": "float32"}
            self.report.precision = made["precision"]
            return {}, set()
        whole = until == float("inf")
        way = (
            self.writer.way(self.model.fingerprint, lambda: self._way(len(texts)))
            if whole
            else LIGHT
        )
        model = self.model if way == LIGHT or self.strong is None else self.strong(way)
        self.report.precision = model.precision
        kind = f"vectors {model.fingerprint} {way}"
        kept = {name: np.frombuffer(row, FLOAT) for name, row in self.writer.kept(kind).items()}
        names = {text: digest(text.encode()) for text in texts}
        known = {text: kept[name] for text, name in names.items() if name in kept}
        missing = sorted((text for text in texts if text not in known), key=lambda t: (-len(t), t))
        done, total = len(known), len(texts)

        def progress(count: int) -> None:
            nonlocal done
            done += count
            self.show("encoding", min(done, total), total)

        size = BATCH if whole else BATCH // 16
        for start in range(0, len(missing), size):
            if time.monotonic() > until:
                break
            batch = missing[start : start + size]
            encoded = model.encode_codes(batch, progress)
            if encoded.shape != (len(batch), model.dimension) or not np.isfinite(encoded).all():
                raise SearchError(f"{model.name} gives no usable vectors: its weights are damaged")
            new = dict(zip(batch, encoded.astype(FLOAT), strict=True))
            self.writer.keep(kind, {names[text]: row.tobytes() for text, row in new.items()})
            known |= new
        return known, known.keys() & set(missing)

    def _way(self, texts: int) -> str:
        """The quicker way to encode so many texts: this model, or a precision of the strong one."""
        few = self.strong is None or texts <= FEW
        return LIGHT if few or self.strong is None else self.strong("auto").precision


def _key(file: IndexedFile) -> str:
    return f"{file.language} {file.digest}"


def _extract(source: str, file: IndexedFile, kind: str) -> list[Entry]:
    try:
        if language_of(file.path) is None:
            found = documents(source, file.path)
        else:
            found = outline(source, file.language)
    except (SourceError, RecursionError, MemoryError) as error:
        raise SkippedError("cannot be parsed") from error
    entries = [
        Entry(f.name, KINDS.index(f.kind), f.start_line, f.end_line, text_of(f, kind))
        for f in found
        if f.tokens or f.documentation.strip()
    ]
    return sorted(entries, key=attrgetter("start_line", "end_line", "name"))


def text_of(function: Function, kind: str) -> str:
    """What is found by words and, with `_pieces`, encoded: code as the models are trained on it, or
    documentation where there is none; but for "code" after a line of the first paragraph of the
    documentation and one of the words of the name."""
    code = " ".join(function.tokens or function.documentation.split())
    if kind != "code":
        about = " ".join(summary(function.documentation.strip()).split())
        code = "\n".join((about, " ".join(subtokens(function.name)), code))
    # The value of a string literal may hold halves of surrogate pairs.
    return code.encode("utf-8", "replace").decode()


def _pieces(path: str, text: str, kind: str) -> list[str]:
    """The texts whose vectors, joined, are that of an entry."""
    if kind == "code":
        return [text]
    about, name, _ = text.split("\n", 2)
    place = " ".join(subtokens(os.path.splitext(path)[0]))
    described = f"{place}: {name}. {about}"
    return [described] if kind == "short" else [described, text]


def _joined(vectors: Sequence[Vectors], normalize: bool) -> Vectors:
    """(d,) the sum, a description counting WEIGHT times."""
    if len(vectors) == 1:
        return vectors[0]
    described, code = (vector.astype(np.float32) for vector in vectors)
    total = WEIGHT * described + code
    length = np.linalg.norm(total) if normalize else 1 + WEIGHT
    return (total / (length or 1)).astype(FLOAT)


def examples(paths: Sequence[str], most: int = 3) -> str:
    """Some paths, and how many there are."""
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(paths[:most]) + more
