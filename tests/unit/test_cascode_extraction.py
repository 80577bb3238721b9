"""Functions by tree-sitter: names, documentation, tokens, offsets, broken and hostile sources."""

import ast
import inspect
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.cascode.extraction import (
    LANGUAGES,
    Function,
    SourceError,
    functions,
    language_of,
    trees,
)


def names(source: str, language: str) -> list[str]:
    return [f.name for f in trees.functions(source, language)]


def documented(source: str, language: str) -> dict[str, str]:
    return {f.name: f.documentation for f in trees.functions(source, language)}


def only(source: str, language: str) -> Function:
    (function,) = trees.functions(source, language)
    return function


JAVA = """package a.b;

/** Of the class. */
public class Outer<T> {
    int field = 1; // no documentation of what follows
    Outer() { super(); }

    /**
     * Adds one.
     *
     * @param x  a number
     */
    @Override
    public <U> int add(int x) throws Error { // why
        String s = "a\\n"; char c = 'é';
        /* inside */
        return x + 1;
    }

    abstract void declared();
    static class Inner { void deep() { new Runnable() { public void run() {} }; } }
    enum Kind { ONE { void of() {} }; void all() {} }
    interface Shape { void area(); default int sides() { return 3; } }
    record Point(int x) { Point { x = 1; } }
    Runnable field2 = new Runnable() { public void run() {} };
}
"""


def test_java():
    assert names(JAVA, "java") == [
        *("Outer.Outer", "Outer.add", "Outer.Inner.deep", "Outer.Kind.ONE.of", "Outer.Kind.all"),
        *("Outer.Shape.sides", "Outer.Point.Point", "Outer.run"),
    ]
    add = trees.functions(JAVA, "java")[1]
    assert add.documentation == "Adds one.\n\n@param x  a number"
    assert add.source.startswith("/**\n     * Adds one.")
    assert add.code.startswith("@Override\n    public <U> int add")
    assert add.source.endswith(add.code)
    assert "/* inside */" in add.code
    assert add.tokens == (
        *("@", "Override", "public", "<", "U", ">", "int", "add", "(", "int", "x", ")"),
        *("throws", "Error", "{", "String", "s", "=", '"a\\n"', ";", "char", "c", "=", "'é'", ";"),
        *("return", "x", "+", "1", ";", "}"),
    )
    assert (add.start_line, add.end_line) == (13, 18)
    assert not documented(JAVA, "java")["Outer.Outer"]


GO = """package a

// Header, apart.

// Foo does it
//   with an example.
//
// Deprecated: use Bar.
//go:noinline
func Foo[T any](x int) (int, error) { s := "a" + `raw
b` + string('c'); return len(s), nil } // behind

var x = 1 // of x
func Bar() { f := func() {}; f() }

/* Meth is
   in a block. */
func (r *Recv[T]) Meth() {}
func (Other) Short() {}
func assembly(x int) int
"""


def test_go():
    assert documented(GO, "go") == {
        "Foo": "Foo does it\n  with an example.\n\nDeprecated: use Bar.",
        "Bar": "",
        "Recv.Meth": "Meth is\nin a block.",
        "Other.Short": "",
    }
    foo = trees.functions(GO, "go")[0]
    assert foo.source.startswith("// Foo does it\n")
    assert foo.code.startswith("func Foo")
    assert foo.tokens[-19:] == (
        *("s", ":=", '"a"', "+", "`raw\nb`", "+", "string", "(", "'c'", ")", ";"),
        *("return", "len", "(", "s", ")", ",", "nil", "}"),
    )
    assert "\n" not in foo.tokens
    assert (foo.start_line, foo.end_line) == (10, 11)


RUBY = """# frozen_string_literal: true
module A::B
  # Of the class.
  class C < D
    # First of the body.
    #   indented
    def first(a, b: 1) = a

    ##
    # Hidden away.
    # rubocop:disable Metrics
    private def hidden
      x = "a#{b}c" + %w(u v).join # comment
      <<~TEXT
        one #{x}
      TEXT
    end

    class << self
      # Of the class itself.
      def made; end
    end

    # Apart.

    def ==(other); end
    def self.build(**) = new
    def name=(v)
      @name = v
      def within; end
    end
    Pair = Struct.new(:a) do
      # In a block.
      def sum; end
    end
    included do
      # Mixed in.
      def mixed; end
    end
    attr :a # of a
    def plain; end
=begin
A block.
=end
    def blocked; end
  end
end
def alone; end
"""


