"""From a folder of code to an index: read, extract, encode what is new, write.

Nothing of what a folder holds is executed or imported. A run that is killed goes on where it was,
and its index is the one an undisturbed run makes, part by part: the texts that lack a vector are
encoded in an order that does not depend on when it was killed.
"""

import os
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from methods.cascode.cleaning import summary
from methods.cascode.extraction import LANGUAGES, Function, SourceError, functions, language_of
from methods.cascode.lexical import subtokens
from methods.cascode.search import seal, store
from methods.cascode.search.index import FLOAT, Entry, Index, IndexedFile, Vectors, parts_of
from methods.cascode.search.models import Settings
from methods.cascode.search.store import DATABASE, SearchError, StoppedError, packed
from methods.cascode.search.walking import SkippedError, decode, digest, read_bytes, walk
from shared.files import UnsafeFileError, parse_json

if TYPE_CHECKING:
    from methods.cascode.inference import SearchModel

TEXTS = ("both", "code")
LIMIT = 1_000_000  # bytes of a file
BATCH = 256  # functions between two writes
READ_BATCH = 500  # files
Show = Callable[[str, int, int], None]  # what is being done, how much of it, of how many


@dataclass(frozen=True)
class Options:
    root: Path  # the folder
    home: Path  # of the index
    text: str = "both"  # documentation and code, or "code"
    limit: int = LIMIT  # larger files are left out


@dataclass
class Report:
    """What a run did. `skipped` holds the paths by reason, `notes` what a user should know."""

    files: int = 0
    functions: int = 0
    texts: int = 0
    extracted: int = 0
    encoded: int = 0
    seconds: float = 0.0
    bytes: int = 0
    unchanged: bool = False
    skipped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    notes: list[str] = field(default_factory=list)

    @property
    def seen(self) -> int:
        return self.files + sum(map(len, self.skipped.values()))


def build_index(options: Options, model: "SearchModel", settings: Settings, show: Show) -> Report:
    """Bring the index of a folder up to date; only what has changed is extracted and encoded. Where
    that cannot be done, a SearchError says why, and the index that was there stays."""
    start, report = time.perf_counter(), Report()
    try:
        with store.locked(options.home):
            old = _old_index(options.home, report)
            with closing(store.Writer(options.home, settings.source, model.precision)) as writer:
                _Run(options, model, show, report, old, writer).build(settings)
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


