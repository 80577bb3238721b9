"""Functions and outlines of sources, by tree-sitter: syntax errors only cost what they hit.
Offsets of the trees count bytes. No step recurses, so that depth of nesting has no limit."""

import ast
import inspect
import re
import time
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib import import_module
from itertools import islice, takewhile
from operator import attrgetter

try:
    from tree_sitter import Language, Node, Parser, Tree
except ImportError as error:
    raise ImportError("reading source needs tree-sitter: pip install 'tenfold[search]'") from error

from methods.cascode.extraction.comments import documentation_before, opening_text
from methods.cascode.extraction.function import Function, SourceError
from methods.cascode.extraction.grammars import COMMENTS, GRAMMARS, WHOLE, Definition, Place

PARSE_SECONDS = 10.0  # of processor time for one file; nested quotes can take the square of n
DEPTH = 10  # of entries in entries of an outline: each holds the text of those inside
MOST_NAME = 2000  # characters; an outline does not look into what has a longer one
MOST_TOKENS = 1000  # of a constant, which may be a table
_WHEELS = {  # module and entry, where these are not the language's name and `language`
    "typescript": ("typescript", "language_typescript"),
    "tsx": ("typescript", "language_tsx"),
    "csharp": ("c_sharp", "language"),
    "shell": ("bash", "language"),
}
_STRINGS = ("string", "concatenated_string")
_AROUND = ("expression_statement", "parenthesized_expression")  # of a docstring
_BEFORE_CODE = COMMENTS | {"php_tag", "hash_bang_line", "shebang"}
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
    file, tree = _read(source, language)
    return [file.entry(d) for d in file.definitions(tree) if not d.node.has_error]


def outline(source: str, language: str) -> list[Function]:
    """What a search should find in a file, in its order.

    Functions as `functions` gives them, and those inside others ("outer.inner"); classes and the
    like, whose tokens leave out what their methods and inner classes do; constants of modules and
    classes, with the first MOST_TOKENS tokens; first of all the documentation of the file itself,
    as a "module" without name and tokens. Below DEPTH entries only `functions` are given.
    """
    file, tree = _read(source, language)
    definitions = file.definitions(tree, DEPTH)
    # A class is worth finding without the parts that are broken.
    found = [file.entry(d) for d in definitions if d.kind == "class" or not d.node.has_error]
    taken = {(f.name, f.start_line) for f in found if f.kind == "function"}
    found = [f for f in found if f.kind != "constant" or (f.name, f.start_line) not in taken]
    found = [f for f in found if f.kind == "function" or "\n" not in f.name]  # of broken classes
    return [*file.module(tree.root_node), *sorted(found, key=attrgetter("start_line"))]


