"""Functions of sources in all six languages, by tree-sitter: syntax errors only cost what they hit.
Offsets of the trees count bytes. No step recurses, so that depth of nesting has no limit."""

import ast
import inspect
import re
import time
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib import import_module

try:
    from tree_sitter import Language, Node, Parser, Tree
except ImportError as error:
    raise ImportError("reading source needs tree-sitter: pip install 'tenfold[code]'") from error

from methods.cascode.extraction.comments import documentation_before
from methods.cascode.extraction.function import Function, SourceError
from methods.cascode.extraction.grammars import COMMENTS, GRAMMARS, WHOLE, Definition, Place

PARSE_SECONDS = 10.0  # of processor time for one file; nested quotes can take the square of n
_STRINGS = ("string", "concatenated_string")
_AROUND = ("expression_statement", "parenthesized_expression")  # of a docstring
_DOTS = re.compile(r"\.{3}|\.")
_AFTER_STATEMENT = re.compile(rb"[ \t]*;?[ \t]*\n?")


def functions(source: str, language: str) -> list[Function]:
    """All functions and methods of a file in its order, but those defined inside others.

    A method's name carries its classes: "Outer.Inner.method", in Go its receiver's type, in Ruby
    "Module::Class.method" (class methods too). JavaScript's function expressions are named by what
    they are assigned to, and then span the assignment; unnamed ones are looked into instead.
    Functions with a syntax error and those without a body are left out. `start_line` is the
    function's own, not that of a comment before it. A SourceError if it takes over PARSE_SECONDS.
    """
    lines = source.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    data = lines.encode(errors="replace")
    entry = "language"
    if language == "php":  # mixes code and text; a fragment without `<?php` is code as well
        entry = "language_php" if b"<?" in data else "language_php_only"
    file, tree = _File(data, language), _parsed(data, _language(language, entry))
    return [file.function(d) for d in file.definitions(tree) if not d.node.has_error]


