"""A tiny artificial corpus of functions with queries in CodeSearchNet's layout, for tests.

A function finds something about one property of some things; the query says the same in other
words, so that a network can learn which word goes with which in a few steps. Proves nothing about
code search.
"""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.miniatures.building import SPECIAL_TOKENS, Provenance, build_once, write_lines

OPERATIONS = {  # word of the query -> function of the code
    "largest": "max",
    "smallest": "min",
    "total": "sum",
    "average": "mean",
    "sorted": "order",
    "different": "unique",
    "first": "head",
    "last": "tail",
}
PROPERTIES = ("price", "weight", "age", "length", "score", "date", "size", "height")
THINGS = ("song", "parcel", "player", "ticket", "file", "tree", "letter", "boat")
PHRASES = (
    "Return the {operation} {property} of all {thing}s .",
    "Find the {operation} {property} among some {thing}s .",
    "Gives you a {thing} ' s {operation} {property} .",
)
CODES = {
    "python": (
        "def {name} ( {thing}s ) : return {function} ( x . {property} for x in {thing}s )",
        "def {name} ( {thing}s ) : values = [ x . {property} for x in {thing}s ] "
        "return {function} ( values )",
    ),
    "javascript": (
        "function {name} ( {thing}s ) {{ return {function} ( {thing}s . map ( x => "
        "x . {property} ) ) ; }}",
        "function {name} ( {thing}s ) {{ const values = {thing}s . map ( x => x . {property} ) ; "
        "return {function} ( values ) ; }}",
    ),
}
COMMENTS = {"python": '"""{}"""', "javascript": "/** {} */"}
CONTENTS = tuple(product(OPERATIONS, PROPERTIES, THINGS))


def code(
    root: str | Path,
    train: int = 64,
    test: int = 16,
    languages: Sequence[str] = ("python",),
    seed: int = 0,
) -> Provenance:
    """Write the corpus into `root`, unless it is there, and return its provenance.

    - `<language>/{train,valid,test,codebase}.jsonl`: no two functions do the same; the codebase is
      those of valid and test, and half as many as of one of them that nobody asks for;
    - `vocab.txt`: all words, for a tokeniser of BERT's kind.

    `train` is the number of pairs to train on, `test` that of queries of valid, and of test.
    """
    needed = train + 2 * test + test // 2
    if min(train, test) < 2 or needed > len(CONTENTS):
        there = f"{needed} functions are needed where there are {len(CONTENTS)}"
        raise ValueError(f"train={train}, test={test}: at least 2 of each, and {there}")
    if unknown := set(languages) - set(CODES):
        raise ValueError(f"languages are {', '.join(CODES)}, got {', '.join(unknown)}")
    corpora = {language: _corpus(language, train, test, seed) for language in languages}

    def build(folder: Path) -> None:
        for language, corpus in corpora.items():
            for name, entries in corpus.items():
                write_lines(folder / language / f"{name}.jsonl", map(json.dumps, entries))
        entries = [e for c in corpora.values() for part in c.values() for e in part]
        write_lines(folder / "vocab.txt", vocabulary(entries))

    recipe = {"train": train, "test": test, "languages": list(languages), "seed": seed}
    files = build_once(root, "synthetic-code", {"version": 1, **recipe}, build)
    return {"synthetic-code": {"files": files, "licence": "CC0-1.0"}}


def vocabulary(entries: Sequence[dict[str, Any]]) -> list[str]:
    """The special tokens and all words of the entries' tokens in lower case, sorted."""
    tokens = [t for entry in entries for t in entry["docstring_tokens"] + entry["code_tokens"]]
    spaced = [token.lower().replace("_", " _ ").replace("=>", "= >") for token in tokens]
    return [*SPECIAL_TOKENS, *sorted({word for token in spaced for word in token.split()})]


def _corpus(language: str, train: int, test: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    generator = np.random.default_rng([seed, list(CODES).index(language)])
    counts = {"train": train, "valid": test, "test": test, "nobody": test // 2}
    order = iter(generator.permutation(len(CONTENTS)).tolist())
    parts = {
        name: [_entry(language, name, number, *CONTENTS[next(order)]) for number in range(count)]
        for name, count in counts.items()
    }
    unasked = parts.pop("nobody")
    return parts | {"codebase": [*parts["valid"], *unasked, *parts["test"]]}


def _entry(
    language: str, partition: str, number: int, operation: str, prop: str, thing: str
) -> dict[str, Any]:
    """CodeSearchNet's twelve fields; phrase and style of the code change by turns."""
    name = f"{OPERATIONS[operation]}_{prop}"
    words = {"operation": operation, "property": prop, "thing": thing, "name": name}
    query = PHRASES[number % len(PHRASES)].format(**words)
    styles = CODES[language]
    tokens = styles[number % len(styles)].format(function=OPERATIONS[operation], **words)
    documentation = query.replace(" ' ", "'").replace(" .", ".")
    path = f"{partition}/{thing}.{language}"
    return {
        "repo": "synthetic",
        "path": path,
        "func_name": name,
        "original_string": f"{COMMENTS[language].format(documentation)} {tokens}",
        "language": language,
        "code": tokens,
        "code_tokens": tokens.split(),
        "docstring": documentation,
        "docstring_tokens": query.split(),
        "sha": "",
        "partition": "test" if partition == "nobody" else partition,
        "url": f"synthetic://{path}#L{number + 1}-L{number + 1}",
    }
