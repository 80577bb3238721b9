"""The six languages' node types."""

import re
from collections.abc import Mapping

from tree_sitter import Node

from methods.cascode.extraction.trees.grammar import Grammar, Text, named
from methods.cascode.extraction.trees.javascript import JavaScript

_RECEIVER = re.compile(r"\(\s*(?:\w+\s+)?[*(\s]*(\w+)")


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


class Php(Grammar):
    """Its sources mix code and text."""

    def entry(self, data: bytes) -> str:
        """A fragment without `<?php` is code as well."""
        return "language_php" if b"<?" in data else "language_php_only"


GRAMMARS: Mapping[str, Grammar] = {
    "python": Grammar(
        "tree_sitter_python", frozenset({"function_definition"}), frozenset({"class_definition"})
    ),
    "java": Grammar(
        "tree_sitter_java",
        frozenset(
            {
                "method_declaration",
                "constructor_declaration",
                "compact_constructor_declaration",
            }
        ),
        frozenset(
            {
                "class_declaration",
                "interface_declaration",
                "enum_declaration",
                "record_declaration",
                "enum_constant",
            }
        ),
        needs_body=True,
    ),
    "go": Grammar(
        "tree_sitter_go",
        frozenset({"function_declaration", "method_declaration"}),
        name=_go_name,
        needs_body=True,
    ),
    "ruby": Grammar(
        "tree_sitter_ruby",
        frozenset({"method", "singleton_method"}),
        frozenset({"class", "module", "assignment"}),
        frozenset({"call", "argument_list"}),  # private def ...
        scope_name=_ruby_scope_name,
        separator="::",
    ),
    "php": Php(
        "tree_sitter_php",
        frozenset({"function_definition", "method_declaration"}),
        frozenset(
            {
                "class_declaration",
                "interface_declaration",
                "trait_declaration",
                "enum_declaration",
            }
        ),
        needs_body=True,
    ),
    "javascript": JavaScript(
        "tree_sitter_javascript",
        frozenset({"function_declaration", "generator_function_declaration"}),
        wrappers=frozenset(
            {
                "export_statement",
                "lexical_declaration",
                "variable_declaration",
                "expression_statement",
                "parenthesized_expression",
                "return_statement",
            }
        ),
    ),
}
