"""The languages as the walk over a syntax tree asks for them: functions, classes, constants."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from tree_sitter import Node


def _types(names: str) -> frozenset[str]:
    """Node types, written as words."""
    return frozenset(names.split())


COMMENTS = _types("comment line_comment block_comment")
WHOLE = _types(  # one token, whatever is inside
    """delimited_symbol encapsed_string heredoc heredoc_body import_prefix
    interpolated_string_expression interpreted_string_literal nowdoc raw_string_literal regex
    shell_command_expression string string_literal subshell template_string"""
)
_EXPRESSIONS = _types("function_expression generator_function arrow_function")
_CLASSES = _types("class class_declaration abstract_class_declaration")
_CLASS_LIKE = _CLASSES | _types(  # of the scopes
    """class_definition class_specifier enum_declaration enum_item enum_specifier
    interface_declaration module record_declaration struct_declaration struct_item struct_specifier
    trait_declaration trait_item type_alias_declaration type_definition type_spec union_item
    union_specifier"""
)
_DECLARED = _types(  # parts of a statement that give a name to a value
    """assignment const_element const_item const_spec field_declaration field_definition
    init_declarator preproc_def preproc_function_def public_field_definition static_item var_spec
    variable_assignment variable_declarator"""
)
_LOCAL = _types(  # what has no constants of the module or class in it
    """arrow_function c_style_for_statement class_definition class_static_block command
    compound_statement for_in_statement for_statement func_literal function_expression
    generator_function while_statement"""
)
_BOUND_BY = {  # the field of the name
    "variable_declarator": "name",
    "assignment_expression": "left",
    "pair": "key",
    "field_definition": "property",
    "public_field_definition": "name",
}
_PLAIN_KEY = re.compile(r"[\w$#-]+|\[[\w$.]+\]")
_RECEIVER = re.compile(r"\(\s*(?:\w+\s+)?[*(\s]*(\w+)")
_SELF = re.compile(r"(?:[^\w']|'\w++|\b(?:mut|dyn|const)\b)*+([\w:]+)")  # of `impl ... for`
_ARGUMENTS = re.compile(r"<[^<>]*>")  # of a template
_CONSTANT = re.compile(r"[$#]?[\w$]+(?:::\w+)*")
_IMPORT = re.compile(r"(?:await\s+)?(?:require|import)\s*\(")
_FIELDS_OF_NAMES = ("name", "left", "property", "declarator")
Text = Callable[..., str]  # of a node, up to a number of bytes if one is given
_HEAD = 300  # bytes that tell of what kind a statement is


class Definition(NamedTuple):
    """A named function in a tree."""

    name: str
    node: Node  # what its code spans
    start: int  # first byte of the statement that wraps it, as of `export` or `private`
    kind: str = "function"


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


def name_node(node: Node) -> Node:
    """Where a declaration has its name, below C's pointers, arrays and the like."""
    while node.type not in ("qualified_identifier", "operator_cast"):
        found = (node.child_by_field_name(name) for name in _FIELDS_OF_NAMES)
        inner = next((child for child in found if child is not None), None)
        if inner is None and node.type in (
            *("reference_declarator", "parenthesized_declarator", "const_element"),
        ):
            inner = node.named_child(0)
        if inner is None:
            break
        node = inner
    return node


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
    member: str = "."  # between a scope and its function
    apart: frozenset[str] = COMMENTS  # comments, and what may stand between one and its function
    opening: str = ""  # a statement whose name qualifies the rest of the file
    constants: Mapping[str, str] = field(default_factory=dict)  # statements, how their text begins
    local: frozenset[str] = _LOCAL

    def visit(self, node: Node, place: Place, text: Text) -> Definition | Place | None:
        """A definition, or the place from which to look into the node; None: do not look."""
        kind = node.type
        if kind in self.functions:
            name = self.name(node, text)
            if not name or (self.needs_body and node.child_by_field_name("body") is None):
                return None
            return Definition(join(place.scope, name, self.member), node, place.start_of(node))
        if kind in self.scopes and (name := self.scope_name(node, text)):
            return place.within(name, self.separator)
        if kind in self.wrappers:
            return place._replace(start=place.start_of(node))
        return Place(place.scope)

    def outermost(self, root: Node, text: Text) -> Place:
        """The place of a whole file."""
        opening = (node for node in root.children if self.opening and node.type == self.opening)
        return Place(next((named(node, text) or "" for node in opening), ""))

    def class_at(self, node: Node, place: Place, inside: Place, text: Text) -> Definition | None:
        """The class that begins at `node`, whose children are in the place `inside`."""
        kind = node.type
        if kind not in _CLASS_LIKE or inside.scope == place.scope:
            return None
        reference = kind.startswith("type_") or kind.endswith("_specifier")  # or a class
        if reference and "{" not in text(node):
            return None
        return Definition(inside.scope, node, place.start_of(node), "class")

    def constants_at(self, node: Node, place: Place, text: Text) -> Iterator[Definition]:
        """Constants that the statement `node` defines; of two names for one value the first."""
        begin = self.constants.get(node.type)
        if begin is None or not re.match(begin, text(node, _HEAD)):
            return
        parts = [node, *node.named_children]
        parts += [c for part in parts if part.type == "variable_declaration" for c in part.children]
        found = [part for part in parts if part.type in _DECLARED and _has_value(part, text)]
        for part in found:
            name = text(name_node(part), _HEAD)
            if _CONSTANT.fullmatch(name):
                around = part if len(found) > 1 else node
                qualified = join(place.scope, name, self.separator)
                yield Definition(qualified, around, place.start_of(node), "constant")


