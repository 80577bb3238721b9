"""Cleaning of (documentation, code) pairs: queries, comments, near duplicates.

Source: docs/papers/cascode.md, sections 6.2 and 6.3; github/CodeSearchNet@106e827
`function_parser`, its de-duplication by dpu-utils 0.6.1, and GraphCodeBERT's filters in
microsoft/CodeBERT@c0de43d.
"""

import io
import keyword
import re
import tokenize
from collections.abc import Iterable, Iterator, Sequence

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
