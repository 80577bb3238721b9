"""Cleaning of (documentation, code) pairs: queries, comments, near duplicates.

Source: docs/papers/cascode.md, sections 6.2 and 6.3; github/CodeSearchNet@106e827
`function_parser`, its de-duplication by dpu-utils 0.6.1, and GraphCodeBERT's filters in
microsoft/CodeBERT@c0de43d.
"""

import io
import keyword
import re
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from methods.cascode.extraction import SourceError

FEWEST_TOKENS, MOST_TOKENS = 3, 256  # of a query
FEWEST_IDENTIFIERS = 10  # of a function that can be compared with others

_MARKS = re.escape(".():[]=*;>{}+-/\\")
_TOKEN = re.compile(rf"[^\s,'\"`{_MARKS}]+|\(\)|\[\]|\{{\}}|([{_MARKS}])\1*")
_IDENTIFIER = re.compile(r"[_a-zA-Z]")
_LINK = re.compile(r"(?:https?|ftp) :|www \.")
_TAG = re.compile(r"<(?: / )?[a-zA-Z][^<>]*>")
_COMMON = """a an the of to in for and or is are be if with from by on as at this that it not when
which into than then all each return returns get gets set sets create creates add adds given value
values use used using can new name list file object function whether check"""
_COMMON_WORDS = frozenset(_COMMON.split())
_COMMENT_OR_STRING = re.compile(
    r"""//[^\n]* | /\*.*?\*/ | (["'])(?:\\. | (?!\1)[^\\])*\1""", re.DOTALL | re.VERBOSE
)
# A text that nothing closes goes on to the end, so that the time stays linear.
_PIECE = re.compile(
    r"""\"{3}.*?(?:\"{3}|\Z) | '{3}.*?(?:'{3}|\Z)  # texts, whole
    | [bfru]{0,2}(["'`])(?:\\. | (?!\1)[^\\])*(?:\1|\\?\Z)
    | [\w$@]+(?:\.\d+)? | [-+*/%&|^<>=!?:~.]+ | \S""",
    re.DOTALL | re.VERBOSE,
)
# Python 3.12 and later cut a formatted string into parts.
_STARTS = {getattr(tokenize, f"{kind}STRING_START", None) for kind in "FT"} - {None}
_ENDS = {getattr(tokenize, f"{kind}STRING_END", None) for kind in "FT"} - {None}
# As dpu-utils: true and false count as identifiers.
KEYWORDS = {"python": frozenset(keyword.kwlist) - {"True", "False"}}


def summary(documentation: str) -> str:
    """CodeSearchNet's first part: up to the first empty line, without one up to the first "@"."""
    first, empty_line, _ = documentation.partition("\n\n")
    return first if empty_line else documentation.partition("@")[0]


def documentation_tokens(text: str) -> list[str]:
    """CodeSearchNet's tokens: words, runs of one mark, empty brackets; quotes and commas vanish."""
    return [match.group() for match in _TOKEN.finditer(text)]


def strip_comment_delimiters(comment: str) -> str:
    """Text of `/** */` and `//` comments, each line stripped; a `/*` stays, as in CodeSearchNet."""
    lines = [line.strip().removesuffix("*/") for line in comment.split("\n")]
    return "\n".join(re.sub(r"^(?:\*|/\*\*|//)", "", line).strip() for line in lines)


def query_tokens(documentation: str) -> list[str]:
    """Tokens of the first paragraph: the `summary` of stripped lines. (CodeSearchNet's is empty if
    the text opens with an empty line, and a line of spaces does not end it.)"""
    lines = [line.strip() for line in documentation.split("\n")]
    return documentation_tokens(summary("\n".join(lines).strip()))


def query_problem(tokens: Sequence[str]) -> str | None:
    """Why GraphCodeBERT's filter drops a query: "short", "long", "link", "markup" or "language".

    Its list of kept functions is public, its code is not. "language" is our cheap rule: under 95 %
    ASCII characters, under two alphabetic tokens, or none of 55 words common in documentation.
    """
    if not FEWEST_TOKENS <= len(tokens) <= MOST_TOKENS:
        return "short" if len(tokens) < FEWEST_TOKENS else "long"
    text = " ".join(tokens)
    if _LINK.search(text):
        return "link"
    if _TAG.search(text):
        return "markup"
    english = (
        sum(map(str.isascii, text)) / len(text) >= 0.95
        and sum(map(str.isalpha, tokens)) >= 2
        and any(token.lower() in _COMMON_WORDS for token in tokens)
    )
    return None if english else "language"


def without_comments(source: str, language: str) -> str:
    """GraphCodeBERT's code: no comments, no statement that is a string, no empty lines.

    Ruby is returned as it is. In the other languages but Python a comment becomes a space. A
    SourceError for Python that can't be tokenized: drop it. (The official code keeps it with its
    docstring, which gives the query away.)
    """
    if language == "ruby":
        return source
    if language == "python":
        cleaned = _python_without_comments(source)
    else:
        cleaned = _COMMENT_OR_STRING.sub(lambda m: m.group() if m.group(1) else " ", source)
    return "\n".join(line for line in cleaned.split("\n") if line.strip())


def code_pieces(source: str) -> list[str]:
    """Words, numbers, whole texts, operators and brackets, as the leaves of a parser cut a code;
    the text of a template or a regular expression it may cut otherwise."""
    return [match.group() for match in _PIECE.finditer(source)]


