"""Outlines: what is found in a file of each language, of which kind, where, documented by what."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.cascode.extraction import SEARCHED, Function, functions, language_of, outline, trees

Row = tuple[str, str, int, int, str]


def rows(source: str, language: str) -> list[Row]:
    found = outline(source, language)
    return [(f.kind, f.name, f.start_line, f.end_line, f.documentation) for f in found]


def tokens(source: str, language: str) -> dict[str, str]:
    return {f.name: " ".join(f.tokens) for f in outline(source, language)}


PYTHON = '''#!/usr/bin/env python
# Copyright somebody
"""Of the module."""  # c

# Most of them.
#: by default
MOST = 1
NAMES: tuple = ("a",)  # behind
declared: int
a.b = 3
x, y = 1, 2

class Shelf(Base):
    """Holds books."""

    size = 1

    @property
    def full(self):
        """Whether it is."""
        return hidden

    class Inner:
        def deep(self): pass

if 1:
    LATE = 2
for i in x: never = 1

@deco
def outer():
    """Out."""
    local = 1
    # no documentation
    def inner():
        "In."
        class Within: pass
'''
C = """/* Of the file.
 * Second line. */
#include <x.h>

/** Most. */
#define MAX 10
#define TWICE(x) ((x) * 2)
#define GUARD_H
// Limits.
static const int a = 3, *b = 0;
int variable = 3;
struct S { int x; int (*call)(int); struct { int y; } in; struct N { int z; } n; };
/* Of T. */
typedef struct { int y; } T;
/* Of Q. */
typedef struct Q { int y; } Q;
enum E { A, B };

/// Does f.
/// And more.
static int *f(int a, char **b) {
    static const int k = 1;
    return 0;
}
int (*g(void))(int) { return 0; }
const char *declared(int);
typedef int myint;
const char *names[] = {"a", "b"};
"""
CPP = """// Of the file.

namespace a::b {
//! Of Foo.
template <class T> class Foo : public Bar {
 public:
  static constexpr int K = 3;
  Foo();
  ~Foo() {}
  /// Adds. @{
  int operator+(int o) { return hidden; }
  operator bool() const { return true; }
  Foo& operator=(const Foo&) = default;
  enum class Kind { X };
};
}  // namespace
int a::b::Foo::bar(int x) { struct L { int z() { return 1; } }; return x; }
template <typename T> T* Foo<std::vector<T>>::baz() & { return 0; }
Foo::operator int() { return 1; }
/** Equal. */
bool operator==(const X& a, const X& b) { return true; }
int F::operator()(int) const { return 0; }
constexpr int N = 5;
const std::string s{"x"};
namespace { int& z() { return 1; } }
extern "C" { auto y() -> int { return 1; } }
template<> void spec<int>() {}
class Forward;
"""
RUST = """// Copyright of somebody.

//! Of the crate.
//! More.

/// Does f.
/// Twice.
#[inline]
pub fn f<T>(x: T) -> i32 { fn inner() {} 1 }

x = 1; /// not of S
/// Of S.
#[derive(Debug)]
// plain
pub struct S<T> {
    /// A field.
    a: T,
}
impl<T> S<T> {
    /// Em.
    pub fn m(&self) { const L: u8 = 1; }
    const Q: i32 = 1;
}
impl<T: X> fmt::Display for S<T> { fn fmt(&self) {} }
trait Tr { fn declared(&self); fn given(&self) { hidden } const NONE: u8; }
enum E { A(i32), C { d: u8 } }
type A = B;
/** Three. */
pub const N: i32 = 3;
mod inner { pub fn g() {} }
macro_rules! made { () => {} }
impl Tr for &'a mut [u8] { fn z() {} }
struct U(i32);
"""
CSHARP = """// Of the file.
using System;
namespace Q;
/// <summary>
/// Doc of <see cref="Foo"/> &lt;b&gt;.
/// </summary>
/// <param name="x">A number.</param>
[Attr]
public class C<T> : D {
    // nothing
    public const int K = 1, L = 2;
    /** <summary>Ess</summary> */
    static readonly string S = "x";
    int field = 1;
    public C() {}
    ~C() {}
    public int M(int x) => x;
    public int P { get { return field; } set { field = value; } }
    public int Auto { get; set; }
    public static C operator +(C a, C b) { return a; }
    public static implicit operator int(C a) { return 1; }
    void G() { int Local(int y) { return y; } }
    abstract void H();
}
interface I { void X(); int Y() { return 1; } }
enum E { A, B }
record R(int X);
"""
SHELL = """#!/bin/bash
# Of the script,
# in two lines.