def python_functions(source: str) -> list[Function]:
    """As `functions`, for a corpus; a SourceError for what this Python does not accept."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes like "\d" in other people's strings
            ast.parse(source.removeprefix("\ufeff"))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SourceError(f"not Python: {error or type(error).__name__}") from error
    return functions(source, "python")


def _read(source: str, language: str) -> "tuple[_File, Tree]":
    lines = source.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    data = lines.encode(errors="replace")
    module, entry = _WHEELS.get(language, (language, "language"))
    if language == "php":  # mixes code and text; a fragment without `<?php` is code as well
        entry = "language_php" if b"<?" in data else "language_php_only"
    return _File(data, language), _parsed(data, _language(module, entry))


class _File:
    """One file on the way through its tree."""

    def __init__(self, data: bytes, language: str) -> None:
        self.data = data
        self.language = language
        self.comments: list[tuple[int, int]] = []  # spans that may document a function
        self.others: list[tuple[int, int]] = []  # spans that may document something else
        self.taken: set[int] = set()  # where comments begin that are documentation

    def text(self, node: Node, most: int | None = None) -> str:
        end = node.end_byte if most is None else min(node.end_byte, node.start_byte + most)
        return self.between(node.start_byte, end)

    def between(self, start: int, end: int) -> str:
        return self.data[start:end].decode(errors="replace")

    def definitions(self, tree: Tree, depth: int = 0) -> Iterator[Definition]:
        """Named functions, and down to `depth` all else; collects the comments on its way."""
        grammar, whole = GRAMMARS[self.language], depth > 0
        waiting = [(tree.root_node, grammar.outermost(tree.root_node, self.text), depth, True)]
        while waiting:
            node, place, depth, constant = waiting.pop()
            if whole and len(place.scope) > MOST_NAME:
                continue  # such names would take the square of the file in memory
            if node.type in grammar.apart:
                self.comments.append(self._span(node))
                self.others.append(self._span(node))
                continue
            inside = met = grammar.visit(node, place, self.text)
            found: list[Definition] = []
            if isinstance(met, Definition):
                found, inside, constant = [met], Place(met.name) if depth else None, False
            elif met is not None and depth:
                found += filter(None, [grammar.class_at(node, place, met, self.text)])
                named = list(grammar.constants_at(node, place, self.text)) if constant else []
                constant = constant and not named and node.type not in grammar.local
                found += named
            yield from found
            if isinstance(inside, Place) and node.child_count:
                depth -= bool(found)
                waiting += [(n, inside, depth, constant) for n in reversed(node.children)]

    def _span(self, node: Node) -> tuple[int, int]:
        """Bytes of a node, without the end of its line, as `#define` and Rust's `///` have it."""
        end = node.end_byte
        return node.start_byte, end - (self.data[end - 1 : end] == b"\n")

    def entry(self, definition: Definition) -> Function:
        """Put a definition's texts together."""
        node, kind = definition.node, definition.kind
        start_line = node.start_point.row + 1
        if self.language == "python" and kind != "constant":
            last = _last_leaf(node)
            end, end_line = last.end_byte, last.end_point.row + 1
            source = self.between(node.start_byte, end)
            documentation, omitted = self._docstring(node.child_by_field_name("body"), end)
            code = self._without(node.start_byte, *omitted, end)
        else:
            end = node.end_byte if kind == "function" else self._span(node)[1]
            documentation, source = self._comment(definition, end)
            omitted = (end, end)
            code = self.between(node.start_byte, end)
            end_line = start_line + code.count("\n")
        tokens = self._tokens(node, *omitted, bare=kind != "function")
        most = MOST_TOKENS if kind == "constant" else None
        texts = source, code, tuple(islice(tokens, most)), documentation
        return Function(definition.name, self.language, *texts, start_line, end_line, kind)

    def module(self, root: Node) -> Iterator[Function]:
        """The documentation of the file, if there is any; the other entries come first."""
        if self.language == "python":
            text, (first, last) = self._docstring(root, len(self.data))
        else:
            comments = takewhile(lambda node: node.type in _BEFORE_CODE, root.children)
            spans = [self._span(n) for n in comments if n.type in COMMENTS]
            found = opening_text(self.data, spans, self.taken, self.language)
            text, (first, last) = found or ("", (0, 0))
        if text:
            source = self.between(first, last).rstrip("\n")
            start = self.data.count(b"\n", 0, first) + 1
            lines = start, start + source.count("\n")
            yield Function("", self.language, source, "", (), text, *lines, "module")

    def _tokens(self, entry: Node, begin: int, end: int, bare: bool) -> Iterator[str]:
        """Leaves outside of [begin, end), without comments; strings are not entered, nor, for a
        `bare` text, the bodies of what is inside."""
        cursor = entry.walk()  # the quickest way through all that is inside
        around: list[Node] = []
        while True:
            node = cursor.node
            assert node is not None
            kind = node.type
            if (
                kind not in COMMENTS
                and not (begin <= node.start_byte and node.end_byte <= end)
                and not (bare and cursor.field_name == "body" and _is_body(around))
            ):
                if kind not in WHOLE and cursor.goto_first_child():
                    around.append(node)
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
                around.pop()

    def _comment(self, definition: Definition, end: int) -> tuple[str, str]:
        """Documentation before an entry, and the text from there to the entry's end."""
        node, documentation, first = definition.node, "", None
        comments = self.comments if definition.kind == "function" else self.others
        for start in sorted({definition.start, node.start_byte}, reverse=True):
            if not documentation:
                documentation, first = documentation_before(
                    self.data, comments, start, self.language
                )
        self.others.clear()  # one comment documents one entry
        if definition.kind == "function":  # of `functions` are none but these
            self.comments.clear()
        begin = node.start_byte
        if first is not None:
            self.taken.add(begin := first)
        return documentation, self.between(begin, end)

    def _docstring(self, body: Node | None, end: int) -> tuple[str, tuple[int, int]]:
        """The docstring of a Python function's body, and the bytes of its statement and the rest of
        its line; code or a comment that follows in the line stays."""
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


def _is_body(around: list[Node]) -> bool:
    """Whether the field `body` below these nodes is no part of the first one's text."""
    holder = around[-1]
    nameless = holder.type.endswith("_specifier") and not holder.child_by_field_name("name")
    return len(around) > 1 and not nameless and holder.type != "enum_variant"


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
        wheel = f"tree-sitter-{name.replace('_', '-')}"
        raise ImportError(f"no {wheel}: pip install {wheel} (or 'tenfold[search]')") from error
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
