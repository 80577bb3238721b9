"""The six languages as the walk over a syntax tree asks for them: functions and their names."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tree_sitter import Node


def _types(names: str) -> frozenset[str]:
    """Node types, written as words."""
    return frozenset(names.split())


COMMENTS = _types("comment line_comment block_comment")
WHOLE = _types(  # one token, whatever is inside
    """delimited_symbol encapsed_string heredoc heredoc_body import_prefix
    interpreted_string_literal nowdoc raw_string_literal regex shell_command_expression string
    string_literal subshell template_string"""
)
_EXPRESSIONS = _types("function_expression generator_function arrow_function")
_CLASSES = _types("class class_declaration")
_BOUND_BY = {  # the field of the name
    "variable_declarator": "name",
    "assignment_expression": "left",
    "pair": "key",
    "field_definition": "property",
}
_PLAIN_KEY = re.compile(r"[\w$#-]+|\[[\w$.]+\]")
_RECEIVER = re.compile(r"\(\s*(?:\w+\s+)?[*(\s]*(\w+)")
Text = Callable[[Node], str]


class Definition(NamedTuple):
    """A named function in a tree."""

    name: str
    node: Node  # what its code spans
    start: int  # first byte of the statement that wraps it, as of `export` or `private`


class Binding(NamedTuple):
    """A name that waits for the value on its right."""

    name: str
    node: Node | None  # name and value together; None where the function is all there is
    default: bool = False  # a module's nameless export: good for a function, qualifies no methods


class Place(NamedTuple):
    """What the children of a node on the way need to know."""

    scope: str = ""  # qualified name of the classes around
    start: int | None = None  # first byte of the statement around that only wraps its function
    binding: Binding | None = None
    called: bool = False  # whether the function in this place is called on the spot

    def within(self, name: str | None, separator: str = ".") -> "Place":
        """Inside the class `name`, None for one without."""
        return Place(join(self.scope, name, separator) if name else self.scope)

    def start_of(self, node: Node) -> int:
        """First byte of the statement around, else of the node."""
        return node.start_byte if self.start is None else self.start


def join(scope: str, name: str, separator: str = ".") -> str:
    return f"{scope}{separator}{name}" if scope else name


def named(node: Node, text: Text) -> str | None:
    """Text of the field `name`."""
    name = node.child_by_field_name("name")
    return None if name is None else text(name)


@dataclass(frozen=True)
class Grammar:
    """Node types of one language."""

    functions: frozenset[str]
    scopes: frozenset[str] = frozenset()  # classes and the like, whose names qualify their methods
    wrappers: frozenset[str] = frozenset()  # a function's documentation stands before these
    name: Callable[[Node, Text], str | None] = named
    scope_name: Callable[[Node, Text], str | None] = named
    separator: str = "."  # between scopes
    needs_body: bool = False  # a function without the field `body` is only a declaration

    def visit(self, node: Node, place: Place, text: Text) -> Definition | Place | None:
        """A definition, or the place from which to look into the node; None: do not look."""
        kind = node.type
        if kind in self.functions:
            name = self.name(node, text)
            if not name or (self.needs_body and node.child_by_field_name("body") is None):
                return None
            return Definition(join(place.scope, name), node, place.start_of(node))
        if kind in self.scopes:
            return place.within(self.scope_name(node, text), self.separator)
        if kind in self.wrappers:
            return place._replace(start=place.start_of(node))
        return Place(place.scope)


class JavaScript(Grammar):
    """Finds function and arrow expressions too, where they have a name.

    The name is that of the variable, the key, the class field or the assigned member, without
    `exports`, `this` and `prototype`; else the expression's own; "default" and "module.exports" for
    nameless exports. Methods of object literals carry the name of the object.
    """

    def visit(self, node: Node, place: Place, text: Text) -> Definition | Place | None:
        """See `Grammar.visit`; an unnamed function, or one called on the spot, is looked into."""
        kind, binding = node.type, place.binding
        if kind in _EXPRESSIONS:
            return self._expression(node, place, text)
        if kind in _BOUND_BY:
            return self._bound(node, place, text)
        if kind == "method_definition":
            name = _key(node.child_by_field_name("name"), text)
            return Definition(join(place.scope, name), node, node.start_byte) if name else None
        qualifier = binding.name if binding and not binding.default else None
        if kind in _CLASSES:
            return place.within(named(node, text) or qualifier)
        if kind == "object":
            return place.within(qualifier)
        if kind in ("call_expression", "new_expression"):
            return Place(place.scope, called=True)
        if kind == "member_expression" and place.called:
            return place
        met = super().visit(node, place, text)
        if kind == "export_statement" and isinstance(met, Place):
            return met._replace(binding=Binding("default", None, default=True))
        return met

    def _expression(self, node: Node, place: Place, text: Text) -> Definition | Place:
        if place.called:
            return Place(place.scope)
        binding = place.binding
        if (own := named(node, text)) and (binding is None or binding.default):
            binding = Binding(own, node)
        if binding is None:
            return Place(place.scope)
        name, around = join(place.scope, binding.name), binding.node or node
        return Definition(name, around, place.start_of(node))

    def _bound(self, node: Node, place: Place, text: Text) -> Place:
        key = node.child_by_field_name(_BOUND_BY[node.type])
        name = _member(key, text) if node.type == "assignment_expression" else _key(key, text)
        start = place.start_of(node)
        if name is None:
            return Place(place.scope)
        default = name == "exports"
        if default and place.binding is not None and not place.binding.default:
            return place._replace(start=start)  # const name = module.exports = ...
        name = "module.exports" if default else name
        return Place(place.scope, start, Binding(name, node, default))


def _key(node: Node | None, text: Text) -> str | None:
    """A variable's or key's name, `[Symbol.iterator]` too; None of patterns and several words."""
    if node is None:
        return None
    name = text(node).strip("'\"")
    return name if _PLAIN_KEY.fullmatch(name) else None


def _member(node: Node | None, text: Text) -> str | None:
    """Name of what is assigned to: `A.prototype.b` is "A.b", `exports.a` and `this.a` are "a"."""
    parts: list[str] = []
    while node is not None and node.type in ("member_expression", "subscript_expression"):
        dotted = node.type == "member_expression"
        key = node.child_by_field_name("property" if dotted else "index")
        if key is None or not (dotted or key.type == "string") or not (part := _key(key, text)):
            return None
        parts.append(part)
        node = node.child_by_field_name("object")
    if node is not None and node.type in ("identifier", "this"):
        parts.append(text(node))
    names = [part for part in reversed(parts) if part != "prototype"]
    if names[:2] == ["module", "exports"]:
        names = names[1:]
    if len(names) > 1 and names[0] in ("exports", "this"):
        names = names[1:]
    return ".".join(names) or None


def _go_name(node: Node, text: Text) -> str | None:
    """A method's name after its receiver's type, without pointer and type parameters."""
    name = named(node, text)
    receiver = node.child_by_field_name("receiver")
    if name is None or receiver is None:
        return name
    kind = _RECEIVER.match(text(receiver))
    return f"{kind.group(1)}.{name}" if kind else name


def _ruby_scope_name(node: Node, text: Text) -> str | None:
    """Of classes, modules and constants that take what `Class.new` or `Struct.new` gives."""
    if node.type == "assignment":
        left = node.child_by_field_name("left")
        return text(left) if left is not None and left.type == "constant" else None
    return named(node, text)


GRAMMARS: Mapping[str, Grammar] = {
    "python": Grammar(_types("function_definition"), scopes=_types("class_definition")),
    "java": Grammar(
        _types("method_declaration constructor_declaration compact_constructor_declaration"),
        scopes=_types(
            """class_declaration interface_declaration enum_declaration record_declaration
            enum_constant"""
        ),
        needs_body=True,
    ),
    "go": Grammar(
        _types("function_declaration method_declaration"),
        name=_go_name,
        needs_body=True,
    ),
    "ruby": Grammar(
        _types("method singleton_method"),
        scopes=_types("class module assignment"),
        wrappers=_types("call argument_list"),  # private def ...
        scope_name=_ruby_scope_name,
        separator="::",
    ),
    "php": Grammar(
        _types("function_definition method_declaration"),
        scopes=_types("class_declaration interface_declaration trait_declaration enum_declaration"),
        needs_body=True,
    ),
    "javascript": JavaScript(
        _types("function_declaration generator_function_declaration"),
        wrappers=_types(
            """export_statement lexical_declaration variable_declaration expression_statement
            parenthesized_expression return_statement"""
        ),
    ),
}