def python_functions(source: str) -> list[Function]:
    """As `functions`, for a corpus; a SourceError for what this Python does not accept."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes like "\d" in other people's strings
            ast.parse(source.removeprefix("\ufeff"))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SourceError(f"not Python: {error or type(error).__name__}") from error
    return functions(source, "python")


class _File:
    """One file on the way through its tree."""

    def __init__(self, data: bytes, language: str) -> None:
        self.data = data
        self.language = language
        self.comments: list[tuple[int, int]] = []  # spans, of those outside of functions

    def text(self, node: Node) -> str:
        return self.data[node.start_byte : node.end_byte].decode(errors="replace")

    def between(self, start: int, end: int) -> str:
        return self.data[start:end].decode(errors="replace")

    def definitions(self, tree: Tree) -> Iterator[Definition]:
        """Named functions; collects the comments that the walk passes on its way."""
        grammar = GRAMMARS[self.language]
        waiting = [(tree.root_node, Place())]
        while waiting:
            node, place = waiting.pop()
            if node.type in COMMENTS:
                self.comments.append((node.start_byte, node.end_byte))
                continue
            met = grammar.visit(node, place, self.text)
            if isinstance(met, Definition):
                yield met
            elif met is not None and node.child_count:
                waiting += [(child, met) for child in reversed(node.children)]

    def function(self, definition: Definition) -> Function:
        """Put a definition's texts together."""
        node = definition.node
        if self.language == "python":
            last = _last_leaf(node)
            end, end_line = last.end_byte, last.end_point.row + 1
            source = self.between(node.start_byte, end)
            documentation, omitted = self._docstring(node, end)
            code = self._without(node.start_byte, *omitted, end)
        else:
            end, end_line = node.end_byte, node.end_point.row + 1
            documentation, source = self._comment(definition)
            omitted = (end, end)
            code = self.text(node)
        texts = source, code, tuple(self._tokens(node, *omitted)), documentation
        start_line = node.start_point.row + 1
        return Function(definition.name, self.language, *texts, start_line, end_line)

    def _tokens(self, function: Node, begin: int, end: int) -> Iterator[str]:
        """Leaves outside of [begin, end), without comments; strings are not entered."""
        cursor = function.walk()  # the quickest way through all that is inside
        while True:
            node = cursor.node
            assert node is not None
            kind = node.type
            if kind not in COMMENTS and not (begin <= node.start_byte and node.end_byte <= end):
                if kind not in WHOLE and cursor.goto_first_child():
                    continue
                token = self.text(node).strip()
                if kind == "import_prefix":  # three dots are one token of Python
                    yield from _DOTS.findall(token)
                # Automatic semicolons are empty, a continued line's leaf is a backslash.
                elif token and kind != "line_continuation":
                    yield token
            while not cursor.goto_next_sibling():
                if not cursor.goto_parent():
                    return

    def _comment(self, definition: Definition) -> tuple[str, str]:
        """Documentation before a function, and the text from there to the function's end."""
        node, documentation, first = definition.node, "", None
        for start in sorted({definition.start, node.start_byte}, reverse=True):
            if not documentation:
                documentation, first = documentation_before(
                    self.data, self.comments, start, self.language
                )
        self.comments.clear()  # one comment documents one function
        begin = node.start_byte if first is None else first
        return documentation, self.between(begin, node.end_byte)

    def _docstring(self, function: Node, end: int) -> tuple[str, tuple[int, int]]:
        """A Python function's docstring, and the bytes of its statement and the rest of its line;
        code or a comment that follows in the line stays."""
        body = function.child_by_field_name("body")
        statements = [] if body is None else body.children
        first = next((n for n in statements if n.type not in COMMENTS), None)
        literal = first
        while literal is not None and literal.type in _AROUND and literal.named_child_count == 1:
            literal = literal.named_child(0)
        value = None
        if first is not None and literal is not None and literal.type in _STRINGS:
            value = _plain_string(self.text(first))
        if first is None or value is None:
            return "", (end, end)
        gap = _AFTER_STATEMENT.match(self.data, first.end_byte, end)
        assert gap is not None
        return inspect.cleandoc(value), (first.start_byte, gap.end())

    def _without(self, start: int, begin: int, end: int, last: int) -> str:
        """The text of [start, last) without [begin, end), nor spaces that remain before it."""
        before, after = self.data[start:begin], self.data[end:last]
        if not after:
            before = before.rstrip()
        elif self.data[end - 1 : end] == b"\n":
            before = before.rstrip(b" \t")
        return (before + after).decode(errors="replace")


def _plain_string(literal: str) -> str | None:
    """Value of a Python string, neither formatted nor bytes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes like "\d"
            value = ast.literal_eval(literal)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    # An escape can spell half a surrogate pair, which no file can hold.
    return value.encode(errors="replace").decode() if isinstance(value, str) else None


def _last_leaf(node: Node) -> Node:
    """A Python function's node takes in comments below it: this is where it really ends."""
    while node.type not in WHOLE:
        inner = [n for n in node.children if n.type not in COMMENTS and n.end_byte > n.start_byte]
        if not inner:
            break
        node = inner[-1]
    return node


@lru_cache
def _language(name: str, entry: str) -> Language:
    try:
        module = import_module(f"tree_sitter_{name}")
    except ImportError as error:
        wheel = f"tree-sitter-{name}"
        raise ImportError(f"no {wheel}: pip install {wheel} (or 'tenfold[code]')") from error
    pointer: Callable[[], object] = getattr(module, entry)
    return Language(pointer())


def _parsed(data: bytes, language: Language) -> Tree:
    limit = time.thread_time() + PARSE_SECONDS
    try:
        # Given as bytes, parsing could not be stopped. A parser costs nothing; one a call is
        # safe where several threads index.
        return Parser(language).parse(
            lambda offset, _: data[offset:],
            progress_callback=lambda *_: time.thread_time() > limit,
        )
    except ValueError as error:
        late = f"parsing takes over {PARSE_SECONDS:g} s"
        raise SourceError(f"{late}; {len(data)} bytes, likely no source code") from error