def test_ruby():
    bare = ["A::B::C.==", "A::B::C.build", "A::B::C.name=", "A::B::C.plain", "alone"]
    assert documented(RUBY, "ruby") == dict.fromkeys(bare, "") | {
        "A::B::C.first": "First of the body.\n  indented",
        "A::B::C.hidden": "Hidden away.",
        "A::B::C.made": "Of the class itself.",
        "A::B::C::Pair.sum": "In a block.",
        "A::B::C.mixed": "Mixed in.",
        "A::B::C.blocked": "A block.",
    }
    hidden = trees.functions(RUBY, "ruby")[1]
    assert hidden.source.startswith("##\n    # Hidden")
    assert hidden.code.startswith("def hidden")
    assert hidden.tokens == (
        *("def", "hidden", "x", "=", '"a#{b}c"', "+", "%w(", "u", "v", ")", ".", "join"),
        *("<<~TEXT", "one #{x}\n      TEXT", "end"),
    )


PHP = """<p>text</p><?php
namespace A;
/** Adds. */
function add(int $x): string { return "a $x {$y->z}" . 'c' . <<<EOT
text $x
EOT
; }
abstract class B {
  /**
   * Makes one.
   * @return static
   */
  #[Attribute]
  public static function make() { return new static; }
  abstract function declared();
}
interface I { function i(); }
trait T { function t() {} }
enum E { case X; function e() {} }
if (!function_exists('z')) { function z() { function within() {} } }
$o = new class { function anonymous() {} };
$f = function () {};
?>
"""


def test_php():
    bare = ["T.t", "E.e", "z", "anonymous"]
    assert documented(PHP, "php") == dict.fromkeys(bare, "") | {
        "add": "Adds.",
        "B.make": "Makes one.\n@return static",
    }
    add = trees.functions(PHP, "php")[0]
    assert add.tokens == (
        *("function", "add", "(", "int", "$", "x", ")", ":", "string", "{", "return"),
        *('"a $x {$y->z}"', ".", "'c'", ".", "<<<EOT\ntext $x\nEOT", ";", "}"),
    )
    assert names("function fragment() { return 1; }", "php") == ["fragment"]


JAVASCRIPT = """#!/usr/bin/env node
/** @license of the file */

'use strict';
/** Exported. */
export const add = async (x) => x + 1, other = 3;
/** Of exports. */
exports.sum = function () { return `a${b}` + /r[e]/g };
class A extends B {
  /** Made. */
  // eslint-disable-next-line
  @log static async *make(a) {}
  #hidden = () => {};
  get size() { return 1 }
  constructor() { function within() {} }
  'quoted'() {}
  [Symbol.iterator]() {}
}
/** Of the object. */
var tools = {
  /** Of a key. */
  cut: function () {}, // of nothing
  join() {},
  'a b': function () {},
  nested: { deep: () => 1 },
};
A.prototype.walk = function* named() {};
A.prototype['run'] = () => {};
A.prototype = { stop: function () {} };
this.here = function () {};
table[i] = function () { function inDynamic() {} };
(function main() { function inMain() {} }).call(this);
!function () { /** Wrapped. */ function inWrapper() {} return function returned() {} }();
React.memo(function Widget() { return <div a="b">text {x}</div> });
const Late = class { late() {} };
let first = function () {},
  /** Second. */
  second = function () {};
const kept = module.exports = function () {};
module.exports = { listed: function () {} };
/** Default.
 * With **stars**
 */
export default function () {};
"""


