"""JavaScript: functions are values, named by what they are bound to."""

import re
from dataclasses import replace

from tree_sitter import Node

from methods.cascode.extraction.trees.grammar import (
    Binding,
    Definition,
    Grammar,
    Place,
    Text,
    join,
    named,
)

_EXPRESSIONS = frozenset({"function_expression", "generator_function", "arrow_function"})
_CLASSES = frozenset({"class", "class_declaration"})
_BOUND_BY = {  # the field of the name
    "variable_declarator": "name",
    "assignment_expression": "left",
    "pair": "key",
    "field_definition": "property",
}
_PLAIN_KEY = re.compile(r"[\w$#-]+|\[[\w$.]+\]")


class JavaScript(Grammar):
    """Finds function and arrow expressions too, where they have a name.

    The name is that of the variable, the key, the class field or the assigned member, without
    `exports`, `this` and `prototype`; else the expression's own; "default" and "module.exports" for
    nameless exports. Methods of object literals carry the name of the object.
    """

    def visit(self, node: Node, place: Place, text: Text) -> Definition | Place | None:
        """See `Grammar.visit`; an unnamed function, or one called on the spot, is looked into."""
        kind = node.type
        if kind in _EXPRESSIONS:
            return self._expression(node, place, text)
        if kind in _BOUND_BY:
            return self._bound(node, place, text)
        if kind == "method_definition":
            name = _key(node.child_by_field_name("name"), text)
            return Definition(join(place.scope, name), node, node.start_byte) if name else None
        if kind in _CLASSES:
            name = named(node, text) or _qualifier(place)
            return place.plain(join(place.scope, name)) if name else place.plain()
        if kind == "object" and (name := _qualifier(place)):
            return place.plain(join(place.scope, name))
        if kind in ("call_expression", "new_expression"):
            return Place(place.scope, called=True)
        if kind == "member_expression" and place.called:
            return place
        met = super().visit(node, place, text)
        if kind == "export_statement" and isinstance(met, Place):
            return replace(met, binding=Binding("default", None, default=True))
        return met

    def _expression(self, node: Node, place: Place, text: Text) -> Definition | Place:
        if place.called:
            return Place(place.scope)
        binding = place.binding
        if (own := named(node, text)) and (binding is None or binding.default):
            binding = Binding(own, node)
        if binding is None:
            return Place(place.scope)
        start = node.start_byte if place.start is None else place.start
        return Definition(join(place.scope, binding.name), binding.node or node, start)

    def _bound(self, node: Node, place: Place, text: Text) -> Place:
        key = node.child_by_field_name(_BOUND_BY[node.type])
        name = _member(key, text) if node.type == "assignment_expression" else _key(key, text)
        start = node.start_byte if place.start is None else place.start
        if name is None:
            return Place(place.scope)
        default = name == "exports"
        if default and place.binding is not None and not place.binding.default:
            return replace(place, start=start)  # const name = module.exports = ...
        name = "module.exports" if default else name
        return Place(place.scope, start, Binding(name, node, default))


def _qualifier(place: Place) -> str | None:
    """The name that an object or class takes from its place."""
    return place.binding.name if place.binding and not place.binding.default else None


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
    return _without_carriers(parts[::-1])


def _without_carriers(parts: list[str]) -> str | None:
    names = [p for p in parts if p != "prototype"]
    if names[:2] == ["module", "exports"]:
        names = names[1:]
    if len(names) > 1 and names[0] in ("exports", "this"):
        names = names[1:]
    return ".".join(names) or None