def _has_value(node: Node, text: Text) -> bool:
    """Whether a constant has a value, other than a function, a class or an imported module."""
    value = node.child_by_field_name("value") or node.child_by_field_name("right")
    if value is None:  # the grammars do not name all; Go goes on counting without one
        return node.type == "const_spec" or any(child.type == "=" for child in node.children)
    return value.type not in _EXPRESSIONS | _CLASSES and not _IMPORT.match(text(value, _HEAD))


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


def _c_name(node: Node, text: Text) -> str | None:
    """What a declarator declares, "a::B::c" without arguments of templates; operators too."""
    found = name_node(node)
    if found == node:
        return None
    name, operator, symbol = text(found).partition("operator")
    for _ in range(name.count("<") and 4):  # nested arguments
        name = _ARGUMENTS.sub("", name)
    if not symbol.lstrip().startswith("()"):
        symbol = symbol.partition("(")[0]  # operator int() const
    return " ".join((name + operator + symbol).split())


def _c_scope_name(node: Node, text: Text) -> str | None:
    """Of namespaces and classes; of a `typedef` that names what has no name of its own."""
    kind = node.child_by_field_name("type") if node.type == "type_definition" else None
    if kind is not None and kind.child_by_field_name("name") is not None:
        return None
    return _c_name(node, text)


def _rust_scope_name(node: Node, text: Text) -> str | None:
    """Of modules and types; of an `impl` that of its type without reference and parameters."""
    kind = node.child_by_field_name("type")
    if node.type != "impl_item" or kind is None:
        return named(node, text)
    found = _SELF.match(text(kind))
    return found.group(1) if found else None


def _csharp_name(node: Node, text: Text) -> str | None:
    """A method's name; "~Name" of a destructor, "operator +" of an operator."""
    symbol = node.child_by_field_name("operator" if node.type == "operator_declaration" else "type")
    if node.type.endswith("operator_declaration"):
        return None if symbol is None else f"operator {text(symbol)}"
    name = named(node, text)
    return f"~{name}" if name and node.type == "destructor_declaration" else name


