"""Pairs of documentation and function from pinned Python packages, split by package families.

`corpus` is the entry, for use as a `source` of a config. Rules and targets:
docs/papers/cascode.md, section 14. The files are made on each machine and not committed: they hold
other people's code.
"""

import gzip
import hashlib
import json
import logging
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.miniatures.building import Provenance, build_once
from benchmarks.miniatures.code.checks import Row, check
from benchmarks.miniatures.code.listing import CAPS, PARTITIONS, PROFILES, Listing, load
from benchmarks.miniatures.code.wheels import Licence, licence, problem, source_files
from methods.cascode.cleaning import FEWEST_IDENTIFIERS, identifiers, near_duplicates, query_tokens
from methods.cascode.extraction import Function, SourceError
from methods.cascode.extraction.python import functions
from shared.data.packages import Package, fetch

log = logging.getLogger(__name__)
PERMISSIVE = {
    *("MIT", "ISC", "0BSD", "BSD", "BSD License", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0"),
    *("PSF-2.0", "Zlib", "Public Domain", "LicenseRef-Biopython-License-Agreement"),
}
VERSION = 1  # raise it with any change of what is kept
SEED = 0


@dataclass
class Harvest:
    """What one package gives.

    Attributes:
        rows: its accepted functions.
        counts: files and functions, and of both those left out, by reason.
        not_english: the first query that the cheap rule took for another language, "" for none.
    """

    package: Package
    licence: Licence
    rows: list[Row] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    not_english: str = ""


def corpus(root: str | Path, profile: str = "small") -> Provenance:
    """Make the corpus present in `root`.

    Writes python/{train,valid,test,codebase}.jsonl.gz in CodeSearchNet's format, manifest.json with
    what was left out and why, and NOTICE.md with the packages' licences.

    Args:
        profile: "small" (49 packages of 24 MB) or "full" (74 packages of 164 MB).

    Raises:
        DataNotFoundError: wheels are not on this machine and can't be fetched.
        DataCorruptError: a wheel is not the pinned one, or `root` holds another build.
        CorpusError: the result breaks a rule of the split.
        ValueError: an unknown profile, or a package's licence is not permissive.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile {profile!r}: choose one of {', '.join(PROFILES)}")
    root, listing = Path(root), load()
    archives = {package.archive: package.sha256 for package in listing.of(profile)}
    chosen = json.dumps([archives, listing.partitions], sort_keys=True)
    recipe = {
        "version": VERSION,
        "seed": SEED,
        "profile": profile,
        "list": hashlib.sha256(chosen.encode()).hexdigest()[:16],
    }
    files = build_once(root, "code-python", recipe, lambda f: build(f, listing, profile))
    manifest = json.loads((root / "python" / "manifest.json").read_text())
    licences = sorted({package["licence"] for package in manifest["packages"]})
    terms = f"{', '.join(licences)}: see python/NOTICE.md"
    return {
        "code-python-packages": {"files": archives, "licence": terms},
        "code-python": {"files": files, "licence": terms},
    }


def build(folder: Path, listing: Listing, profile: str) -> None:
    """Write the corpus into <folder>/python."""
    packages = listing.of(profile)
    harvests = [
        _harvest(package, archive)
        for package, archive in zip(packages, fetch(packages), strict=True)
    ]
    rows = [row for harvest in harvests for row in harvest.rows]
    kept, dropped = without_duplicates(rows)
    for row in kept:
        row["partition"] = listing.partitions[row["repo"]]
    splits, left_out = split(kept)
    check(splits)
    folder = folder / "python"
    folder.mkdir()
    for name, of_split in splits.items():
        write_rows(folder / f"{name}.jsonl.gz", of_split)
    counts = sum((harvest.counts for harvest in harvests), Counter[str]()) + dropped + left_out
    manifest = {
        "profile": profile,
        "seed": SEED,
        "list": listing.pinned,
        "tools": {"python": platform.python_version(), "scipy": version("scipy")},
        "counts": dict(sorted(counts.items())),
        "splits": {name: len(of_split) for name, of_split in splits.items()},
        "packages": _packages(harvests, listing, kept, splits),
        "not English": [h.not_english for h in harvests if h.not_english],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    (folder / "NOTICE.md").write_text(notice(harvests))


def without_duplicates(rows: Sequence[Row]) -> tuple[list[Row], Counter[str]]:
    """Rules 11 to 13: no two functions with equal or similar code, none too short to compare.

    Returns: the rows kept, the first of each cluster, and how many were dropped by reason.
    """
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
    kept = [row for i, row in enumerate(comparable) if i not in relatives]
    return kept, Counter(
        {
            "duplicate": len(rows) - len(first),
            "few identifiers": len(first) - len(comparable),
            "near duplicate": len(relatives),
        }
    )


def split(rows: Sequence[Row]) -> tuple[dict[str, list[Row]], Counter[str]]:
    """Rows by file, after the cap per package and without ambiguous queries (rules 14 and 15).

    A query that several functions of the codebase answer has more right answers than its own.

    Returns: rows of "train", "valid", "test" and "codebase", and how many were left out of them.
    """
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


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Gzipped JSON lines, the same bytes for the same rows."""
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
        for row in rows:
            file.write(json.dumps(row).encode() + b"\n")


def notice(harvests: Sequence[Harvest]) -> str:
    """The text of NOTICE.md."""
    lines = ["# Notice", "", "The functions here are parts of these packages:", ""]
    lines += [
        f"- {h.package.name} {h.package.version} by {h.licence.holder}: {h.licence.name}"
        for h in harvests
    ]
    for harvest in harvests:
        lines += ["", f"## {harvest.package.name}", "", harvest.licence.text]
    return "\n".join(lines) + "\n"


def _packages(
    harvests: Sequence[Harvest],
    listing: Listing,
    kept: Sequence[Row],
    splits: Mapping[str, Sequence[Row]],
) -> list[dict[str, Any]]:
    """What the manifest says of each package."""
    before_cap = Counter(row["repo"] for row in kept)
    written = Counter(row["repo"] for name in ("train", "codebase") for row in splits[name])
    return [
        {
            "name": (name := harvest.package.name),
            "version": harvest.package.version,
            "archive": harvest.package.archive,
            "sha256": harvest.package.sha256,
            "licence": harvest.licence.name,
            "partition": listing.partitions[name],
            "functions": harvest.counts["functions"],
            "accepted": len(harvest.rows),
            "without duplicates": before_cap[name],
            "written": written[name],
        }
        for harvest in harvests
    ]


def _harvest(package: Package, archive: Path) -> Harvest:
    """Rules 1 to 10 on one package."""
    harvest = Harvest(package, licence(archive))
    if harvest.licence.name not in PERMISSIVE:
        raise ValueError(
            f"{package.name}: licence {harvest.licence.name!r} is not in the list of permissive "
            "ones; take the package out of packages.yaml"
        )
    for path, function in _functions(archive, harvest.counts):
        harvest.counts["functions"] += 1
        query = query_tokens(function.documentation)
        if reason := problem(function, query):
            harvest.counts[reason] += 1
            if reason == "query: language":
                harvest.not_english = harvest.not_english or " ".join(query)
            continue
        url = f"pypi://{package.archive}/{path}"
        harvest.rows.append(
            {
                "repo": package.name,
                "path": path,
                "func_name": function.name,
                "original_string": function.source,
                "language": "python",
                "code": function.code,
                "code_tokens": list(function.tokens),
                "docstring": function.documentation,
                "docstring_tokens": query,
                "sha": "",
                "partition": "",
                "url": f"{url}#L{function.start_line}-L{function.end_line}",
            }
        )
    log.info("%s: %d of %d functions", package.name, len(harvest.rows), harvest.counts["functions"])
    return harvest


def _functions(archive: Path, counts: Counter[str]) -> Iterator[tuple[str, Function]]:
    """(path, function) of a wheel's sources; `counts` files and those left out."""
    for file in source_files(archive):
        counts["files"] += 1
        if file.problem:
            counts[f"file: {file.problem}"] += 1
            continue
        try:
            found = functions(file.text)
        except SourceError:
            counts["file: not parsed"] += 1
            continue
        for function in found:
            yield file.path, function


def _capped(rows: Sequence[Row]) -> list[Row]:
    """At most CAPS functions of each package, drawn by a seeded hash; `rows` of one partition."""
    kept: set[str] = set()
    for package in {row["repo"] for row in rows}:
        urls = [row["url"] for row in rows if row["repo"] == package]
        kept.update(sorted(urls, key=_draw)[: CAPS[rows[0]["partition"]]])
    return [row for row in rows if row["url"] in kept]


def _draw(url: str) -> bytes:
    return hashlib.sha256(f"{SEED}:{url}".encode()).digest()


def _query_text(row: Row) -> str:
    return " ".join(row["docstring_tokens"]).lower()