# Does f.
# shellcheck disable=SC1
f() { local x="a$b"; Z=1; g() { echo; }; }
function h {
  cat <<EOF
text $x
EOF
}
# Ah.
readonly a=1
B=2
export C="x y"
declare -r D=3
lower=1
A=1 cmd
readonly X
for i in 1 2; do NO=1; done
"""
TYPESCRIPT = """/** Of the module. */
import a from 'b';
/** Of I. */
export interface I<T> extends J { x: number; m(): void }
export type T = { a: string } | null;
type Id = string;
declare const enum F { B }
/** Of C. */
@Component({a: 1})
export abstract class C<T> extends D {
  /** Kay. */
  static readonly K: number = 3;
  private x = () => 1;
  abstract q(): void;
  over(a: string): void;
  over(a: any) { return hidden }
  /** Em. */
  @Dec() m<T>(): T { return 1 }
}
namespace N.M { export function f(): void { function g() {} } const z = 1; }
/** Values. */
export const A: number = 1, B = { a: 1, f() { hidden } };
const cast = ((x) => x) as Fn;
function declared(a: string): void;
const r = require('z');
"""
JAVASCRIPT = """#!/usr/bin/env node
/* eslint-env node */
/** Of the module. */

/** Shared. */
const A = 1, f1 = () => 2, B = { g() { hidden } };
let no = 1;
/** Of K. */
export default class K extends L { static S = 1; x = 2; m() {} }
const {a, b} = c;
const r = require('x');
const Late = class { m() {} };
function f() { const g = () => 1; class In { m() {} } }
const kept = module.exports = function () {};
"""
JAVA = """/** Of the file. */
package a;

/** Of the class. */
@Foo
class A {
    /** Kay. */
    @X public static final int K = 1, L = 2;
    static int notFinal = 1;
    enum E { X, Y(1) { void q() {} } }
    void m() { new R() { public void run() {} }; }
    abstract int signature(int x);
}
interface I { int C = 1; }
record R(int x) {}
"""
GO = """// Copyright x.

// Package a is.
package a

// T is.
type T struct { x int }
type (
 // U is.
 U interface { M() }
 V int
)
// Group.
const (
 B = iota
 // C is.
 C
)
var D = 1
var F int
func f() { const L = 1; type q struct {}; g := func() {} }
"""
RUBY = """# frozen_string_literal: true

# Of the library.

# Of A.
class A < B
  # K is.
  K = 1
  Pair = Struct.new(:a) do
    def x; hidden; end
  end
  def m; def n; end; end
