"""The corpus in JavaScript, Go, PHP, Ruby and Java: archives, licences, rules, whole builds."""

import gzip
import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import data
from benchmarks.miniatures import debian
from benchmarks.miniatures.code import builder, corpus, listing
from benchmarks.miniatures.code.builder import LANGUAGES
from benchmarks.miniatures.code.languages import (
    LONGEST_LINE,
    OTHERS,
    debian_files,
    debian_licence,
    npm_files,
    npm_licence,
    rdoc_query,
    source_files,
    tagged_query,
)
from benchmarks.miniatures.debian import DebianArchive, DebianSource, Terms, and_sources
from methods.cascode.extraction import Function, functions
from shared.data.errors import DataCorruptError, DataNotFoundError

SPLITS = ("train", "valid", "test", "codebase")
NAMES = tuple(language.name for language in OTHERS)
TEXTS = {  # a whole file, and one of its functions
    "javascript": (
        "{}",
        "/**\n * {doc}\n * @param {{Thing}} first The first.\n */\n"
        "function {name}(first, second) {{\n"
        "  const {w}0 = first.{w}1({w}2); // comment\n  const {w}3 = second.{w}4({w}5);\n"
        "  return {w}6({w}3, {w}7);\n}}\n\n",
    ),
    "go": (
        "package a\n\n{}",
        "// {doc}\nfunc {name}(first, second *Thing) int {{\n"
        "\t{w}0 := first.{w}1({w}2) // comment\n"
        "\t{w}3 := second.{w}4({w}5)\n\treturn {w}6({w}3, {w}7)\n}}\n\n",
    ),
    "php": (
        "<?php\nclass A {{\n{}}}\n",
        "    /**\n     * {doc}\n     * @return int\n     */\n"
        "    public function {name}($first, $second) {{\n"
        "        ${w}0 = $first->{w}1(${w}2); // comment\n"
        "        ${w}3 = $second->{w}4(${w}5);\n        return {w}6(${w}3, ${w}7);\n    }}\n\n",
    ),
    "ruby": (
        "module A\n{}end\n",
        "  # {doc}\n  # :nocov:\n  def {name}(first, second)\n"
        "    {w}0 = first.{w}1({w}2) # comment\n"
        "    {w}3 = second.{w}4({w}5)\n    {w}6({w}3, {w}7)\n  end\n\n",
    ),
    "java": (
        "class A {{\n{}}}\n",
        "    /**\n     * {doc}\n     * @return it\n     */\n"
        "    int {name}(Thing first, Thing second) {{\n"
        "        int {w}0 = first.{w}1({w}2); // comment\n"
        "        int {w}3 = second.{w}4({w}5);\n        return {w}6({w}3, {w}7);\n    }}\n\n",
    ),
}
SUFFIXES = {"javascript": ".js", "go": ".go", "php": ".php", "ruby": ".rb", "java": ".java"}
MIT = "Format: 1.0\n\nFiles: *\nCopyright: 2020 The people\nLicense: Expat\n Terms.\n"


def text_of(language: str, *names: str) -> str:
    """A file of functions with enough identifiers, unlike those of other names."""
    whole, one = TEXTS[language]
    parts = [one.format(name=n, w=f"{n}w", doc=f"Return the {n} of this thing.") for n in names]
    return whole.format("".join(parts))


def tarred(files: Mapping[str, str | bytes], compression: str = "xz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{compression}") as tar:
        for path, text in files.items():
            member = tarfile.TarInfo(path)
            content = text.encode() if isinstance(text, str) else text
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def ar(members: Mapping[str, bytes]) -> bytes:
    out = b"!<arch>\n"
    for name, content in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        out += b"\n" * (len(content) % 2)
    return out


def deb(path: Path, files: Mapping[str, str | bytes], about: str | None = MIT) -> Path:
    """A .deb as dpkg lays it out; its control archive has an odd size."""
    terms = {} if about is None else {"./usr/share/doc/a/copyright": about}
    content = tarred({f"./{name}": text for name, text in files.items()} | terms)
    path.write_bytes(ar({"debian-binary": b"2.0\n", "control.tar": b"odd", "data.tar.xz": content}))
    return path


