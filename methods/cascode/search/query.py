"""Answers: the nearest functions by vector and by words, the first of them judged anew."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from methods.cascode.lexical import SUBTOKEN, subtokens
from methods.cascode.search.index import Index, IndexedFile
from methods.cascode.search.models import Decision
from methods.cascode.search.store import SearchError, damaged
from methods.cascode.search.walking import SkippedError, decode, digest, read_bytes
from shared.showing import printable

if TYPE_CHECKING:
    from methods.cascode.inference import SearchModel

MOST_WORDS, MOST_CHARACTERS = 256, 4_000  # of a query
LINE = 300  # characters shown of a line


@dataclass(frozen=True)
class Request:
    """A query and what of the answer is wanted."""

    query: str
    top: int = 10  # results
    depth: int = 10  # K, how many of the first are re-ranked
    language: str | None = None  # only that one
    path: str | None = None  # only files that match this glob, or lie below this folder
    lexical: float = 0.3  # share of BM25 in the score of the first stage
    lines: int = 12  # shown of each function at most

    def admits(self, file: IndexedFile) -> bool:
        """Whether the file has the language, and the path or a folder above it."""
        if self.language not in (None, file.language):
            return False
        if self.path is None:
            return True
        folder = f"{self.path.rstrip('/')}/"
        return fnmatchcase(file.path, self.path) or file.path.startswith(folder)


@dataclass(frozen=True)
class Result:
    """A function, or several with the same text."""

    path: str  # this and what follows up to the language: of the first place
    start_line: int
    end_line: int
    name: str
    language: str
    score: float  # of the first stage: standardised similarity and words, weighted
    similarity: float  # inner product of the vectors
    words: float  # BM25
    judged: float | None  # the re-ranker's score
    lines: tuple[tuple[int, str], ...]  # numbers and texts as they are now; empty if unreadable
    state: str  # "" or what has become of the file since it was indexed
    also: tuple[tuple[str, int], ...]  # paths and lines of the other places


@dataclass(frozen=True)
class Answer:
    query: str
    results: tuple[Result, ...]
    ranking: str  # one line on whether and why results were re-ranked
    notes: tuple[str, ...]
    seconds: float

    @property
    def words(self) -> frozenset[str]:
        """What is `marked` in results."""
        return frozenset(subtokens(self.query))


class Searcher:
    """An index, the model that made it (SearchError for another), and whether it may re-rank."""

    def __init__(self, index: Index, model: "SearchModel", decision: Decision) -> None:
        built_by = index.description["model"]
        if built_by["fingerprint"] != model.fingerprint:
            theirs = f"{built_by['name']} (fingerprint {built_by['fingerprint']})"
            raise SearchError(
                f"the index in {index.home} was built by {theirs}, but {model.name} is "
                f"{model.fingerprint}: leave --model out, or run `tenfold-search index` with it"
            )
        if built_by["dimension"] != model.dimension:
            raise damaged(index.path, ValueError("its vectors are not of that model"))
        self.index, self.model, self.decision = index, model, decision
        # After a product, numpy's threads wait actively for some 30 ms, on the cores that encode
        # the next query: of 114 ms a query among 49,000 functions 82 were lost that way.
        threadpool_limits(1, user_api="blas")
        self._vectors = index.vectors.astype(np.float32)  # a product with float16 is far slower

    def search(self, request: Request) -> Answer:
        """Rank the functions that the request admits; scores are standardised over all."""
        start, index = time.perf_counter(), self.index
        query, notes = clean_query(request.query)
        files = [request.admits(file) for file in index.files]
        if not any(files):
            notes.append("no indexed file has that language and path")
        admitted = np.array(files)[index.place_files]
        similarity = self._vectors @ self.model.encode_queries([query])[0]
        words = np.zeros_like(similarity)
        if request.lexical:
            found = index.words.scores(query) if index.words else None
            if found is None:
                notes.append("no word of the query occurs in the code: found by meaning only")
            else:
                words = found
        score = (1 - request.lexical) * _standard(similarity) + request.lexical * _standard(words)
        standing = np.zeros(len(index), bool)
        standing[index.place_rows[admitted]] = True
        rows = np.flatnonzero(standing)
        order = rows[np.lexsort((rows, -score[rows]))[: max(request.top, request.depth)]]
        judged: dict[int, float] = {}
        if self.decision.rerank and len(order):
            first = order[: request.depth]
            anew = self.model.score_pairs([(query, index.text(row)) for row in first])
            judged = dict(zip(first.tolist(), anew.tolist(), strict=True))
            order[: request.depth] = first[np.lexsort((first, -anew))]
        sources = cache(self._source)

        def result(row: int) -> Result:
            numbers = [number for number in index.places(row) if admitted[number]]
            place, *others = map(index.place, numbers)
            source, state = sources(place.file)
            end = min(place.end_line, place.start_line + request.lines - 1, len(source))
            lines = enumerate(source[place.start_line - 1 : end], place.start_line)
            return Result(
                place.file.path,
                place.start_line,
                place.end_line,
                place.name,
                place.file.language,
                round(float(score[row]), 4),
                round(float(similarity[row]), 4),
                round(float(words[row]), 4),
                round(judged[row], 4) if row in judged else None,
                tuple((n, printable(line[:LINE]) + "…" * (len(line) > LINE)) for n, line in lines),
                state,
                tuple((other.file.path, other.start_line) for other in others),
            )

        results = tuple(map(result, order[: request.top].tolist()))
        seconds = time.perf_counter() - start
        return Answer(query, results, self.decision.reason, tuple(notes), seconds)

    def _source(self, file: IndexedFile) -> tuple[Sequence[str], str]:
        """Lines of a file as it is now, and what has become of it."""
        try:
            content = read_bytes(self.index.root, file.path, self.index.description["limit"])
            lines = decode(content)[0].split("\n")
        except SkippedError as skipped:
            return [], f"{skipped} since it was indexed"
        changed = digest(content) != file.digest
        return lines, "changed since it was indexed" if changed else ""


def clean_query(text: str) -> tuple[str, list[str]]:
    """The query in single spaces, cut to what models read at most, and notes on that."""
    words = text.encode("utf-8", "replace").decode().replace("\0", " ").split()
    if not words:
        raise SearchError("the query is empty: say in a few words what the code should do")
    query = " ".join(words[:MOST_WORDS])[:MOST_CHARACTERS]
    if len(query) < len(" ".join(words)):
        limit = f"{MOST_WORDS} words or {MOST_CHARACTERS} characters"
        return query, [f"the query of {len(words)} words is cut to {limit}"]
    return query, []


def marked(line: str, words: frozenset[str]) -> list[tuple[str, bool]]:
    """The pieces of a line, and whether each is a word of the query, or of an identifier."""
    pieces, end = [], 0
    for match in SUBTOKEN.finditer(line):
        if match[0].lower() in words:
            pieces += [(line[end : match.start()], False), (match[0], True)]
            end = match.end()
    pieces.append((line[end:], False))
    return [(text, found) for text, found in pieces if text]


def _standard(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Standard scores; 0 where all are equal and so say nothing."""
    mean, deviation = float(scores.mean()), float(scores.std())
    return (scores - mean) / deviation if deviation > 1e-12 else np.zeros_like(scores)