def test_javascript():
    bare = [
        *("A.#hidden", "A.size", "A.constructor", "A.quoted", "A.[Symbol.iterator]"),
        *("tools.join", "tools.nested.deep", "A.walk", "A.run", "A.stop", "here", "inDynamic"),
        *("inMain", "returned", "Widget", "Late.late", "first", "kept", "listed"),
    ]
    assert documented(JAVASCRIPT, "javascript") == dict.fromkeys(bare, "") | {
        "add": "Exported.",
        "sum": "Of exports.",
        "A.make": "Made.",
        "tools.cut": "Of a key.",
        "inWrapper": "Wrapped.",
        "second": "Second.",
        "default": "Default.\nWith **stars**",
    }
    found = {f.name: f for f in trees.functions(JAVASCRIPT, "javascript")}
    assert found["add"].source == "/** Exported. */\nexport const add = async (x) => x + 1"
    assert found["add"].code == "add = async (x) => x + 1"
    assert found["sum"].tokens == (
        *("exports", ".", "sum", "=", "function", "(", ")", "{"),
        *("return", "`a${b}`", "+", "/r[e]/g", "}"),
    )
    assert found["Widget"].tokens[-10:] == (
        *('"b"', ">", "text", "{", "x", "}", "</", "div", ">", "}"),
    )


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("module.exports = function () {}", "module.exports"),
        ("module.exports = function own() {}", "own"),
        ("exports = module.exports = function own() {}", "own"),
        ("export default function own() {}", "own"),
        ("export default () => 1", "default"),
        ("var a = (function () {})", "a"),
        ("var a = b.c = function () {}", "b.c"),
        ("f().later = () => {}", "later"),
        ("window.app.start = function () {}", "window.app.start"),
        ("define(function named() {})", "named"),
        ("var a = (function once() {})()", None),
        ("new (function once() {})", None),
        ("({ [k]: function () {} })", "[k]"),
        ("const { a = () => 1 } = b", None),
        ("run(() => 1)", None),
    ],
)
def test_names_of_javascript_expressions(source, name):
    assert names(source, "javascript") == ([] if name is None else [name])


PYTHON = '''
import os

class Shelf:
    """A class."""

    @property
    def size(self) -> int:
        """Number of books ä.

        With
            indentation.
        """  # noqa
        # counts
        return sum(f"{b!r:>{9}} {'x'}" "y" \\
            "z" for b in self)  # tail
    # below

    class Inner:
        async def load(self, *a, **k): "Load it."; return 1

if os.name == "nt":
    def drive(path):
        if path is not os and path not in os: return path
elif os.sep:
    try:
        pass
    except OSError:
        def drive(path):
            b"bytes"
            def inside():
                """Not a function of its own."""
            return inside
else:
    match os.name:
        case "x":
            def drive(): "on" "ly"
'''


def test_python():
    found = trees.functions(PYTHON, "python")
    assert [(f.name, f.start_line, f.end_line, f.documentation) for f in found] == [
        ("Shelf.size", 8, 16, "Number of books ä.\n\nWith\n    indentation."),
        ("Shelf.Inner.load", 20, 20, "Load it."),
        ("drive", 23, 24, ""),
        ("drive", 29, 33, ""),
        ("drive", 37, 37, "only"),
    ]
    size, load, *_, last = found
    assert size.source.startswith('def size(self) -> int:\n        """Number')
    assert size.code == (
        "def size(self) -> int:\n        # noqa\n        # counts\n"
        '        return sum(f"{b!r:>{9}} {\'x\'}" "y" \\\n            "z" for b in self)'
    )
    assert size.tokens == (
        *("def", "size", "(", "self", ")", "->", "int", ":", "return", "sum", "("),
        *("f\"{b!r:>{9}} {'x'}\"", '"y"', '"z"', "for", "b", "in", "self", ")"),
    )
    assert (load.code, last.code) == ("async def load(self, *a, **k): return 1", "def drive():")
    assert found[2].tokens[6:15] == (
        *("if", "path", "is", "not", "os", "and", "path", "not", "in"),
    )