def tgz(path: Path, files: Mapping[str, str | bytes], about: Mapping[str, Any]) -> Path:
    """What `npm pack` gives."""
    content = {"package/package.json": json.dumps(about)}
    content |= {f"package/{name}": text for name, text in files.items()}
    path.write_bytes(tarred(content, "gz"))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def packed(language: str, folder: Path, name: str) -> dict[str, Any]:
    """Write a package of the language's kind; returns its entry in the list of packages."""
    suffix = SUFFIXES[language]
    one, two = f"src/one{suffix}", f"src/two{suffix}"
    if language == "ruby":  # the suffix alone does not make a path
        one, two = f"lib/{name}/one.rb", f"lib/{name}/two.rb"
    texts: dict[str, str | bytes] = {
        one: text_of(language, f"{name}One", f"{name}Two"),
        two: text_of(language, f"{name}Three", "sameOne"),  # the last one in all packages
        f"src/tests/three{suffix}": text_of(language, "unseen"),
        f"vendor/four{suffix}": text_of(language, "copied"),
        f"src/five{suffix}": b"\xff",
        "src/data.txt": "no source",
    }
    if language == "javascript":
        about = {"license": "MIT", "author": "The people <a@b> (c)"}
        path = tgz(folder / f"{name}-1.0.0.tgz", texts | {"LICENSE": "Terms."}, about)
        return {"name": name, "version": "1.0.0", "sha256": sha256(path)}
    if language == "java":
        path = folder / f"{name}_1.0.orig.tar.xz"
        path.write_bytes(tarred({f"{name}-1.0/{p}": text for p, text in texts.items()}))
        packaging = folder / f"{name}_1.0-1.debian.tar.xz"
        packaging.write_bytes(tarred({"debian/copyright": MIT, "debian/rules": ""}))
        return {
            **{"archive": path.name, "sha256": sha256(path)},
            **{"packaging": packaging.name, "packaging_sha256": sha256(packaging)},
        }
    texts = {f"usr/share/{name}/{p}": text for p, text in texts.items()}
    path = deb(folder / f"{name}_1%3a1.0-1_all.deb", texts)
    return {"archive": path.name, "sha256": sha256(path)}


def pin(
    language: str, entries: list[dict[str, Any]], folder: Path, patch: pytest.MonkeyPatch
) -> None:
    """Make `entries` the list of the language's packages, and `folder`/archives where they are."""
    content = {
        "pinned": "2026-11-25",
        "targets": {"test": 3, "valid": 3},
        "families": [["b", "a"]],
        "packages": [entry | {"pairs": 3, "small": True} for entry in entries],
    }
    (folder / f"{language}.yaml").write_text(yaml.safe_dump(content))
    patch.setenv("TENFOLD_SOURCES", str(folder / "archives"))
    patch.setenv("TENFOLD_CACHE", str(folder / "cache"))
    load = listing.load
    patch.setattr(builder, "load", lambda of: load(of, folder))


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    splits = {}
    for name in SPLITS:
        with gzip.open(folder / f"{name}.jsonl.gz", "rt") as file:
            splits[name] = [json.loads(line) for line in file]
    return splits