@dataclass(frozen=True)
class _Run:
    """What a run works with; `old` and rows of a run that was stopped are taken over."""

    options: Options
    model: "SearchModel"
    show: Show
    report: Report
    old: Index | None
    writer: store.Writer

    def build(self, settings: Settings) -> None:
        options, model, report, old = self.options, self.model, self.report, self.old
        files = self.read()
        texts = dict.fromkeys(entry.text for _, entries in files for entry in entries)
        rows = {text: row for row, text in enumerate(texts)}
        report.texts = len(rows)
        loaded = ("name", "precision", "fingerprint", "dimension")
        description = {
            "root": ".." if options.home.parent == options.root else str(options.root),
            "tool": store.tool_version(),
            "model": asdict(settings) | {key: getattr(model, key) for key in loaded},
            "text": options.text,
            "limit": options.limit,
        }
        if old and (old.description, old.files) == (description, [file for file, _ in files]):
            report.unchanged, report.bytes = True, old.bytes
            self.writer.forget()
            return
        vectors = self.vectors(rows)
        self.show("writing", 0, 1)
        report.bytes = self.writer.publish(description, parts_of(files, rows, vectors))
        self.show("writing", 1, 1)

    def read(self) -> list[tuple[IndexedFile, list[Entry]]]:
        """All files that can be read, by path, each with its functions by line."""
        options, report = self.options, self.report
        kind = f"functions {store.tool_version()} {options.text}"
        kept = self.writer.kept(kind).items()
        known = {key: [Entry(*entry) for entry in parse_json(content)] for key, content in kept}
        old = self.old
        if old and f"functions {old.description['tool']} {old.description['text']}" == kind:
            known |= {_key(file): entries for file, entries in old.entries()}
        files: list[tuple[IndexedFile, list[Entry]]] = []
        new: dict[str, bytes] = {}
        foreign: list[str] = []
        found = sorted(walk(options.root, options.home), key=itemgetter(0))
        for number, (path, reason) in enumerate(found):
            self.show("reading", number, len(found))
            try:
                if reason is not None:
                    raise SkippedError(reason)
                content = read_bytes(options.root, path, options.limit)
                source, is_foreign = decode(content)
                file = IndexedFile(path, language_of(path) or "", digest(content))
                if (key := _key(file)) not in known:
                    known[key] = _extract(source, file.language, options.text)
                    new[key] = packed(known[key])
                    report.extracted += 1
            except SkippedError as skipped:
                report.skipped[str(skipped)].append(path)
                continue
            files.append((file, known[key]))
            foreign += [path] * is_foreign
            if len(new) == READ_BATCH:
                self.writer.keep(kind, new)
                new = {}
        self.writer.keep(kind, new)
        self.show("reading", len(found), len(found))
        report.files, report.functions = len(files), sum(len(entries) for _, entries in files)
        if foreign:
            report.notes.append(f"not UTF-8, read as Latin-1: {examples(foreign)}")
        if not report.functions:
            left_out = ", ".join(f"{len(paths)} {why}" for why, paths in report.skipped.items())
            seen = f"{report.seen} files of {', '.join(LANGUAGES)} seen"
            seen += left_out and f", left out: {left_out}"
            raise SearchError(f"no function found in {options.root}: {seen}. No index was written")
        return files

    def vectors(self, texts: Collection[str]) -> Vectors:
        """(n, d) vectors of n texts; those that are new are encoded, the longest first."""
        model, old = self.model, self.old
        kind = f"vectors {model.fingerprint} {model.precision}"
        kept = {name: np.frombuffer(row, FLOAT) for name, row in self.writer.kept(kind).items()}
        known: dict[str, Vectors] = dict(kept)
        if old:
            computed = old.description["model"]
            if f"vectors {computed['fingerprint']} {computed['precision']}" == kind:
                rows = enumerate(old.vectors)
                known |= {digest(old.text(row).encode()): vector for row, vector in rows}
            else:
                note = "another model or precision: every function is encoded anew"
                self.report.notes.append(note)
        names = {text: digest(text.encode()) for text in texts}
        missing = [text for text in texts if names[text] not in known]
        missing.sort(key=lambda text: (-len(text), text))
        done = sum(name in kept for name in names.values())
        total = done + len(missing)

        def progress(count: int) -> None:
            nonlocal done
            done += count
            self.show("encoding", min(done, total), total)

        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            encoded = model.encode_codes(batch, progress)
            if encoded.shape != (len(batch), model.dimension) or not np.isfinite(encoded).all():
                raise SearchError(f"{model.name} gives no usable vectors: its weights are damaged")
            new = dict(zip((names[text] for text in batch), encoded.astype(FLOAT), strict=True))
            self.writer.keep(kind, {name: row.tobytes() for name, row in new.items()})
            known |= new
        self.report.encoded = len(missing)
        return np.stack([known[name] for name in names.values()])


def _key(file: IndexedFile) -> str:
    return f"{file.language} {file.digest}"


def _extract(source: str, language: str, kind: str) -> list[Entry]:
    try:
        found = functions(source, language)
    except (SourceError, RecursionError, MemoryError) as error:
        raise SkippedError("cannot be parsed") from error
    entries = [Entry(f.name, f.start_line, f.end_line, text_of(f, kind)) for f in found if f.tokens]
    return sorted(entries, key=attrgetter("start_line", "end_line", "name"))


def text_of(function: Function, kind: str) -> str:
    """What is encoded and found by words: code as the models are trained on it, as one line; for
    "both" after lines of the first paragraph of the documentation and the words of the name."""
    code = " ".join(function.tokens)
    if kind == "both":
        about = " ".join(summary(function.documentation.strip()).split())
        code = "\n".join((about, " ".join(subtokens(function.name)), code))
    # The value of a string literal may hold halves of surrogate pairs.
    return code.encode("utf-8", "replace").decode()


def examples(paths: Sequence[str], most: int = 3) -> str:
    """Some paths, and how many there are."""
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(paths[:most]) + more