def identifiers(tokens: Iterable[str], language: str) -> list[str]:
    """Code tokens that open like an identifier and are no keyword, as dpu-utils picks them; the
    keywords of "python" alone are known, in which corpora are built."""
    keywords = KEYWORDS[language]
    return [t for t in tokens if _IDENTIFIER.match(t) and t not in keywords]


def near_duplicates(
    documents: Sequence[Sequence[str]],
    set_threshold: float = 0.8,
    multiset_threshold: float = 0.7,
) -> list[list[int]]:
    """Clusters of similar documents, each sorted, by their first members; singles are left out.

    Two documents are similar when the Jaccard indices of their tokens (see `identifiers`) as sets
    and as multisets both reach their threshold; clusters are the transitive closure. All pairs are
    found, exactly.
    """
    counts = _count_matrix(documents)
    first, second = _candidates(counts, set_threshold)
    present = csr_array((np.ones_like(counts.data), counts.indices, counts.indptr), counts.shape)
    for matrix, threshold in ((present, set_threshold), (counts, multiset_threshold)):
        similar = _jaccard(matrix, first, second) >= threshold
        first, second = first[similar], second[similar]
    edges = coo_array((np.ones(len(first)), (first, second)), (len(documents),) * 2)
    labels = connected_components(edges, directed=False)[1]
    members: dict[int, list[int]] = {}
    for document in np.unique(np.concatenate([first, second])).tolist():
        members.setdefault(labels[document], []).append(document)
    return list(members.values())


def _python_without_comments(source: str) -> str:
    parts, row, column, previous = [], 0, 0, tokenize.INDENT
    for token in _whole_tokens(source):
        if token.start[0] > row:
            column = 0
        parts.append(" " * (token.start[1] - column))
        # A string that opens a statement, or goes on at the margin: the official approximation.
        opens = previous in (tokenize.INDENT, tokenize.NEWLINE) or token.start[1] == 0
        if not (token.type == tokenize.COMMENT or (token.type == tokenize.STRING and opens)):
            parts.append(token.string)
        previous, (row, column) = token.type, token.end
    return "".join(parts)


def _whole_tokens(code: str) -> Iterator[tokenize.TokenInfo]:
    """The tokens of Python code as before 3.12: a formatted string is one STRING."""
    lines = io.StringIO(code).readlines()
    open_strings: list[tuple[int, int]] = []
    try:
        for token in tokenize.generate_tokens(iter(lines).__next__):
            if token.type in _STARTS:
                open_strings.append(token.start)
            elif token.type in _ENDS:
                (first, left), (last, right) = start, end = open_strings.pop(), token.end
                if not open_strings:
                    whole = lines[first - 1 : last]
                    whole[-1] = whole[-1][:right]  # before the next line: both may be of one
                    whole[0] = whole[0][left:]
                    text = "".join(whole)
                    yield tokenize.TokenInfo(tokenize.STRING, text, start, end, token.line)
            elif not open_strings:
                yield token
    except (tokenize.TokenError, SyntaxError) as error:
        raise SourceError(f"not Python: {error}") from error


def _count_matrix(documents: Sequence[Sequence[str]]) -> csr_array:
    """(documents, vocabulary) counts, the rarest tokens in the first columns."""
    counters = [Counter(tokens) for tokens in documents]
    frequency = Counter(token for counter in counters for token in counter)
    column = {t: i for i, t in enumerate(sorted(frequency, key=lambda t: (frequency[t], t)))}
    sizes = [len(counter) for counter in counters]
    columns = [column[token] for counter in counters for token in counter]
    values = [count for counter in counters for count in counter.values()]
    matrix = csr_array(
        (np.array(values, np.int64), np.array(columns, np.int64), np.cumsum([0, *sizes])),
        (len(documents), len(column)),
    )
    matrix.sort_indices()
    return matrix


def _candidates(counts: csr_array, threshold: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs i < j that share one of their rarest tokens, and so all pairs of the similarity wanted.

    Of n different tokens at least ceil(threshold * n) must be shared, so that the rarest
    n - ceil(threshold * n) + 1 of both documents can't be disjoint (Bayardo et al. 2007).
    """
    sizes = np.diff(counts.indptr)
    needed = np.ceil(threshold * sizes - 1e-9).astype(np.int64)
    position = np.arange(len(counts.indices)) - np.repeat(counts.indptr[:-1], sizes)
    rare = position < np.repeat(sizes - needed + 1, sizes)
    rows = np.repeat(np.arange(len(sizes)), sizes)[rare]
    prefixes = csr_array((np.ones(len(rows), np.int32), (rows, counts.indices[rare])), counts.shape)
    pairs = (prefixes @ prefixes.T).tocoo()
    first, second = (axis.astype(np.int64) for axis in pairs.coords)
    shorter = np.minimum(sizes[first], sizes[second])
    longer = np.maximum(sizes[first], sizes[second])
    kept = (first < second) & (shorter >= threshold * longer - 1e-9)
    return first[kept], second[kept]


def _jaccard(
    counts: csr_array, first: NDArray[np.int64], second: NDArray[np.int64], batch: int = 50_000
) -> NDArray[np.float64]:
    """Jaccard index of the multisets of each pair of documents."""
    totals = np.asarray(counts.sum(axis=1))
    shared = [
        np.asarray(counts[first[i : i + batch]].minimum(counts[second[i : i + batch]]).sum(axis=1))
        for i in range(0, len(first), batch)
    ]
    both = np.concatenate([np.empty(0, np.int64), *shared])
    union: NDArray[np.int64] = totals[first] + totals[second] - both
    return both / union