@pytest.mark.parametrize("language", NAMES)
def test_a_whole_build(language: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "archives").mkdir()
    entries = [packed(language, tmp_path / "archives", name) for name in "abcd"]
    pin(language, entries, tmp_path, monkeypatch)
    provenance = corpus(tmp_path / "one", "full", (language,))
    folder = tmp_path / "one" / language
    splits = read(folder)
    rows = splits["train"] + splits["codebase"]
    scheme = {"javascript": "npm", "java": "debsrc"}.get(language, "deb")
    for row in rows:
        place, _, span = row["url"].partition("#")
        assert place == f"{scheme}://{provenance_archive(entries, row)}/{row['path']}"
        lines = archived(tmp_path / "archives", language, row).split("\n")
        first, last = (int(part[1:]) for part in span.split("-"))
        assert "\n".join(lines[first - 1 : last]).strip() == row["code"]
        assert row["original_string"].endswith(row["code"])
        assert row["docstring"] in row["original_string"].replace("     * ", "").replace(" * ", "")
        name = row["func_name"].replace("::", ".").rpartition(".")[2]
        assert row["docstring"].startswith(f"Return the {name} of this thing.")
        assert "nocov" not in row["docstring"]
        assert " ".join(row["docstring_tokens"]) == f"Return the {name} of this thing ."
        assert "comment" in row["code"]
        assert not {"comment", "//", "/**"} & set(" ".join(row["code_tokens"]).split())
    found = {row["func_name"].replace("::", ".").rpartition(".")[2] for row in rows}
    assert found == {f"{n}{i}" for n in "abcd" for i in ("One", "Two", "Three")} | {"sameOne"}
    assert [row["repo"] for row in rows if "sameOne" in row["func_name"]] == ["a"]
    partition = {row["repo"]: row["partition"] for row in rows}
    assert partition["a"] == partition["b"]
    assert set(partition.values()) == {"train", "valid", "test"}

    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["counts"] == {
        **{"files": 20, "file: test": 4, "file: vendored": 4, "file: not UTF-8": 4},
        **{"functions": 16, "duplicate": 3},
    }
    assert set(manifest["tools"]) == {"python", "scipy", "tree-sitter", f"tree-sitter-{language}"}
    assert {(p["licence"], p["accepted"]) for p in manifest["packages"]} == {("MIT", 4)}
    versions = {"javascript": "1.0.0", "java": "1.0-1"}
    version = versions.get(language, "1:1.0-1")
    assert {p["version"] for p in manifest["packages"]} == {version}
    notice = (folder / "NOTICE.md").read_text()
    holder = "The people" if language == "javascript" else "2020 The people"
    assert f"- a {version} by {holder}: MIT\n" in notice
    assert "Terms." in notice

    assert (folder / "train.jsonl.gz").read_bytes()[4:8] == bytes(4)  # no time
    assert corpus(tmp_path / "two", "small", (language,)).keys() == provenance.keys()
    for name in SPLITS:  # all packages are in both profiles; only the manifest names the profile
        archive = f"{name}.jsonl.gz"
        assert (tmp_path / "two" / language / archive).read_bytes() == (
            folder / archive
        ).read_bytes()
    again = corpus(tmp_path / "three", "full", (language,))
    assert again == provenance


def provenance_archive(entries: list[dict[str, Any]], row: dict[str, Any]) -> str:
    (name,) = (
        entry.get("archive", f"{entry.get('name')}-1.0.0.tgz")
        for entry in entries
        if entry.get("archive", entry.get("name", "")).startswith(row["repo"])
    )
    return str(name)


def archived(folder: Path, language: str, row: dict[str, Any]) -> str:
    """The text of a row's file, from the archive."""
    (archive,) = (p for p in folder.glob(f"{row['repo']}[-_]*") if ".debian." not in p.name)
    files = {f.path: f.text for f in LANGUAGES[language].files(archive)}
    return files[row["path"]]


def test_two_languages_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "archives").mkdir()
    for language, names in (("go", "abc"), ("ruby", "def")):
        entries = [packed(language, tmp_path / "archives", name) for name in names]
        pin(language, entries, tmp_path, monkeypatch)
    assert set(corpus(tmp_path / "out", languages=("go", "ruby"))) == {
        *("code-go", "code-go-packages", "code-ruby", "code-ruby-packages"),
    }
    languages = sorted(p.parent.name for p in (tmp_path / "out").glob("*/train.jsonl.gz"))
    assert languages == ["go", "ruby"]
    assert {row["language"] for row in read(tmp_path / "out" / "ruby")["codebase"]} == {"ruby"}


@pytest.mark.parametrize("terms", ["GPL-3+", "Expat and GPL-2", "Proprietary"])
def test_a_licence_that_is_not_permissive_is_refused(
    terms: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "archives").mkdir()
    files = {"usr/a.go": text_of("go", "a")}
    path = deb(tmp_path / "archives" / "a_1_all.deb", files, MIT.replace("Expat", terms))
    pin("go", [{"archive": path.name, "sha256": sha256(path)}], tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=r"a: licence '.*' .* out of packages/go.yaml"):
        corpus(tmp_path / "out", languages=("go",))
    assert not (tmp_path / "out" / "go").exists()