end
lower = 2
module M; end
"""
PHP = """<?php
/** Of the file. */
namespace A;
/** Kay. */
const K = 1, L = 2;
/** Of B. */
class B extends C { const Q = 1; public $s = 1; function m() { function n() {} } }
enum E: string { case X = 'a'; }
"""
EXPECTED: dict[str, tuple[str, list[Row]]] = {
    "python": (
        PYTHON,
        [
            ("module", "", 3, 3, "Of the module."),
            ("constant", "MOST", 7, 7, "Most of them.\nby default"),
            ("constant", "NAMES", 8, 8, ""),
            ("class", "Shelf", 13, 24, "Holds books."),
            ("function", "Shelf.full", 19, 21, "Whether it is."),
            ("class", "Shelf.Inner", 23, 24, ""),
            ("function", "Shelf.Inner.deep", 24, 24, ""),
            ("constant", "LATE", 27, 27, ""),
            ("function", "outer", 31, 37, "Out."),
            ("function", "outer.inner", 35, 37, "In."),
            ("class", "outer.inner.Within", 37, 37, ""),
        ],
    ),
    "c": (
        C,
        [
            ("module", "", 1, 2, "Of the file.\nSecond line."),
            ("constant", "MAX", 6, 6, "Most."),
            ("constant", "TWICE", 7, 7, ""),
            ("constant", "a", 10, 10, "Limits."),
            ("constant", "b", 10, 10, ""),
            ("class", "S", 12, 12, ""),
            ("class", "S::N", 12, 12, ""),
            ("class", "T", 14, 14, "Of T."),
            ("class", "Q", 16, 16, "Of Q."),
            ("class", "E", 17, 17, ""),
            ("function", "f", 21, 24, "Does f.\nAnd more."),
            ("function", "g", 25, 25, ""),
            ("constant", "names", 28, 28, ""),
        ],
    ),
    "cpp": (
        CPP,
        [
            ("module", "", 1, 1, "Of the file."),
            ("class", "a::b::Foo", 5, 15, "Of Foo."),
            ("constant", "a::b::Foo::K", 7, 7, ""),
            ("function", "a::b::Foo::~Foo", 9, 9, ""),
            ("function", "a::b::Foo::operator+", 11, 11, "Adds. @{"),
            ("function", "a::b::Foo::operator bool", 12, 12, ""),
            ("class", "a::b::Foo::Kind", 14, 14, ""),
            ("function", "a::b::Foo::bar", 17, 17, ""),
            ("class", "a::b::Foo::bar::L", 17, 17, ""),
            ("function", "a::b::Foo::bar::L::z", 17, 17, ""),
            ("function", "Foo::baz", 18, 18, ""),
            ("function", "Foo::operator int", 19, 19, ""),
            ("function", "operator==", 21, 21, "Equal."),
            ("function", "F::operator()", 22, 22, ""),
            ("constant", "N", 23, 23, ""),
            ("constant", "s", 24, 24, ""),
            ("function", "z", 25, 25, ""),
            ("function", "y", 26, 26, ""),
            ("function", "spec", 27, 27, ""),
        ],
    ),
    "rust": (
        RUST,
        [
            ("module", "", 3, 4, "Of the crate.\nMore."),
            ("function", "f", 9, 9, "Does f.\nTwice."),
            ("function", "f.inner", 9, 9, ""),
            ("class", "S", 15, 18, "Of S."),
            ("function", "S.m", 21, 21, "Em."),
            ("constant", "S.Q", 22, 22, ""),
            ("function", "S.fmt", 24, 24, ""),
            ("class", "Tr", 25, 25, ""),
            ("function", "Tr.given", 25, 25, ""),
            ("class", "E", 26, 26, ""),
            ("constant", "N", 29, 29, "Three."),
            ("function", "inner.g", 30, 30, ""),
            ("function", "made", 31, 31, ""),
            ("function", "u8.z", 32, 32, ""),
            ("class", "U", 33, 33, ""),
        ],
    ),
    "csharp": (
        CSHARP,
        [
            ("module", "", 1, 1, "Of the file."),
            ("class", "Q.C", 8, 24, "Doc of Foo <b>.\n\nA number."),
            ("constant", "Q.C.K", 11, 11, ""),
            ("constant", "Q.C.L", 11, 11, ""),
            ("constant", "Q.C.S", 13, 13, "Ess"),
            ("function", "Q.C.C", 15, 15, ""),
            ("function", "Q.C.~C", 16, 16, ""),
            ("function", "Q.C.M", 17, 17, ""),
            ("function", "Q.C.P.get", 18, 18, ""),
            ("function", "Q.C.P.set", 18, 18, ""),
            ("function", "Q.C.operator +", 20, 20, ""),
            ("function", "Q.C.operator int", 21, 21, ""),
            ("function", "Q.C.G", 22, 22, ""),
            ("function", "Q.C.G.Local", 22, 22, ""),
            ("class", "Q.I", 25, 25, ""),
            ("function", "Q.I.Y", 25, 25, ""),
            ("class", "Q.E", 26, 26, ""),
            ("class", "Q.R", 27, 27, ""),
        ],
    ),
    "shell": (
        SHELL,
        [
            ("module", "", 1, 3, "Of the script,\nin two lines."),
            ("function", "f", 7, 7, "Does f."),
            ("function", "f.g", 7, 7, ""),
            ("function", "h", 8, 12, ""),
            ("constant", "a", 14, 14, "Ah."),
            ("constant", "B", 15, 15, ""),
            ("constant", "C", 16, 16, ""),
            ("constant", "D", 17, 17, ""),
        ],
    ),
    "typescript": (
        TYPESCRIPT,
        [
            ("module", "", 1, 1, "Of the module."),
            ("class", "I", 4, 4, "Of I."),
            ("class", "T", 5, 5, ""),
            ("class", "F", 7, 7, ""),
            ("class", "C", 10, 19, "Of C."),
            ("constant", "C.K", 12, 12, "Kay."),
            ("function", "C.x", 13, 13, ""),
            ("function", "C.over", 16, 16, ""),
            ("function", "C.m", 18, 18, "Em."),
            ("function", "N.M.f", 20, 20, ""),
            ("function", "N.M.f.g", 20, 20, ""),
            ("constant", "N.M.z", 20, 20, ""),
            ("constant", "A", 22, 22, "Values."),
            ("constant", "B", 22, 22, ""),
            ("function", "B.f", 22, 22, ""),
            ("function", "cast", 23, 23, ""),
        ],
    ),
    "tsx": (
        "/** Shows. */\nexport const W = ({a}: P) => <div a='b'>{a}</div>;\n",
        [("function", "W", 2, 2, "Shows.")],
    ),
    "javascript": (
        JAVASCRIPT,
        [
            ("module", "", 2, 3, "Of the module."),
            ("constant", "A", 6, 6, "Shared."),
            ("constant", "B", 6, 6, ""),
            ("function", "f1", 6, 6, "Shared."),  # as `functions` has it
            ("function", "B.g", 6, 6, ""),
            ("class", "K", 9, 9, "Of K."),
            ("constant", "K.S", 9, 9, ""),
            ("function", "K.m", 9, 9, ""),
            ("class", "Late", 12, 12, ""),
            ("function", "Late.m", 12, 12, ""),
            ("function", "f", 13, 13, ""),
            ("function", "f.g", 13, 13, ""),
            ("class", "f.In", 13, 13, ""),
            ("function", "f.In.m", 13, 13, ""),
            ("function", "kept", 14, 14, ""),
        ],
    ),
    "java": (
        JAVA,
        [
            ("module", "", 1, 1, "Of the file."),
            ("class", "A", 5, 13, "Of the class."),
            ("constant", "A.K", 8, 8, "Kay."),
            ("constant", "A.L", 8, 8, ""),
            ("class", "A.E", 10, 10, ""),
            ("function", "A.E.Y.q", 10, 10, ""),
            ("function", "A.m", 11, 11, ""),
            ("function", "A.m.run", 11, 11, ""),
            ("class", "I", 14, 14, ""),
            ("constant", "I.C", 14, 14, ""),
            ("class", "R", 15, 15, ""),
        ],
    ),
    "go": (
        GO,
        [
            ("module", "", 3, 3, "Package a is."),
            ("class", "T", 7, 7, "T is."),
            ("class", "U", 10, 10, "U is."),
            ("constant", "B", 15, 15, "Group."),
            ("constant", "C", 17, 17, "C is."),
            ("constant", "D", 19, 19, ""),
            ("function", "f", 21, 21, ""),
            ("class", "f.q", 21, 21, ""),
        ],
    ),
    "ruby": (
        RUBY,
        [
            ("module", "", 3, 3, "Of the library."),
            ("class", "A", 6, 13, "Of A."),
            ("constant", "A::K", 8, 8, "K is."),
            ("constant", "A::Pair", 9, 11, ""),
            ("function", "A::Pair.x", 10, 10, ""),
            ("function", "A.m", 12, 12, ""),
            ("function", "A.m.n", 12, 12, ""),
            ("class", "M", 15, 15, ""),
        ],
    ),
    "php": (
        PHP,
        [
            ("module", "", 2, 2, "Of the file."),
            ("constant", "K", 5, 5, "Kay."),
            ("constant", "L", 5, 5, ""),
            ("class", "B", 7, 7, "Of B."),
            ("constant", "B.Q", 7, 7, ""),
            ("function", "B.m", 7, 7, ""),
            ("function", "B.m.n", 7, 7, ""),
            ("class", "E", 8, 8, ""),
        ],
    ),
}


def test_every_language_has_a_sample():
    assert EXPECTED.keys() == set(SEARCHED)


@pytest.mark.parametrize("language", SEARCHED)
def test_samples(language):
    source, expected = EXPECTED[language]
    assert rows(source, language) == expected


@pytest.mark.parametrize("language", SEARCHED)
def test_functions_are_in_the_outline_as_they_are(language):
    source, _ = EXPECTED[language]
    rest = iter(outline(source, language))
    found = functions(source, language)
    assert found
    assert all(any(function == entry for entry in rest) for function in found)
    assert all(f.kind == "function" for f in found)


@pytest.mark.parametrize("language", SEARCHED)
def test_line_ends_change_nothing(language):
    source, expected = EXPECTED[language]
    assert rows(source.replace("\n", "\r\n"), language) == expected
    assert rows("\ufeff" + source, language) == expected


@pytest.mark.parametrize(
    "language", [language for language, (source, _) in EXPECTED.items() if "hidden" in source]
)
def test_tokens_of_classes_and_constants_leave_out_bodies(language):
    found = outline(EXPECTED[language][0], language)
    holding = {f.kind for f in found if "hidden" in f.tokens}
    assert holding == {"function"}


def test_tokens_of_classes():
    assert tokens(PYTHON, "python")["Shelf"] == (
        "class Shelf ( Base ) : size = 1 @ property def full ( self ) : class Inner :"
    )
    found = tokens(C, "c")
    assert found["S"] == (
        "struct S { int x ; int ( * call ) ( int ) ; struct { int y ; } in ; struct N n ; }"
    )
    assert found["T"] == "typedef struct { int y ; } T ;"
    assert found["MAX"] == "#define MAX 10"
    assert found["names"] == 'const char * names [ ] = { "a" , "b" } ;'
    found = tokens(RUST, "rust")
    assert found["E"] == "enum E { A ( i32 ) , C { d : u8 } }"
    assert (
        found["Tr"] == "trait Tr { fn declared ( & self ) ; fn given ( & self ) const NONE : u8 ; }"
    )
    assert tokens(CPP, "cpp")["a::b::Foo::K"] == "static constexpr int K = 3 ;"
    assert outline(PYTHON, "python")[0].tokens == ()


def test_source_begins_with_the_documentation():
    found = {f.name: f for f in outline(GO, "go")}
    assert found["U"].source == "// U is.\n U interface { M() }"
    assert found["U"].code == "U interface { M() }"
    module = outline(RUST, "rust")[0]
    assert (module.source, module.code) == ("//! Of the crate.\n//! More.", "")


@pytest.mark.parametrize(
    ("source", "language", "text"),
    [
        ("/** Of f. */\nfunction f() {}", "javascript", None),
        ("// License: free.\n// More.\n\nimport a", "javascript", None),
        ("// Copyright.\n\n// Of it.\n\nimport a", "javascript", "Of it."),
        ("import a\n/** Late. */\n\nimport b", "javascript", None),
        ("#!/bin/sh\nls", "shell", None),
        ("// plain\n\nfn f() {}", "rust", None),
        ("/*! Block. */\nfn f() {}", "rust", "Block."),
        ("# Of it.\n\nrequire 'x'", "ruby", "Of it."),
        ("# no docstring\nx()\n", "python", None),
        ("'Short'\n", "python", "Short"),
    ],
)
def test_documentation_of_the_file(source, language, text):
    found = [f.documentation for f in outline(source, language) if f.kind == "module"]
    assert found == ([] if text is None else [text])


@pytest.mark.parametrize(
    ("source", "language", "expected"),
    [
        ("class A { void whole() {} void broken( { = } }", "java", ["A", "A.whole"]),
        ("class A:\n    def g(self): pass\n    def b(self): x = = 1\n", "python", ["A", "A.g"]),
        ("const a = ;\nconst B = 1;\n", "javascript", ["B"]),
        ("struct S { int a; };\nint f( { = }\n", "c", ["S"]),
        ("fn broken( { = }\nstruct S;\n", "rust", ["S"]),
    ],
)
def test_errors_cost_what_they_hit(source, language, expected):
    assert [f.name for f in outline(source, language)] == expected


def test_a_large_table_is_cut():
    (entry,) = outline(f"TABLE = [{'1, ' * 5000}]\n", "python")
    assert len(entry.tokens) == trees.MOST_TOKENS


@pytest.mark.parametrize("module", ["textwrap", "typing", "json.decoder", "argparse"])
def test_the_standard_library(module):
    __import__(module)
    source = Path(sys.modules[module].__file__ or "").read_text(encoding="utf-8")
    rest = iter(outline(source, "python"))
    assert all(any(function == entry for entry in rest) for function in functions(source, "python"))


def well_formed(found: list[Function], source: str) -> bool:
    lines = source.replace("\r\n", "\n").replace("\r", "\n").count("\n") + 1
    return all(
        1 <= f.start_line <= f.end_line <= lines
        and (f.kind == "module") == (not f.name)
        and (f.kind == "module") == (not f.tokens)
        and ("\n" not in f.name or f.kind == "function")
        for f in found
    ) and [f.start_line for f in found] == sorted(f.start_line for f in found)


def place_of(function: Function) -> tuple[object, ...]:
    return function.name, function.kind, function.code, function.start_line, function.end_line


@pytest.mark.parametrize("language", SEARCHED)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_cut_of_a_sample(language, data):
    source = EXPECTED[language][0]
    first = data.draw(st.integers(0, len(source)))
    last = data.draw(st.integers(first, len(source)))
    middle = data.draw(st.text("{}()[]\"'`#/*\\\n\r é=<>:;", max_size=4))
    for text in (source[first:last] + middle, source[:first] + middle + source[last:]):
        found = outline(text, language)
        assert well_formed(found, text)
        # A comment that `functions` gives to one may document a broken class, where both are cut.
        rest = map(place_of, found)
        assert all(any(place_of(f) == at for at in rest) for f in functions(text, language))


def test_languages_by_suffix():
    paths = """a.ts b.mts c.CTS d.tsx e.c f.h g.cc h.cpp i.cxx j.hpp k.hh l.hxx m.rs n.cs o.sh
    p.bash q.txt"""
    expected = ["typescript"] * 3 + ["tsx", "c", "c"] + ["cpp"] * 6
    expected += ["rust", "csharp", "shell", "shell", None]
    assert [language_of(path) for path in paths.split()] == expected


def test_unknown_languages_and_missing_wheels(monkeypatch):
    for work in (outline, functions):
        with pytest.raises(ValueError, match=r"'cobol': known are python.*shell"):
            work("", "cobol")
    trees._language.cache_clear()
    monkeypatch.setitem(sys.modules, "tree_sitter_c_sharp", None)
    with pytest.raises(ImportError, match="pip install tree-sitter-c-sharp"):
        outline("class A {}", "csharp")


def test_entries_can_be_written_as_json():
    for source, language in ((r'"\ud800"', "python"), ("# \ud800\n\nA = '\ud800'", "ruby")):
        json.dumps([list(row) for row in rows(source, language)]).encode()
        assert all(f.documentation.encode() or f.source.encode() for f in outline(source, language))
