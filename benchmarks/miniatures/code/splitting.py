"""Which packages and functions go where, and what must hold of a corpus that leaks nothing.

Rules are those of docs/papers/cascode.md, section 14.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from methods.cascode.cleaning import FEWEST_IDENTIFIERS, identifiers
from methods.cascode.duplicates import near_duplicates
from shared.data.packages import Package, wheel

Row = dict[str, Any]
PARTITIONS = ("train", "valid", "test")
CAPS = {"train": 1500, "valid": 300, "test": 300}  # functions of one package
PROFILES = ("small", "full")
FILE = Path(__file__).with_name("packages.yaml")
SEED = 0
OPENING = 40  # characters of a documentation that its code must not hold


class CorpusError(ValueError):
    """A corpus breaks one of its rules; the message names the functions."""


@dataclass(frozen=True)
class Listing:
    """packages.yaml. A package's partition is that of either profile: a model trained on the small
    one has seen no package that the full one tests on."""

    packages: tuple[Package, ...]  # in the order of their names
    small: frozenset[str]  # names of those in the small profile
    partitions: dict[str, str]
    pinned: str  # date of the list

    def of(self, profile: str) -> list[Package]:
        return [p for p in self.packages if profile == "full" or p.name in self.small]


def load(path: Path = FILE) -> Listing:
    """Read the list of packages."""
    content = yaml.safe_load(path.read_text())
    packages = {p.name: p for p in (wheel(e["archive"], e["sha256"]) for e in content["packages"])}
    entries = dict(zip(packages, content["packages"], strict=True))
    pairs = {name: entry["pairs"] for name, entry in entries.items()}
    return Listing(
        tuple(packages[name] for name in sorted(packages)),
        frozenset(name for name, entry in entries.items() if entry.get("small")),
        partitions(pairs, content["families"], content["targets"]),
        str(content["pinned"]),
    )


def partitions(
    pairs: Mapping[str, int], families: Sequence[Sequence[str]], targets: Mapping[str, int]
) -> dict[str, str]:
    """Split by family: packages of one organisation quote each other and share idioms.

    Families in the order of a hash fill the test, then the validation partition until each has
    enough functions (`targets`) after the cap per package; the rest is for training. `pairs` are
    the functions of each package before the cap; a family names its head first.
    """
    family = {name: tuple(members) for members in families for name in members}
    groups: dict[str, list[str]] = {}
    for name in sorted(pairs):
        groups.setdefault(family.get(name, (name,))[0], []).append(name)
    heads = sorted(groups, key=lambda head: hashlib.md5(f"code-corpus-v1:{head}".encode()).digest())
    assigned: dict[str, str] = {}
    waiting = iter(heads)
    for partition in ("test", "valid"):
        size = 0
        while size < targets[partition] and (head := next(waiting, None)) is not None:
            assigned |= dict.fromkeys(groups[head], partition)
            size += sum(min(pairs[name], CAPS[partition]) for name in groups[head])
    return {name: assigned.get(name, "train") for name in sorted(pairs)}


def without_duplicates(rows: Sequence[Row]) -> tuple[list[Row], Counter[str]]:
    """Rules 11 to 13: no two functions with equal or similar code, none too short to compare.
    Returns the rows kept, the first of each cluster, and how many were dropped by reason."""
    first: dict[tuple[str, ...], Row] = {}
    for row in rows:
        first.setdefault(tuple(row["code_tokens"]), row)
    documents, comparable = [], []
    for row in first.values():
        document = identifiers(row["code_tokens"], "python")
        if len(document) >= FEWEST_IDENTIFIERS:
            documents.append(document)
            comparable.append(row)
    relatives = {i for cluster in near_duplicates(documents) for i in cluster[1:]}
    dropped = {
        "duplicate": len(rows) - len(first),
        "few identifiers": len(first) - len(comparable),
        "near duplicate": len(relatives),
    }
    return [row for i, row in enumerate(comparable) if i not in relatives], Counter(dropped)


def split(rows: Sequence[Row]) -> tuple[dict[str, list[Row]], Counter[str]]:
    """Rows by file, after the cap per package and without ambiguous queries (rules 14 and 15). A
    query that several functions of the codebase answer has more right answers than its own. Returns
    rows of "train", "valid", "test" and "codebase", and how many were left out of them."""
    capped = {name: _capped([r for r in rows if r["partition"] == name]) for name in PARTITIONS}
    codebase = [*capped["valid"], *capped["test"]]
    askers = Counter(_query_text(row) for row in codebase)
    files = {"train": capped["train"]}
    for name in ("valid", "test"):
        files[name] = [row for row in capped[name] if askers[_query_text(row)] == 1]
    left_out = {
        "above the cap": len(rows) - len(capped["train"]) - len(codebase),
        "ambiguous query": len(codebase) - len(files["valid"]) - len(files["test"]),
    }
    return {**files, "codebase": codebase}, Counter(left_out)


def check(splits: Mapping[str, Sequence[Row]]) -> None:
    """Raise CorpusError where a url occurs twice, a query has no candidate, a package, a code or
    nearly the same code is in two partitions, or a code quotes its own documentation."""
    rows = [*splits["train"], *splits["codebase"]]
    for url, count in Counter(row["url"] for row in rows).items():
        if count > 1:
            raise CorpusError(f"{url} occurs twice")
    candidates = {row["url"] for row in splits["codebase"]}
    for name in ("valid", "test"):
        for row in splits[name]:
            if row["url"] not in candidates:
                raise CorpusError(f"{row['url']} of {name} is not in the codebase")
    first: dict[Any, Row] = {}
    for row in rows:
        for what, key in (("package", row["repo"]), ("code", tuple(row["code_tokens"]))):
            other = first.setdefault((what, key), row)
            if other["partition"] != row["partition"]:
                places = f"{other['partition']} and {row['partition']}"
                raise CorpusError(f"a {what} in {places}: {other['url']}, {row['url']}")
        opening = " ".join(row["docstring"].split())[:OPENING]
        if opening in " ".join(row["code_tokens"]):
            raise CorpusError(f"{row['url']}: its code holds its documentation, {opening!r}")
    for cluster in near_duplicates([identifiers(row["code_tokens"], "python") for row in rows]):
        if len({rows[i]["partition"] for i in cluster}) > 1:
            urls = ", ".join(rows[i]["url"] for i in cluster)
            raise CorpusError(f"near duplicates across partitions: {urls}")


def _capped(rows: Sequence[Row]) -> list[Row]:
    """At most CAPS functions of each package, drawn by a seeded hash; `rows` of one partition."""
    kept: set[str] = set()
    for package in {row["repo"] for row in rows}:
        urls = [row["url"] for row in rows if row["repo"] == package]
        urls.sort(key=lambda url: hashlib.sha256(f"{SEED}:{url}".encode()).digest())
        kept.update(urls[: CAPS[rows[0]["partition"]]])
    return [row for row in rows if row["url"] in kept]


def _query_text(row: Row) -> str:
    return " ".join(row["docstring_tokens"]).lower()