@pytest.mark.parametrize(
    ("language", "kept", "vendored"),
    [
        (
            "javascript",
            ["a/distance.js", "a/es.js", "a/minimum.js", "lib/builds.mjs"],
            [
                *("a/dist/b.js", "build/b.js", "a/umd/b.js", "cjs/b.cjs", "es/b.js", "min/b.js"),
                *("a/libs/b.js", "node_modules/b/c.js", "vendor/b.js", "a/b.min.js"),
            ],
        ),
        ("go", ["vendored.go", "a/vendors.go"], ["vendor/b.go", "a/vendor/b/c.go"]),
        ("php", ["a/vendors/b.php"], ["vendor/b.php"]),
        ("ruby", ["usr/lib/ruby/vendor_ruby/a.rb"], ["a/vendor/b.rb"]),
        ("java", ["a/B.java"], ["a/vendor/B.java"]),
    ],
)
def test_skipped_paths(language: str, kept: list[str], vendored: list[str]) -> None:
    paths = [*kept, *vendored, f"a/b_test.{language}", "a/Testing/b"]
    found = {
        f.path: (f.text, f.problem) for f in source_files(language, dict.fromkeys(paths, b"x"))
    }
    assert found == {
        **dict.fromkeys(kept, ("x", None)),
        **dict.fromkeys(vendored, ("", "vendored")),
        **dict.fromkeys(paths[-2:], ("", "test")),
    }


@pytest.mark.parametrize(
    ("language", "text", "problem"),
    [
        ("javascript", "a" * LONGEST_LINE + "\nb", None),
        ("javascript", "b\n" + "a" * (LONGEST_LINE + 1), "generated"),
        (
            "go",
            "// Copyright\n\n// Code generated by a tool. DO NOT EDIT.\n\npackage a",
            "generated",
        ),
        ("go", "package a\n// Code generated by hand.\n", None),
        ("go", "package a // Code generated by x. DO NOT EDIT.\n", None),
        ("php", "", None),
        ("java", "a" * (LONGEST_LINE + 1), None),
    ],
)
def test_generated_files(language: str, text: str, problem: str | None) -> None:
    (file,) = source_files(language, {"a": text.encode()})
    assert (file.text, file.problem) == ("" if problem else text, problem)


def function(language: str, name: str, documentation: str, code: str = "") -> Function:
    code = code or "a {\n  b\n}"
    return Function(name, language, code, code, tuple(code.split()), documentation, 1, 3)


@pytest.mark.parametrize(
    ("language", "name", "documentation", "reason"),
    [
        ("go", "Do", "Do it for the rest.", None),
        ("go", "Do", "", "undocumented"),
        ("go", "toString", "Return the text of it.", None),
        ("javascript", "A.toString", "Return the text of it.", "name"),
        ("javascript", "A.constructor", "Make a new one of it.", "name"),
        ("java", "A.hashCode", "Return the hash of it.", "name"),
        ("java", "A.B", "Make a new one of it.", None),
        ("java", "A.B.B", "Make a new one of it.", "name"),
        ("javascript", "A.A", "Make a new one of it.", None),
        ("java", "A.f", "{@inheritDoc}\nAnd it does the rest.", "inherited documentation"),
        ("php", "A.f", "Do it.\n\n@inheritdoc", "inherited documentation"),
        ("php", "A.__get", "Return the value of it.", "name"),
        ("php", "A._get", "Return the value of it.", None),
        ("ruby", "A::B.<=>", "Return the order of it.", "name"),
        ("ruby", "A::B.initialize", "Make a new one of it.", "name"),
        ("ruby", "A::B.[]", "Return the value of it.", None),
        ("java", "A.latest", "Return the last of it.", "name"),
        ("java", "A.f", "Return the {@link Last} of it.", "query: cut"),
        ("java", "A.f", "Return the {@link Last} of it.\n\nMore.", None),
        ("java", "A.f", "@return the last of it", "query: short"),
        ("java", "A.f", "Return <p>the last of it.", "query: markup"),
        ("php", "A.f", "Ouvre et lit ce fichier", "query: language"),
    ],
)
def test_what_of_a_function_leaves_it_out(
    language: str, name: str, documentation: str, reason: str | None
) -> None:
    of = LANGUAGES[language]
    assert of.problem(function(language, name, documentation), of.query(documentation)) == reason


def test_short_functions_and_those_that_quote_their_documentation() -> None:
    go = LANGUAGES["go"]
    documentation = "Do it for the rest."
    query = go.query(documentation)
    assert go.problem(function("go", "f", documentation, "a {\n\nb }"), query) == "few lines"
    quoting = f'a {{\n  b("{documentation}")\n}}'
    assert go.problem(function("go", "f", documentation, quoting), query) == "quoted"


