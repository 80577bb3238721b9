"""Answers: the nearest functions by vector and by words, the first of them judged anew."""

import re
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from methods.cascode.lexical import SUBTOKEN, subtokens
from methods.cascode.search.index import CODE, KINDS, Index, IndexedFile
from methods.cascode.search.models import Decision, Encoder
from methods.cascode.search.store import SearchError, damaged
from methods.cascode.search.walking import SkippedError, decode, digest, read_bytes
from shared.showing import printable

MOST_WORDS, MOST_CHARACTERS = 256, 4_000  # of a query
LINE = 300  # characters shown of a line
BLOCK = 4_096  # vectors that are compared at once
OF_TESTS = 0.05  # what code of tests has less, unless tests are asked for
_TESTS = re.compile(
    r"(?:^|/)(?:tests?|testing|specs?|__tests__)/|(?:^|/)test_[^/]*$|[_.](?:test|spec)\.\w+$"
)
_ASKED = frozenset(("test", "tests", "testing", "spec", "specs"))
_IDENTIFIER = re.compile(r"[\w.:]*(?:\w[_.]\w|::\w|[a-z\d][A-Z])[\w.:]*|\w+(?=\(\))")
KIND_CHOICES = {
    "code": range(CODE),
    "docs": range(CODE, len(KINDS)),
    "all": range(len(KINDS)),
}


@dataclass(frozen=True)
class Request:
    """A query and what of the answer is wanted."""

    query: str
    top: int = 10  # results
    depth: int = 10  # K, how many of the first are re-ranked
    kind: str = "code"  # one of KIND_CHOICES
    language: str | None = None  # only that one
    path: str | None = None  # only files that match this glob, or lie below this folder
    folder: str = ""  # only files below this one
    lexical: float = 0.03  # weight of log(1 + BM25) beside the similarity
    lines: int = 12  # shown of each function at most
    context: int = 0  # and so many before and after it

    def admits(self, file: IndexedFile) -> bool:
        """Whether the file has the language, and the path or a folder above it."""
        if self.language not in (None, file.language):
            return False
        if self.folder and not file.path.startswith(f"{self.folder}/"):
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
    kind: str  # one of index.KINDS
    language: str
    score: float  # of the first stage
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
    ranking: str  # why results were re-ranked; "" where they were not
    notes: tuple[str, ...]
    seconds: float

    @property
    def words(self) -> frozenset[str]:
        """What is `marked` in results."""
        return frozenset(subtokens(self.query))


class Searcher:
    """An index, the model that made it (SearchError for another), and whether it may re-rank.

    `hidden` are files that have changed since: nothing of them is shown.
    """

    def __init__(
        self,
        index: Index,
        model: Encoder,
        decision: Decision,
        hidden: Collection[str] = (),
        notes: Sequence[str] = (),
    ) -> None:
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
        self.hidden, self.notes = hidden, notes
        self._asked = 0
        # After a product, numpy's threads wait actively for some 30 ms, on the cores that encode
        # the next query: of 114 ms a query among 49,000 functions 82 were lost that way.
        threadpool_limits(1, user_api="blas")

    def search(self, request: Request) -> Answer:
        """Rank what the request admits by similarity + `lexical` log(1 + BM25) - OF_TESTS in tests;
        functions whose name the query spells come first."""
        start, index = time.perf_counter(), self.index
        query, notes = clean_query(request.query)
        notes += self.notes
        files = [request.admits(file) and file.path not in self.hidden for file in index.files]
        wanted = np.isin(index.kinds, KIND_CHOICES[request.kind])
        admitted = np.array(files)[index.place_files] & wanted
        if not admitted.any():
            notes.append("nothing that was indexed has that kind, language and path")
        similarity = self._similarity(self.model.encode_queries([query])[0])
        words = np.zeros(len(index), np.float32)
        if request.lexical:
            found = index.words.scores(query) if index.words else None
            if found is None:
                notes.append("no word of the query occurs in the code: found by meaning only")
            else:
                words = found
        score = similarity + request.lexical * np.log1p(words[index.place_rows])
        if not _ASKED & {*subtokens(query)}:
            score -= OF_TESTS * self._of_tests[index.place_files]
        score[self._named(query)] += 1
        numbers = np.flatnonzero(admitted)
        numbers = numbers[np.argsort(-score[numbers], kind="stable")]
        # Of equal texts the best place stands for all.
        first = np.sort(np.unique(index.place_rows[numbers], return_index=True)[1])
        order = numbers[first[: max(request.top, request.depth)]]
        judged: dict[int, float] = {}
        if self.decision.rerank and len(order):
            best = order[: request.depth]
            texts = [index.text(index.place_rows[number]) for number in best]
            anew = self.model.score_pairs([(query, text) for text in texts])
            judged = dict(zip(best.tolist(), anew.tolist(), strict=True))
            order[: request.depth] = best[np.lexsort((best, -anew))]
        sources = cache(self._source)

        def result(number: int) -> Result:
            place = index.place(number)
            also = (index.place(n) for n in index.places(place.row) if admitted[n] and n != number)
            source, state = sources(place.file)
            first = max(place.start_line - request.context, 1)
            shown = min(place.end_line, place.start_line + request.lines - 1)
            end = min(shown + request.context, len(source))
            lines = enumerate(source[first - 1 : end], first)
            return Result(
                place.file.path,
                place.start_line,
                place.end_line,
                place.name or place.file.path.rpartition("/")[2],
                KINDS[place.kind],
                place.file.language,
                round(float(score[number]), 4),
                round(float(similarity[number]), 4),
                round(float(words[place.row]), 4),
                round(judged[number], 4) if number in judged else None,
                tuple((n, printable(line[:LINE]) + "…" * (len(line) > LINE)) for n, line in lines),
                state,
                tuple((other.file.path, other.start_line) for other in also),
            )

        results = tuple(map(result, order[: request.top].tolist()))
        reason = self.decision.reason if judged else ""
        return Answer(query, results, reason, tuple(notes), time.perf_counter() - start)

    def _similarity(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n,) inner products. One query needs no float32 of all vectors, which are far quicker for
        the next ones."""
        self._asked += 1
        if self._asked > 1:
            return self._vectors @ query
        vectors = self.index.vectors
        blocks = [vectors[k : k + BLOCK] for k in range(0, len(vectors), BLOCK)]
        return np.concatenate([block.astype(np.float32) @ query for block in blocks])

    @cached_property
    def _vectors(self) -> NDArray[np.float32]:
        return self.index.vectors.astype(np.float32)

    @cached_property
    def _of_tests(self) -> NDArray[np.bool_]:
        """(F,) whether a file holds tests."""
        return np.array([_TESTS.search(file.path) is not None for file in self.index.files])

    def _named(self, query: str) -> list[int]:
        """Numbers of the places whose name the query spells: as its only word, or as what only an
        identifier can be."""
        spelled = set(_IDENTIFIER.findall(query)) | ({query} if " " not in query else set())
        spelled = {name.replace("::", ".").strip(".:()") for name in spelled} - {""}
        if not spelled:
            return []
        names = (name.replace("::", ".") for name in self.index.names)
        return [
            number
            for number, name in enumerate(names)
            if any(name.endswith(n) and f".{name}".endswith(f".{n}") for n in spelled)
        ]

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
