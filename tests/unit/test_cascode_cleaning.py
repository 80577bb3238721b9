"""Queries, comments and near duplicates; the official functions' own values are golden cases."""

import ast
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.cascode.cleaning import (
    documentation_tokens,
    identifiers,
    query_problem,
    query_tokens,
    strip_comment_delimiters,
    without_comments,
)
from methods.cascode.duplicates import near_duplicates
from methods.cascode.extraction import SourceError

VOID = set(" \n\t,'\"`")
MARKS = set(".():[]=*;>{}+-/\\")


@pytest.mark.parametrize(
    ("documentation", "tokens"),
    [
        ("Close the file.\n\nIt may be open.", ["Close", "the", "file", "."]),
        ("\n    Close it.\n    \n    Rest.\n", ["Close", "it", "."]),
        ("Parse it\n    @param text what", ["Parse", "it"]),
        ("Send to a@b\n\nMore", ["Send", "to", "a@b"]),
        (" \n ", []),
    ],
)
def test_a_query_is_the_first_paragraph(documentation, tokens):
    assert query_tokens(documentation) == tokens


@settings(max_examples=40, deadline=None)
@given(st.text("ab<@" + "".join(VOID | MARKS)))
def test_tokens_keep_everything_but_the_separators_in_order(text):
    tokens = documentation_tokens(text)
    assert "".join(tokens) == "".join(c for c in text if c not in VOID)
    for token in tokens:
        assert token in ("()", "[]", "{}") or len(set(token)) == 1 or not set(token) & MARKS


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("Return the name", None),
        ("Close it", "short"),
        ("the " * 256, None),
        ("the " * 257, "long"),
        ("Read it from https://example.org/x", "link"),
        ("See www.example.org for the list", "link"),
        ("Is the http connection open", None),
        ("Replace the <br> by a new line", "markup"),
        ("Close the last </p> of a page", "markup"),
        ("Return -1 if s < t and 1 if s > t", None),
        ("Überprüft die Größe der Datei für später", "language"),
        ("Ouvre et lit ce fichier", "language"),
        ("x, y, z of", None),
        ("1 2 3 of 4", "language"),
    ],
)
def test_accepted_queries(query, problem):
    assert query_problem(documentation_tokens(query)) == problem


def test_comment_delimiters():
    comment = "/**\n   * Adds.\n   *\n   * @return sum **/"
    assert strip_comment_delimiters(comment) == "\nAdds.\n\n@return sum *"
    assert strip_comment_delimiters("// a\n//b") == "a\nb"


def test_a_python_function_keeps_its_meaning_without_comments():
    source = (
        'def f(a):\n    """Doc."""\n    # one\n    b = "#" + f"{a!r:>{9}} # no"  # two\n'
        '    if b:\n        "stray"\n        return {\n            "k": """x\n# y""",\n        }\n'
    )
    cleaned = without_comments(source, "python")
    tree = ast.parse(source)
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    condition = function.body[2]
    assert isinstance(condition, ast.If)
    del function.body[0], condition.body[0]
    assert ast.dump(ast.parse(cleaned)) == ast.dump(tree)
    assert "one" not in cleaned
    assert "two" not in cleaned
    assert without_comments(cleaned, "python") == cleaned


def test_python_that_is_none_is_refused():
    with pytest.raises(SourceError):
        without_comments("def f(:\n    '''open", "python")


@pytest.mark.parametrize(
    ("language", "source", "cleaned"),
    [
        ("java", 'f("//"); // x\n\n/* a\n b */ g(\'"\'); // "', 'f("//");  \n  g(\'"\');  '),
        ("go", "a := `x` /* open", "a := `x` /* open"),
        ("php", "$a = 'it\\'s // no'; // yes", "$a = 'it\\'s // no';  "),
        ("ruby", "x = 1 # kept\n\n", "x = 1 # kept\n\n"),
    ],
)
def test_comments_of_other_languages(language, source, cleaned):
    assert without_comments(source, language) == cleaned


def test_identifiers_open_like_one_and_are_no_keywords():
    tokens = ["def", "f", "(", "_x", "None", "True", 'u"s"', '"s"', "1e5", "ünï", ""]
    assert identifiers(tokens, "python") == ["f", "_x", "True", 'u"s"']


DOCUMENTS = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=12), max_size=12)


@settings(max_examples=25, deadline=None)
@given(DOCUMENTS, st.sampled_from([0.3, 0.5, 0.8, 1.0]), st.sampled_from([0.2, 0.7]))
def test_near_duplicates_are_those_of_a_comparison_of_all_pairs(
    documents, set_threshold, multiset_threshold
):
    counts = [Counter(document) for document in documents]
    cluster = list(range(len(documents)))
    for i, one in enumerate(counts):
        for j, other in enumerate(counts[:i]):
            both = set(one) & set(other)
            if (
                both
                and len(both) / len(set(one) | set(other)) >= set_threshold
                and (one & other).total() / (one | other).total() >= multiset_threshold
            ):
                cluster = [cluster[j] if c == cluster[i] else c for c in cluster]
    members: dict[int, list[int]] = {}
    for i, c in enumerate(cluster):
        members.setdefault(c, []).append(i)
    expected = sorted(m for m in members.values() if len(m) > 1)
    assert near_duplicates(documents, set_threshold, multiset_threshold) == expected


def test_thresholds_are_reached_exactly():
    nine, ten = list("abcdefgh"), list("abcdefghij")  # 8 of 10 shared
    assert near_duplicates([nine, ten]) == [[0, 1]]
    assert near_duplicates([nine, [*ten, "k"]]) == []
    assert near_duplicates([]) == near_duplicates([[], []]) == []
    repeated = ["a"] * 10
    assert near_duplicates([["a"], repeated]) == []
    assert near_duplicates([repeated, ["a"] * 7]) == [[0, 1]]
