"""Sections of documents and configuration: names, texts, lines."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.cascode.extraction.documents import document_language_of, documents

Row = tuple[str, int, int, str]


def rows(source: str, name: str) -> list[Row]:
    return [(f.name, f.start_line, f.end_line, f.documentation) for f in documents(source, name)]


MARKDOWN = """---
title: in front
---
Before.

# One #
text
## Two ##
```sh
# no heading
```

Three
=====

- item
---
two lines
of text
---
    # code
#none
####### none
### C#
###
~~~
# open
"""
RST = """=====
Title
=====

Intro.

Sub
---
text::

    Literal
    -------

Sub 2
-----
=====  ====
a      b
=====  ====

Deep
~~~~~
x

Too long a title
----
"""
TOML = '''# Licence.
name = "x"
text = """
[no]
"""
array = [
  "a",
]

# About tool.
[tool.a]
k = 1
[[bin]]  # again
k = 2
["quoted"]
'''
INI = """top = 1
; Of one.
[one]
a = 1
# b
[two words]
  [indented]
plain: 2
"""
YAML = """# Of on.
---
"on": &anchor
  push: [a]
jobs:
  a: *anchor
  # inside
# Of list.
list:
- b: 1
key with space: 1
url: http://x:1
"""
JSON = """{ // don't "
  "name": "a\\"{",
  "scripts": {"a": {"b": ["c"]}, "name": "d"}, "e": [1,
  {"f": 2}]
}
"""


@pytest.mark.parametrize(
    ("source", "name", "expected"),
    [
        (
            MARKDOWN,
            "docs/a.md",
            [
                ("a.md", 1, 4, "---\ntitle: in front\n---\nBefore."),
                ("One", 6, 7, "text"),
                ("One > Two", 8, 11, "```sh\n# no heading\n```"),
                (
                    *("Three", 13, 23),
                    "- item\n---\ntwo lines\nof text\n---\n    # code\n#none\n####### none",
                ),
                ("Three > C#", 24, 27, "###\n~~~\n# open"),
            ],
        ),
        (
            RST,
            "a.rst",
            [
                ("Title", 1, 5, "Intro."),
                ("Title > Sub", 7, 12, "text::\n\n    Literal\n    -------"),
                ("Title > Sub 2", 14, 18, "=====  ====\na      b\n=====  ===="),
                ("Title > Sub 2 > Deep", 20, 25, "x\n\nToo long a title\n----"),
            ],
        ),
        (
            TOML,
            "a.toml",
            [
                ("name", 1, 2, '# Licence.\nname = "x"'),
                ("text", 3, 5, 'text = """\n[no]\n"""'),
                ("array", 6, 8, 'array = [\n  "a",\n]'),
                ("tool.a", 10, 12, "# About tool.\n[tool.a]\nk = 1"),
                ("bin", 13, 14, "[[bin]]  # again\nk = 2"),
                ("quoted", 15, 15, '["quoted"]'),
            ],
        ),
        (
            INI,
            "setup.cfg",
            [
                ("top", 1, 1, "top = 1"),
                ("one", 2, 4, "; Of one.\n[one]\na = 1"),
                ("two words", 5, 8, "# b\n[two words]\n  [indented]\nplain: 2"),
            ],
        ),
        (
            YAML,
            "a.yml",
            [
                ("on", 3, 4, '"on": &anchor\n  push: [a]'),
                ("jobs", 5, 7, "jobs:\n  a: *anchor\n  # inside"),
                ("list", 8, 10, "# Of list.\nlist:\n- b: 1"),
                ("key with space", 11, 11, "key with space: 1"),
                ("url", 12, 12, "url: http://x:1"),
            ],
        ),
        (
            JSON,
            "a.json",
            [
                ("name", 2, 2, '"name": "a\\"{",'),
                ("scripts", 3, 3, '"scripts": {"a": {"b": ["c"]}, "name": "d"},'),
                ("e", 3, 5, '"e": [1,\n  {"f": 2}]\n}'),
            ],
        ),
        ("[1, {}]\n", "x/list.json", [("list.json", 1, 1, "[1, {}]")]),
        ("- a\n- b\n", "list.yaml", [("list.yaml", 1, 2, "- a\n- b")]),
        ("Only text.\n", "README.txt", [("README.txt", 1, 1, "Only text.")]),
        (" \n\n", "a.md", []),
        ("", "a.json", []),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 12 else "",
)
def test_samples(source, name, expected):
    assert rows(source, name) == expected
    assert rows("\ufeff" + source.replace("\n", "\r\n"), name) == expected
    for f in documents(source, name):
        assert (f.kind, f.language, f.tokens) == ("document", document_language_of(name), ())


def test_long_sections_are_cut():
    (entry,) = documents("# T\n" + "x" * 5000, "a.md")
    assert entry.documentation == "x" * 2000
    (entry,) = documents("# " + "t" * 5000, "a.md")
    assert len(entry.name) == 200


@pytest.mark.parametrize(
    ("path", "language"),
    [
        *(("a/README.md", "markdown"), ("A.MARKDOWN", "markdown"), ("a.rst", "rst")),
        *(("readme.txt", "rst"), ("CHANGELOG-2.txt", "rst"), ("contributing.txt", "rst")),
        *(("notes.txt", None), ("pyproject.toml", "toml"), ("a.ini", "ini"), ("a.cfg", "ini")),
        *(("a.yaml", "yaml"), ("a.yml", "yaml"), ("package.json", "json")),
        *(("package-lock.json", None), ("pnpm-lock.yaml", None), ("yarn.lock", None)),
        *(("poetry.lock", None), ("composer.lock", None), ("go.sum", None), ("a.ipynb", None)),
        *(("a.py", None), ("md", None), (Path("x") / "a.json", "json")),
    ],
)
def test_languages_by_name(path, language):
    assert document_language_of(path) == language


def test_other_files_are_refused():
    with pytest.raises(ValueError, match=r"x\.py: neither"):
        documents("", "x.py")


@given(
    st.text("#=-~`[]{}:\"'\\ \nab\r\t*&.;/", max_size=60),
    st.sampled_from(["a.md", "a.rst", "a.toml", "a.ini", "a.yaml", "a.json"]),
)
@settings(max_examples=300, deadline=None)
def test_entries_lie_in_the_file(source, name):
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    above = 0
    for f in documents(source, name):
        assert f.name
        assert 1 <= f.start_line <= f.end_line <= len(lines)
        assert f.start_line >= above
        above = f.start_line
        around = "\n".join(lines[f.start_line - 1 : f.end_line])
        assert f.documentation.split("\n")[0].rstrip() in around


@given(st.lists(st.tuples(st.integers(1, 6), st.from_regex(r"[a-z]{1,8}", fullmatch=True))))
@settings(max_examples=100, deadline=None)
def test_every_heading_is_a_section_in_its_path(headings):
    source = "\n".join(f"{'#' * level} {title}\nof {title}\n" for level, title in headings)
    found = documents(source, "a.md")
    assert [f.name.rpartition(" > ")[2] for f in found] == [title for _, title in headings]
    assert [f.documentation for f in found] == [f"of {title}" for _, title in headings]
    assert [f.start_line for f in found] == [1 + 3 * i for i in range(len(headings))]
