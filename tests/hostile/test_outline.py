"""Outlines and documents of sources that are made to cost time, memory or depth."""

import time

import pytest

from methods.cascode.extraction import SEARCHED, SourceError, outline, trees
from methods.cascode.extraction.documents import documents

MILLION = 1_000_000
LIMIT = 8.0  # seconds of processor time; most take far less than one
OPENINGS = {
    "python": "class A:\n" + " def f():\n",
    "javascript": "function f() { ",
    "typescript": "class A { f() { const B = 1; ",
    "tsx": "const f = () => { ",
    "java": "class A { void f() { ",
    "go": "func f() { type T struct { ",
    "ruby": "class A; def f; ",
    "php": "<?php function f() { ",
    "c": "struct S { ",
    "cpp": "namespace a { struct S { void f() { ",
    "rust": "mod a { fn f() { ",
    "csharp": "class A { void f() { ",
    "shell": "f() { ",
}
CLOSED = {
    "javascript": ("function f() { ", "}"),
    "typescript": ("class A { f() { ", "}}"),
    "java": ("class A { ", "}"),
    "c": ("struct S { ", "} s;"),
    "cpp": ("namespace a { class B { ", "};}"),
    "rust": ("mod a { fn f() { ", "}}"),
    "csharp": ("namespace a { class A { ", "}}"),
    "ruby": ("class A; def f; ", "end; end; "),
    "shell": ("f() { :; ", "}; "),
}


def within_limit(work, *args):
    began = time.thread_time()
    try:
        return work(*args)
    except SourceError:  # of a parser that takes too long, after seconds
        return []
    finally:
        assert time.thread_time() - began < LIMIT + trees.PARSE_SECONDS * 0.2


@pytest.fixture(autouse=True)
def _short_parsing(monkeypatch):
    monkeypatch.setattr(trees, "PARSE_SECONDS", 2.0)


@pytest.mark.parametrize("language", SEARCHED)
def test_unclosed_depth(language):
    within_limit(outline, OPENINGS[language] * 3000, language)


@pytest.mark.parametrize("language", CLOSED)
def test_closed_depth_is_found_to_a_limit(language):
    opening, closing = CLOSED[language]
    found = within_limit(outline, opening * 1500 + closing * 1500, language)
    assert len(found) < 4000
    assert sum(len(f.source) + len(f.code) for f in found) < 40 * 1500 * len(opening + closing) * 2
    assert sum(len(f.tokens) for f in found) < 40 * 1500 * 12


@pytest.mark.parametrize("language", ["java", "c", "csharp", "typescript", "rust"])
def test_names_stay_short(language):
    opening, between = {"java": ("class A { ", "int x; "), "rust": ("mod a { ", "struct B;")}.get(
        language,
        ("namespace a { ", "class B {}") if language != "c" else ("struct S { ", "int x; "),
    )
    source = opening * 40_000 + (between + "}") * 40_000
    found = within_limit(outline, source, language)
    assert sum(len(f.name) for f in found) < 4 * trees.MOST_NAME**2


EVERY_DAY = "python", "tsx", "cpp"  # the others take a minute in all
SLOWLY = [pytest.param(name, marks=pytest.mark.slow) for name in SEARCHED if name not in EVERY_DAY]


@pytest.mark.parametrize("language", [*EVERY_DAY, *SLOWLY])
@pytest.mark.parametrize(
    "source",
    [
        *("#" * 300_000, "/*" * 150_000, "[" * 20_000, "<" * 20_000, "a" * MILLION),
        *("\n" * MILLION, " " * MILLION, "/// <a\n" * 30_000, "# x\n" * 50_000),
        *("// x\n" * 50_000, "/** x */" * 30_000, "a = " * 10_000, "'" * 20_001),
        "/* a */" * 20_000 + "const a = 1" + ", b = 2" * 5000 + ";",
    ],
    ids=lambda source: repr(source[:8]),
)
def test_long_runs(language, source):
    for f in within_limit(outline, source, language):
        assert 1 <= f.start_line <= f.end_line <= source.count("\n") + 1


def test_many_constants_and_comments():
    source = "/* a */\n" * 5000 + "".join(f"// of {i}\nconst A{i} = {i};\n" for i in range(5000))
    found = [f for f in within_limit(outline, source, "javascript") if f.kind == "constant"]
    assert len(found) == 5000
    source = "".join(f"# of {i}\nA{i} = {i}\n" for i in range(5000))
    found = within_limit(outline, source, "python")
    assert [f.documentation for f in found] == [f"of {i}" for i in range(5000)]


def test_templates_in_templates():
    source = f"template <typename T> T F{'<A' * 2000}{'>' * 2000}::f() {{ return 0; }}\n"
    within_limit(outline, source, "cpp")
    within_limit(outline, "int " + "(" * 3000 + "f" + ")" * 3000 + "() { return 0; }\n", "c")
    within_limit(outline, "/// " + "<see cref=" * 50_000 + "\nclass A {}\n", "csharp")
    within_limit(outline, "/// " + '<a b="c' * 50_000 + "\nclass A {}\n", "csharp")
    within_limit(outline, "impl A for " + "&'a " * 20_000 + "B { fn f() {} }\n", "rust")


DOCUMENTS = [
    *("#" * MILLION, "[" * MILLION, "x" * MILLION, "=" * MILLION, "`" * MILLION, " " * MILLION),
    *("\n" * MILLION, '"' * MILLION, "\\" * MILLION, "{" * MILLION, ":" * MILLION, "-" * MILLION),
    *("/" * MILLION, "/*" * (MILLION // 2), '\\"' * (MILLION // 2), "\0" * MILLION),
    *("```\n# no\n" * 50_000 + "```", "# a\n" * 100_000, "a\n=\n" * 100_000, "~~~\n" + "# a\n" * 9),
    *("[a]\n" * 100_000, "a:\n" * 100_000, "a = 1\n" * 100_000, '{"a": ' * 100_000),
    *('{"a":1,' + '"b":[],' * 100_000, "# " + "x" * MILLION, "#" + " " * MILLION + "#"),
    *("\n".join(" " * i for i in range(1400)), "\n".join("a\n" + c * 3 for c in "=-~^+*#" * 9000)),
    *('"""' * 300_000, "'''\n" * 200_000, "&a [*a, *a]\n" * 50_000, "'" + "x" * MILLION + "':"),
    "# " + "t" * 100_000 + "\n" + "## u\n" * 50_000,
]


@pytest.mark.parametrize("name", ["a.md", "a.rst", "a.toml", "a.ini", "a.yaml", "a.json"])
@pytest.mark.parametrize("source", DOCUMENTS, ids=lambda source: repr(source[:9]))
def test_documents_take_linear_time(name, source):
    lines = source.count("\n") + 1
    for f in within_limit(documents, source, name):
        assert f.name
        assert len(f.name) <= 1300
        assert len(f.documentation) <= 2000
        assert 1 <= f.start_line <= f.end_line <= lines
