"""What the walk over a syntax tree asks a language: which nodes are functions, what names them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from tree_sitter import Node

COMMENTS = frozenset({"comment", "line_comment", "block_comment"})
WHOLE = frozenset(  # one token, whatever is inside
    {
        "delimited_symbol",
        "encapsed_string",
        "heredoc",
        "heredoc_body",
        "interpreted_string_literal",
        "nowdoc",
        "raw_string_literal",
        "regex",
        "shell_command_expression",
        "string",
        "string_literal",
        "subshell",
        "template_string",
    }
)
Text = Callable[[Node], str]


@dataclass(frozen=True, slots=True)
class Definition:
    """A function.

    Attributes:
        node: what its code spans.
        start: first byte of the statement that wraps it, as of `export` or `private`.
    """

    name: str
    node: Node
    start: int


@dataclass(frozen=True, slots=True)
class Binding:
    """A name that waits for the value on its right.

    Attributes:
        node: name and value together; None where the function is all there is.
        default: a module's nameless export: good for a function, no qualifier of methods.
    """

    name: str
    node: Node | None
    default: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """What the children of a node on the way need to know.

    Attributes:
        scope: qualified name of the classes around.
        start: first byte of the statement around, where it only wraps its function.
        called: whether the function in this place is called on the spot.
    """

    scope: str = ""
    start: int | None = None
    binding: Binding | None = None
    called: bool = False

    def plain(self, scope: str | None = None) -> "Place":
        """The same scope or a new one, nothing else."""
        if scope is None and self.start is None and self.binding is None and not self.called:
            return self
        return Place(self.scope if scope is None else scope)


def join(scope: str, name: str, separator: str = ".") -> str:
    """Qualified name."""
    return f"{scope}{separator}{name}" if scope else name


def named(node: Node, text: Text) -> str | None:
    """Text of the field `name`."""
    name = node.child_by_field_name("name")
    return None if name is None else text(name)


@dataclass(frozen=True)
class Grammar:
    """Node types of one language.

    Attributes:
        package: the grammar's Python package.
        functions: functions and methods.
        scopes: classes and the like, whose names qualify their methods.
        wrappers: a function's documentation stands before these.
        name, scope_name: find the names of the two in their nodes.
        separator: between scopes.
        needs_body: whether a function without the field `body` is only a declaration.
    """

    package: str
    functions: frozenset[str]
    scopes: frozenset[str] = frozenset()
    wrappers: frozenset[str] = frozenset()
    name: Callable[[Node, Text], str | None] = named
    scope_name: Callable[[Node, Text], str | None] = named
    separator: str = "."
    needs_body: bool = False

    def entry(self, data: bytes) -> str:
        """Name of the package's function that gives the language."""
        return "language"

    def visit(self, node: Node, place: Place, text: Text) -> Definition | Place | None:
        """A definition, or the place to look into the node from; None: don't."""
        kind = node.type
        if kind in self.functions:
            name = self.name(node, text)
            if not name or (self.needs_body and node.child_by_field_name("body") is None):
                return None
            start = node.start_byte if place.start is None else place.start
            return Definition(join(place.scope, name), node, start)
        if kind in self.scopes:
            name = self.scope_name(node, text)
            return place.plain(join(place.scope, name, self.separator)) if name else place.plain()
        if kind in self.wrappers:
            return place if place.start is not None else replace(place, start=node.start_byte)
        return place.plain()