def by_its_own_parser(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, int, int, str]]:
    """Name, lines and documentation of Python's functions, from the standard library's parser."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            documentation = ast.get_docstring(node) or ""
            yield prefix + node.name, node.lineno, node.end_lineno or 0, documentation
        else:
            inner = f"{prefix}{node.name}." if isinstance(node, ast.ClassDef) else prefix
            yield from by_its_own_parser(node, inner)


@pytest.mark.parametrize("module", ["textwrap", "typing", "json.decoder"])
def test_python_as_its_own_parser_reads_it(module):
    __import__(module)
    source = Path(sys.modules[module].__file__ or "").read_text(encoding="utf-8")
    found = trees.functions(source, "python")
    rows = [(f.name, f.start_line, f.end_line, f.documentation) for f in found]
    assert rows == list(by_its_own_parser(ast.parse(source)))
    without = [inspect.cleandoc(f"if 1:\n    {f.code}") for f in found]
    assert all(isinstance(ast.parse(code), ast.Module) for code in without if "\n" not in code)


@settings(max_examples=30)
@given(st.text("aé𐍈 \t\n\\'\"#{}%\r\0\x85"), st.booleans())
def test_any_documentation_is_found_and_leaves_no_trace(text, joined):
    literal = f"({text!r}\n    '')" if joined else repr(text)
    body = "    # a comment\n    return [1, 2]\n"
    documented = only(f"def f(a, *, b=':'):\n    {literal}\n{body}", "python")
    plain = only(f"def f(a, *, b=':'):\n{body}", "python")
    assert documented.documentation == inspect.cleandoc(text)
    assert (documented.code, documented.tokens) == (plain.code, plain.tokens)


def test_formatted_strings_document_nothing_and_surrogates_can_be_written():
    function = only('def f(x):\n    f"""Doc {x}"""\n    return x\n', "python")
    assert function.documentation == ""
    assert 'f"""Doc {x}"""' in function.tokens
    assert only(r'def f(): "\ud800 x"', "python").documentation == "? x"


def test_hundreds_of_branches():
    branches = "".join(f"elif x == {i}:\n    def f(): pass\n" for i in range(900))
    assert len(names(f"if x:\n    pass\n{branches}", "python")) == 900


def test_dots_of_a_relative_import_and_python_two():
    function = only("def f():\n    from .... import a\n    from .. import b\n", "python")
    assert [token for token in function.tokens if "." in token] == ["...", ".", ".", "."]
    function = only('def f(x):\n    "Doc."\n    print "a", x\n', "python")
    assert (function.documentation, function.tokens[-4:]) == ("Doc.", ("print", '"a"', ",", "x"))


BROKEN = {
    "python": "def whole():\n    return 1\n\ndef broken(:\n    x = = 1\n\ndef after(): return 2\n",
    "javascript": "function whole() { return 1 }\nfunction broken( { = }\nfunction after() {}\n",
    "java": "class A { void whole() {} void broken( { = } }\nclass B { void after() {} }",
    "go": "package a\nfunc whole() {}\nfunc broken( { = }\nfunc after() {}\n",
    "ruby": "def whole; end\ndef broken(= ; end\ndef after; end\n",
    "php": "<?php function whole() {}\nfunction broken( { = }\nfunction after() {}\n",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_broken_functions_are_left_out(language):
    found = [name.rpartition(".")[2] for name in names(BROKEN[language], language)]
    assert "whole" in found
    assert "broken" not in found


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("source", ["", "\n", "\ufeff", "\0\0", "\ud800", "%%% no code at all ((("])
def test_nothing_to_find(language, source):
    assert trees.functions(source, language) == []


EXAMPLES = {
    "python": 'def f():\n    """Ünï\n    döc."""\n    return "日本"\n',
    "javascript": '/**\n * Ünï\n * döc.\n */\nfunction f() {\n  return "日本";\n}\n',
    "java": 'class Ä {\n/**\n * Ünï\n * döc.\n */\nString f() {\n  return "日本";\n}\n}\n',
    "go": '// Ünï\n// döc.\nfunc f() string {\n\treturn "日本"\n}\n',
    "ruby": '# Ünï\n# döc.\ndef f\n  return "日本"\nend\n',
    "php": '<?php\n/**\n * Ünï\n * döc.\n */\nfunction f() {\n  return "日本";\n}\n',
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_bytes_of_the_file_change_nothing(language):
    source = EXAMPLES[language]
    expected = only(source, language)
    assert expected.documentation == "Ünï\ndöc."
    assert '"日本"' in expected.tokens
    assert only("\ufeff" + source, language) == expected
    assert only(source.replace("\n", "\r\n"), language) == expected
    comment = "#" if language in ("python", "ruby") else "//"
    if language != "php":
        below = only(f"{comment} 𐍈 ä\n\n{source}", language)
        assert below.start_line == expected.start_line + 2
        assert (below.source, below.tokens) == (expected.source, expected.tokens)


@pytest.mark.parametrize("language", LANGUAGES)
@given(text=st.text(alphabet="aé𐍈 \t#/*'\"{}", max_size=12))
@settings(max_examples=25, deadline=None)
def test_texts_are_of_the_file(language, text):
    comment = "#" if language in ("python", "ruby") else "//"
    opening = "<?php " if language == "php" else ""
    source = f"{opening}{comment} {text}\n\n" + EXAMPLES[language].removeprefix("<?php\n")
    for function in trees.functions(source, language):
        assert function.source in source
        lines = source.split("\n")[function.start_line - 1 : function.end_line]
        assert all(token.split("\n")[0] in "\n".join(lines) for token in function.tokens)


@pytest.mark.parametrize(
    ("language", "around", "function"),
    [
        ("python", "[", "def f(): return {}{}{}"),
        ("javascript", "(", "function f() {{ return {}{}{}; }}"),
        ("java", "(", "class A {{ int f() {{ return {}{}{}; }} }}"),
        ("go", "(", "func f() int {{ return {}{}{} }}"),
        ("ruby", "[", "def f; {}{}{}; end"),
        ("php", "(", "<?php function f() {{ return {}{}{}; }}"),
    ],
)
def test_deep_nesting(language, around, function):
    depth = 6_000  # far beyond what Python's own stack takes
    closing = {"(": ")", "[": "]"}[around]
    source = function.format(around * depth, "1", closing * depth)
    assert only(source, language).tokens.count(closing) >= depth


def test_deep_classes_and_wrappers():
    inner = "function f() {}"
    source = "(function () { " * 2000 + inner + " })()" * 2000
    assert names(source, "javascript") == ["f"]
    assert names("class A:\n" + " class B:\n", "python") == []
    nested = "".join(" " * i + "class A:\n" for i in range(90)) + " " * 90 + "def f(): pass\n"
    assert names(nested, "python") == ["A." * 90 + "f"]


@pytest.mark.parametrize(
    "source",
    [
        "var a=1;" + "function f(a,b){return a+b*2};" * 2000,
        "/* a */" * 10_000 + " " * 200_000 + "x;" + "function f(){}/* b */" * 2000,
    ],
    ids=["one long line", "comments and spaces"],
)
def test_time_stays_linear(source):
    began = time.thread_time()
    assert len(trees.functions(source, "javascript")) == 2000
    assert time.thread_time() - began < 8


def test_a_source_that_takes_too_long(monkeypatch):
    monkeypatch.setattr(trees, "PARSE_SECONDS", 0.05)
    with pytest.raises(SourceError, match=r"over 0\.05 s; 60000 bytes"):
        trees.functions("%w(" * 20_000, "ruby")
    assert names("def f; end", "ruby") == ["f"]


def test_threads_share_nothing():
    source = JAVASCRIPT * 5
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(names, [source] * 4, ["javascript"] * 4))
    assert results == [names(source, "javascript")] * 4


def test_a_missing_grammar_is_named(monkeypatch):
    trees._language.cache_clear()
    monkeypatch.setitem(sys.modules, "tree_sitter_go", None)
    with pytest.raises(ImportError, match="pip install tree-sitter-go"):
        trees.functions("package a", "go")
    monkeypatch.undo()
    assert names("func f() {}", "go") == ["f"]


def test_without_tree_sitter(monkeypatch):
    for module in [m for m in sys.modules if m.startswith(trees.__name__)]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "tree_sitter", None)
    with pytest.raises(ImportError, match=r"pip install 'tenfold\[search\]'"):
        __import__(trees.__name__)


@pytest.mark.parametrize(
    ("comment", "documentation"),
    [
        ("/** One line. */", "One line."),
        ("/**\n * A\n *   b\n *\n * c\n */", "A\n  b\n\nc"),
        ("/**\n   No stars,\n     two lines.\n*/", "No stars,\n  two lines."),
        ("/** Closed twice **/", "Closed twice"),
        ("/**\n\tTabs\n */", "Tabs"),
        ("/* no documentation */", ""),
        ("/**/", ""),
        ("/** */", ""),
        ("// none", ""),
        ("/** Far. */\n", ""),
        ("/** Before. */\n/* between */\n// and", "Before."),
        ("/** Older. */\n/** Newer. */", "Newer."),
        ("x = 1; /** Of x. */", ""),
        ("/** Of x. */ x = 1;", ""),
    ],
)
def test_documentation_of_block_comments(comment, documentation):
    function = only(f"{comment}\nfunction f() {{}}", "javascript")
    assert function.documentation == documentation
    assert function.source.startswith("/**" if documentation else "function")


def test_a_comment_documents_one_function():
    source = "/** Both? */\nvar a = function () {}, b = function () {};"
    assert documented(source, "javascript") == {"a": "Both?", "b": ""}


def test_languages_by_name_and_suffix():
    with pytest.raises(ValueError, match=r"'cobol': known are python, javascript"):
        functions("", "cobol")
    found = [language_of(path) for path in ("a/b.py", Path("x.MJS"), "x.rb", "x.pyc")]
    assert found == ["python", "javascript", "ruby", None]