def test_queries_without_tags_and_markup() -> None:
    assert tagged_query("Do it now.\n@param a That\n\nMore.") == ["Do", "it", "now", "."]
    assert tagged_query("  @private\nDo it.") == []
    assert tagged_query("Mail a@b to us.\n\n@x") == ["Mail", "a@b", "to", "us", "."]
    assert " ".join(tagged_query("Like {@link a} of it.\n@x")) == "Like {"
    assert " ".join(tagged_query("Like {@link a} of it.\n \n@x")) == "Like { @link a } of it ."
    marked = "Give <tt>x.y</tt> to +File.open+, <em>a</em>+b and 1 + 2 + 3."
    plain = "Give x . y to File . open a + b and 1 + 2 + 3 ."
    assert " ".join(rdoc_query(marked)) == plain


@pytest.mark.parametrize("language", NAMES)
def test_the_texts_of_this_file_hold_their_functions(language: str) -> None:
    names = [f.name for f in functions(text_of(language, "one", "two"), language)]
    assert [name.replace("::", ".").rpartition(".")[2] for name in names] == ["one", "two"]


@pytest.mark.parametrize(
    ("about", "name", "holder"),
    [
        ({"license": "MIT", "author": {"name": "A B", "email": "x@y"}}, "MIT", "A B"),
        ({"license": "ISC", "author": "A B <x@y> (page)"}, "ISC", "A B"),
        ({"license": "0BSD", "contributors": [{"name": "C"}, "D"]}, "0BSD", "C"),
        ({"author": ""}, "unknown", "its authors"),
    ],
)
def test_licences_of_npm(about: dict[str, Any], name: str, holder: str, tmp_path: Path) -> None:
    files = {"LICENSE.md": "Terms.", "NOTICE": "And this.", "lib/LICENSE": "Not this."}
    found = npm_licence(tgz(tmp_path / "a.tgz", files, about))
    assert (found.name, found.holder, found.text) == (name, holder, "Terms.\n\nAnd this.")


def test_files_of_npm_are_named_below_the_package(tmp_path: Path) -> None:
    path = tgz(tmp_path / "a.tgz", {"b.js": "x", "a/c.mjs": "y", "d.ts": "z"}, {})
    assert [(f.path, f.text) for f in npm_files("javascript", path)] == [
        ("a/c.mjs", "y"), ("b.js", "x")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("short", "name"),
    [
        ("Expat", "MIT"),
        ("BSD-3-clause", "BSD-3-Clause"),
        ("Apache-2", "Apache-2.0"),
        ("Expat or GPL-2+", "MIT OR GPL-2+"),
        ("Expat, and Zlib", "MIT AND Zlib"),
        ("", ""),
    ],
)
def test_licences_of_debian(short: str, name: str, tmp_path: Path) -> None:
    about = MIT.replace("Expat", short)
    found = debian_licence(deb(tmp_path / "a_1_all.deb", {}, about))
    assert (found.name, found.holder, found.text) == (name, "2020 The people", about.strip())


MIXED = """Format: 1.0
Files-Excluded: x

Files: *
Copyright: A
License: Expat

Files: lib/free/*
  main.go
Copyright: B
  C
License: BSD-3-clause and Expat
 Terms.
 .
 Files: all

Files: lib/copyleft/*.go lib/one?.go
Copyright: D
License: GPL-2 and Expat

Files: lib/either/*
Copyright: D
License: GPL-2 or Expat

Files: debian/*
Copyright: E
License: GPL-3

Files: debian/rules lib/packager.go
Copyright: E
License: GPL-3

License: GPL-3
 More terms.
"""


def test_files_under_other_terms_are_left_out(tmp_path: Path) -> None:
    left_out = ["lib/copyleft/a/b.go", "lib/copyleft/c.go", "lib/ones.go", "lib/packager.go"]
    kept = ["lib/copyleft.go", "lib/either/a.go", "lib/free/a.go", "lib/one.go", "main.go"]
    home = "usr/share/gocode/src/a/"
    path = deb(tmp_path / "a_1_all.deb", {home + p: "x" for p in left_out + kept}, MIXED)
    found = {f.path.removeprefix(home): (f.text, f.problem) for f in debian_files("go", path)}
    assert found == {
        **dict.fromkeys(left_out, ("", "licence")),
        **dict.fromkeys(kept, ("x", None)),
    }
    assert debian_licence(path).name == "MIT"


