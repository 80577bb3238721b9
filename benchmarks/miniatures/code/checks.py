"""What must hold of a corpus that leaks nothing; a breach stops the build."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from methods.cascode.cleaning import identifiers, near_duplicates

Row = dict[str, Any]
OPENING = 40  # characters of a documentation that its code must not hold


class CorpusError(ValueError):
    """A corpus breaks one of its rules; the message names the functions."""


def check(splits: Mapping[str, Sequence[Row]]) -> None:
    """Check the files of a corpus.

    Args:
        splits: rows of "train", "valid", "test" (queries) and "codebase" (candidates of both).

    Raises:
        CorpusError: a url occurs twice; a query has no candidate; a package, a code or nearly the
            same code is in two partitions; a code quotes its own documentation.
    """
    rows = [*splits["train"], *splits["codebase"]]
    _no_url_twice(rows)
    _answers_exist(splits)
    _in_one_partition(rows, "package", lambda row: row["repo"])
    _in_one_partition(rows, "code", lambda row: tuple(row["code_tokens"]))
    _no_relatives(rows)
    _no_quotes(rows)


def _no_url_twice(rows: Sequence[Row]) -> None:
    seen = set()
    for row in rows:
        if row["url"] in seen:
            raise CorpusError(f"{row['url']} occurs twice")
        seen.add(row["url"])


def _answers_exist(splits: Mapping[str, Sequence[Row]]) -> None:
    candidates = {row["url"] for row in splits["codebase"]}
    for name in ("valid", "test"):
        for row in splits[name]:
            if row["url"] not in candidates:
                raise CorpusError(f"{row['url']} of {name} is not in the codebase")


def _in_one_partition(rows: Sequence[Row], what: str, key: Callable[[Row], Any]) -> None:
    first: dict[Any, Row] = {}
    for row in rows:
        other = first.setdefault(key(row), row)
        if other["partition"] != row["partition"]:
            raise CorpusError(
                f"a {what} in {other['partition']} and {row['partition']}: {other['url']}, "
                f"{row['url']}"
            )


def _no_relatives(rows: Sequence[Row]) -> None:
    documents = [identifiers(row["code_tokens"], "python") for row in rows]
    for cluster in near_duplicates(documents):
        if len({rows[i]["partition"] for i in cluster}) > 1:
            urls = ", ".join(rows[i]["url"] for i in cluster)
            raise CorpusError(f"near duplicates across partitions: {urls}")


def _no_quotes(rows: Sequence[Row]) -> None:
    for row in rows:
        opening = " ".join(row["docstring"].split())[:OPENING]
        if opening in " ".join(row["code_tokens"]):
            raise CorpusError(f"{row['url']}: its code holds its documentation, {opening!r}")