_JAVASCRIPT = JavaScript(
    _types("function_declaration generator_function_declaration"),
    wrappers=_types(
        """export_statement lexical_declaration variable_declaration expression_statement
        parenthesized_expression return_statement"""
    ),
    constants={
        "lexical_declaration": r"const\b",
        "field_definition": r"static\b",
        "public_field_definition": r"(?:(?:public|private|protected|override)\s+)*static\b",
    },
    local=_LOCAL | _types("if_statement try_statement"),
)
_TYPESCRIPT = replace(
    _JAVASCRIPT,
    scopes=_types(
        "interface_declaration enum_declaration type_alias_declaration internal_module module"
    ),
    scope_name=lambda node, text: (named(node, text) or "").strip("'\""),  # a module's is quoted
    wrappers=_JAVASCRIPT.wrappers
    | _types("ambient_declaration as_expression satisfies_expression"),
    apart=COMMENTS | {"decorator"},
)
_C = Grammar(
    _types("function_definition"),
    scopes=_types(
        """struct_specifier union_specifier enum_specifier class_specifier type_definition
        namespace_definition"""
    ),
    wrappers=_types("template_declaration type_definition"),
    name=_c_name,
    scope_name=_c_scope_name,
    separator="::",
    member="::",
    needs_body=True,
    constants={
        "declaration": r"[^=({]*\b(?:const|constexpr|constinit)\b",
        "field_declaration": r"[^=({]*\b(?:static\s[^=({]*\bconst|constexpr)\b",
        "preproc_def": "",
        "preproc_function_def": "",
    },
)

GRAMMARS: Mapping[str, Grammar] = {
    "python": Grammar(
        _types("function_definition"),
        scopes=_types("class_definition"),
        constants={"assignment": r"\w+\s*[:=]"},
    ),
    "java": Grammar(
        _types("method_declaration constructor_declaration compact_constructor_declaration"),
        scopes=_types(
            """class_declaration interface_declaration enum_declaration record_declaration
            enum_constant"""
        ),
        needs_body=True,
        constants={
            "field_declaration": r"(?=[^=;]*\bstatic\b)[^=;]*\bfinal\b",
            "constant_declaration": "",
        },
    ),
    "go": Grammar(
        _types("function_declaration method_declaration"),
        scopes=_types("type_spec"),
        wrappers=_types("const_declaration var_declaration var_spec_list type_declaration"),
        name=_go_name,
        needs_body=True,
        constants={"const_spec": "", "var_spec": ""},
    ),
    "ruby": Grammar(
        _types("method singleton_method"),
        scopes=_types("class module assignment"),
        wrappers=_types("call argument_list"),  # private def ...
        scope_name=_ruby_scope_name,
        separator="::",
        constants={"assignment": r"[A-Z][\w:]*\s*="},
    ),
    "php": Grammar(
        _types("function_definition method_declaration"),
        scopes=_types("class_declaration interface_declaration trait_declaration enum_declaration"),
        needs_body=True,
        constants={"const_declaration": ""},
    ),
    "javascript": _JAVASCRIPT,
    "typescript": _TYPESCRIPT,
    "tsx": _TYPESCRIPT,
    "c": _C,
    "cpp": _C,
    "rust": Grammar(
        _types("function_item macro_definition"),
        scopes=_types("struct_item enum_item union_item trait_item impl_item mod_item"),
        scope_name=_rust_scope_name,
        apart=COMMENTS | {"attribute_item"},
        constants={"const_item": "", "static_item": ""},
    ),
    "csharp": Grammar(
        _types(
            """method_declaration constructor_declaration destructor_declaration
            operator_declaration conversion_operator_declaration local_function_statement
            accessor_declaration"""
        ),
        scopes=_types(
            """class_declaration struct_declaration interface_declaration enum_declaration
            record_declaration namespace_declaration property_declaration"""
        ),
        name=_csharp_name,
        needs_body=True,
        opening="file_scoped_namespace_declaration",
        constants={"field_declaration": r"[^=;]*\b(?:const|static\s+readonly)\b"},
    ),
    "shell": Grammar(
        _types("function_definition"),
        constants={
            "declaration_command": r"readonly\b|(?:declare|typeset)\s+-\w*r|export\s+[A-Z]",
            "variable_assignment": r"[A-Z][A-Z\d_]*=",
        },
    ),
}