def test_paragraphs_of_a_copyright_file() -> None:
    found = debian.read_copyright(MIXED)
    assert found[:2] == [
        Terms(("*",), "Expat", "A"),
        Terms(("lib/free/*", "main.go"), "BSD-3-clause and Expat", "B C"),
    ]
    assert found[-1] == Terms(("lib/packager.go",), "GPL-3", "E")
    assert len(found) == 5
    assert debian.read_copyright("This is free.\n\nUse it as you like: really.") == []


def test_free_texts_and_packages_without_copyright(tmp_path: Path) -> None:
    free = deb(tmp_path / "a_1_all.deb", {}, "You may do as you like.")
    assert debian_licence(free).name == "unknown"
    bare = deb(tmp_path / "b_1_all.deb", {"usr/a.go": "x", "usr/copyright": MIT}, None)
    for read_it in (debian_licence, lambda path: list(debian_files("go", path))):
        with pytest.raises(DataCorruptError, match=r"b_1_all.deb: no debian/copyright"):
            read_it(bare)


def test_the_packaging_of_a_source_archive_is_the_one_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a_1.0.orig.tar.gz"
    path.write_bytes(tarred({"a-1.0/debian/copyright": MIT.replace("Expat", "GPL-3")}, "gz"))
    with pytest.raises(DataCorruptError, match=r"a_1.0.orig.tar.gz: 0 files a_1.0-\*.*java.yaml"):
        debian_licence(path)
    (tmp_path / "ab_1.0-1.debian.tar.xz").write_bytes(b"another package's")
    (tmp_path / "a_1.0-2.debian.tar.xz").write_bytes(tarred({"debian/copyright": MIT}))
    assert debian_licence(path).name == "MIT"
    (tmp_path / "a_1.0-3.debian.tar.xz").write_bytes(tarred({"debian/copyright": MIT}))
    with pytest.raises(DataCorruptError, match="2 files"):
        debian_licence(path)


def test_corrupt_archives_are_named(tmp_path: Path) -> None:
    whole = deb(tmp_path / "a_1_all.deb", {"usr/a.go": os.urandom(5000)}).read_bytes()
    content = tarred({"./usr/a.go": "x"})
    damaged = {
        "text": b"no archive",
        "cut in a header": whole[:90],
        "cut in the data": whole[:-2000],
        "no data": ar({"debian-binary": b"2.0\n", "control.tar": b"odd"}),
        "no size": ar({"data.tar.xz": content}).replace(f"{len(content):<10}".encode(), b"x" * 10),
        "no tar": ar({"data.tar.xz": b"no tar archive"}),
    }
    path = tmp_path / "b_1_all.deb"
    for what, content in damaged.items():
        path.write_bytes(content)
        with pytest.raises(DataCorruptError, match=r"b_1_all.deb: ") as raised:
            list(debian_files("go", path))
        assert "no debian/copyright" not in str(raised.value), what
    text = "".join(str(i * i) for i in range(5000))
    npm = tgz(tmp_path / "a.tgz", {"a.js": text}, {"license": "MIT"})
    whole = npm.read_bytes()
    middle = len(whole) // 2
    for content in (whole[:middle], whole[:middle] + bytes(400) + whole[middle + 400 :]):
        npm.write_bytes(content)
        with pytest.raises(DataCorruptError, match=r"a.tgz: can't be read"):
            list(npm_files("javascript", npm))
    npm = tgz(tmp_path / "b.tgz", {}, {"license": text})
    whole = npm.read_bytes()
    middle = len(whole) // 2
    for content in (b"", whole[:middle] + bytes(400) + whole[middle + 400 :]):
        npm.write_bytes(content)
        with pytest.raises(DataCorruptError, match=r"b.tgz: package/package.json can't be read"):
            npm_licence(npm)


def test_names_of_debian_archives() -> None:
    found = debian.binary("golang-x-net-dev_1%3a0.27.0-2_all.deb", "f" * 64)
    assert (found.name, found.version, found.source) == ("golang-x-net-dev", "1:0.27.0-2", False)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "# a comment\ndeb place/debian trixie main\ndeb-src place/debian trixie main\n"
            "deb [arch=amd64 trusted=yes] place/debian sid main contrib\n"
            "deb [trusted=yes] file:/folder ./\n#deb place/debian old main\n",
            ["deb-src place/debian trixie main",
             "deb-src [arch=amd64 trusted=yes] place/debian sid main contrib"],
        ),
        (
            "# a comment\nTypes: deb\nURIs: place/debian\nSuites: trixie trixie-updates\n"
            "Components: main\n\nTypes: deb\nURIs: file:/folder\nSuites: ./\n\n"
            "Types: deb deb-src\nURIs: other/debian\nSuites: sid\nComponents: main",
            ["Types: deb deb-src", "Types: deb", "Types: deb deb-src"],
        ),
    ],
)  # fmt: skip
def test_lists_with_source_packages(before: str, after: list[str]) -> None:
    found = and_sources(before)
    if "Types:" in before:
        assert [line for line in found.split("\n") if line.startswith("Types:")] == after
        keep = [line for line in before.split("\n") if not line.startswith("Types:")]
        assert [
            line for line in found.rstrip("\n").split("\n") if not line.startswith("Types:")
        ] == keep
    else:
        assert found.startswith(before)
        assert found.removeprefix(before).strip().split("\n") == after


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with two lists of package sources and a stand-in for apt; returns its folder."""
    parts = tmp_path / "etc" / "sources.list.d"
    parts.mkdir(parents=True)
    (tmp_path / "etc" / "sources.list").write_text("deb place/debian trixie main\n")
    (parts / "more.sources").write_text("Types: deb\nURIs: place/more\nSuites: trixie\n")
    (parts / "more.sources.save").write_text("not read by apt")
    (tmp_path / "made").mkdir()
    client = tmp_path / "bin" / "apt-get"
    client.parent.mkdir()
    client.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nmkdir -p {tmp_path}/seen\n'
        f'cp -r "$2" "$(dirname "$2")"/sources.list.d {tmp_path}/seen\n'
        f'case "$*" in *update) exit 0;; esac\ncp {tmp_path}/made/* . || exit 100\n'
    )
    client.chmod(client.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(debian, "SYSTEM", tmp_path / "etc")
    monkeypatch.setenv("PATH", f"{client.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TENFOLD_SOURCES", raising=False)
    return tmp_path


def state(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_text())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_packages_are_fetched_by_apt_with_lists_of_its_own(system: Path) -> None:
    before = state(system / "etc")
    path = deb(system / "made" / "a_1%3a1.0-1_all.deb", {})
    wanted = debian.binary(path.name, sha256(path))
    assert debian.fetch([wanted]) == [system / "cache" / "packages" / path.name]
    assert debian.fetch([wanted])[0].read_bytes() == path.read_bytes()  # this time without apt
    update, download = (system / "calls").read_text().splitlines()
    assert update.endswith(" --quiet update")
    assert download.endswith(" --quiet download a=1:1.0-1")
    assert state(system / "etc") == before

    private = Path(update.split()[1]).parent
    assert update.split()[0] == "-c"
    assert not private.exists()
    settings = dict(
        line.rstrip(";").split(" ", 1)
        for line in (system / "seen" / "apt.conf").read_text().splitlines()
    )
    for key in ("Dir::Etc::sourcelist", "Dir::Etc::sourceparts", "Dir::State::lists", "Dir::Cache"):
        assert settings[key].strip('"').startswith(f"{private}/")
    parts = system / "seen" / "sources.list.d"
    assert {p.name: p.read_text() for p in parts.iterdir()} == {
        "sources.list": (system / "etc" / "sources.list").read_text(),
        "more.sources": (system / "etc" / "sources.list.d" / "more.sources").read_text(),
    }


def test_source_packages_are_fetched_with_their_packaging(system: Path) -> None:
    before = state(system / "etc")
    names = ("a_1.0.orig.tar.xz", "a_1.0-1.debian.tar.xz")
    original, packaging = (system / "made" / name for name in names)
    original.write_bytes(tarred({"a-1.0/A.java": "x"}))
    packaging.write_bytes(tarred({"debian/copyright": MIT}))
    (source,) = [
        DebianSource("a", "1.0-1", original.name, sha256(original),
                     packaging=packaging.name, packaging_sha256=sha256(packaging))
    ]  # fmt: skip
    (found,) = debian.fetch_sources([source])
    assert found == system / "cache" / "packages" / original.name
    assert debian_licence(found).name == "MIT"
    assert [f.text for f in debian_files("java", found)] == ["x"]
    calls = [line.partition(" --quiet ")[2] for line in (system / "calls").read_text().splitlines()]
    assert calls == [
        "update",
        "source --download-only --tar-only a=1.0-1",
        "source --download-only --diff-only a=1.0-1",
    ]
    assert state(system / "etc") == before
    parts = system / "seen" / "sources.list.d"
    assert "deb-src place/debian trixie main" in (parts / "sources.list").read_text()
    assert "Types: deb deb-src\n" in (parts / "more.sources").read_text()
    packaging.unlink()
    (system / "cache" / "packages" / packaging.name).write_bytes(b"damaged")
    with pytest.raises(DataCorruptError, match=r"a_1.0-1.debian.tar.xz: sha256 .* of a@1.0-1"):
        debian.fetch_sources([source])


def test_versions_that_the_machine_does_not_have(system: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"(?s)a_2_all.deb.*apt-get: exit status 100.*apt"):
        debian.fetch([DebianArchive("a", "2", "a_2_all.deb", "0" * 64)])


def test_without_apt(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(system))
    with pytest.raises(DataNotFoundError, match=r"(?s)no apt client.*Use a machine with apt"):
        debian.fetch([DebianArchive("a", "2", "a_2_all.deb", "0" * 64)])


@pytest.mark.parametrize(
    ("language", "packages", "test", "valid"),
    [
        ("javascript", 15, {"lodash", "socket.io", "webpack"}, {"matter-js"}),
        ("go", 7, {"golang-gonum-v1-gonum-dev"}, {"golang-google-grpc-dev"}),
        (
            "php",
            7,
            {"php-monolog", "php-nesbot-carbon"},
            {"php-guzzlehttp-guzzle", "php-parser"},
        ),
        ("ruby", 8, {"ruby-graphql", "ruby-sinatra"}, {"rubocop"}),
        ("java", 3, {"commons-math3"}, {"jsoup"}),
    ],
)
def test_the_pinned_lists(language: str, packages: int, test: set[str], valid: set[str]) -> None:
    pinned = listing.load(LANGUAGES[language])
    assert len(pinned.packages) == packages
    assert pinned.of("small") == pinned.of("full")
    of = {p: {n for n, of in pinned.partitions.items() if of == p} for p in listing.PARTITIONS}
    assert (of["test"], of["valid"]) == (test, valid)
    assert of["train"]
    checksums = [package.sha256 for package in pinned.packages]
    checksums += [p.packaging_sha256 for p in pinned.packages if isinstance(p, DebianSource)]
    assert len(set(checksums)) == len(checksums)
    assert {len(checksum) for checksum in checksums} == {64}


def test_languages_and_profile_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [f"source.root={tmp_path}", "source.profile=full", "source.languages=[go,php]"]
    (source,) = data.sources_of("cascode", overrides=overrides)
    assert (source.root, source.profile) == (str(tmp_path), "full")
    assert source.languages == ["go", "php"]
    assert data.main(["cascode", *overrides[:2], "source.languages=[cobol]"]) == 1
    assert capsys.readouterr().err.startswith("data: no packages of cobol: known are python, ")
    made = {"code-go": {"licence": "MIT", "files": {"a.gz": "0" * 64}}}
    monkeypatch.setattr(data, "call", lambda source: made if source.languages else {})
    assert data.main(["cascode", *overrides]) == 0
    assert capsys.readouterr().out == f"code-go: {tmp_path} (licence MIT)\n  {'0' * 64}  a.gz\n"
    assert data.main(["cascode", "source.rot=x"]) == 1
    assert "did you mean source.root?" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("language", NAMES)
def test_the_pinned_packages_give_what_their_list_says(language: str, tmp_path: Path) -> None:
    try:
        corpus(tmp_path, languages=(language,))
    except DataNotFoundError as error:
        pytest.skip(str(error))
    packages = json.loads((tmp_path / language / "manifest.json").read_text())["packages"]
    found = {package["name"]: package["without duplicates"] for package in packages}
    content = yaml.safe_load((listing.FOLDER / f"{language}.yaml").read_text())
    pinned = LANGUAGES[language].pinned
    assert found == {pinned(e).name: e["pairs"] for e in content["packages"]}
