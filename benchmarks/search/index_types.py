"""Flat, HNSW and IVF-PQ at several sizes: `python -m benchmarks.search.index_types --out DIR`.

The indexes are those of the search tool, methods/cascode/search/vectors.py, built and asked by its
code and settings, and by further ones of the same graphs. Vectors are those of the standard
library's functions; where more are needed, function_vectors.py says how they are made. How well
that does is measured: real vectors beside as many that are made from a tenth of them. Queries are
the documentation of functions that are not indexed. Recall@10 is against the exact ranking of the
same vectors. Each index is built in one process and asked in another.

An index of the tool is taken from --index, else from DIR/tenfold-index, where benchmarks.search.
semble leaves one; it is built there if it is missing, and brought up to date.

Writes DIR/index_types.json, .md (what is printed) and .png.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import faiss
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.figures import COLOURS, LOOK, MARKERS, STYLES
from benchmarks.search.function_vectors import Floats, Made, extend, real_vectors
from benchmarks.search.measuring import Asked, Built, Files, ask, build, exact_tenth
from benchmarks.search.repository import copy_library
from benchmarks.search.systems import ROOT, show
from benchmarks.speed.__main__ import machine
from methods.cascode.search.indexing import Options, build_index
from methods.cascode.search.models import DEFAULT, Model, Settings, load
from methods.cascode.search.store import Index, SearchError, precision_of
from methods.cascode.search.vectors import SMALLEST

KINDS = ("flat", "hnsw", "ivfpq")
TITLES = {"flat": "flat", "hnsw": "HNSW", "ivfpq": "IVF-PQ"}
SETTINGS = {
    "flat": (),
    "hnsw": (16, 32, 64, 128, 256, 512),  # efSearch
    "ivfpq": (4, 16, 64, 256),  # nprobe
}
CHECKED = {"hnsw": 64, "ivfpq": 16}  # settings by which made vectors are held against real ones
QUICK_SIZES, QUICK_QUERIES = [2_000, 12_000], 100
QUICK_MODULES = ("asyncio", "email", "http", "json", "logging", "multiprocessing", "xml")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Row:
    """One kind of index at one size: what was built and how it answers."""

    size: int
    kind: str
    built: Built
    asked: list[Asked]


@dataclass(frozen=True)
class Fidelity:
    """As many vectors as there are real ones, and as many made from a tenth of them.

    Attributes:
        distance: median to the nearest neighbour. recall: kind -> recall@10 by CHECKED.
    """

    name: str
    distance: float
    recall: dict[str, float]


def study(
    real: Floats, queries: Floats, sizes: Sequence[int], work: Path, threads: int, seed: int
) -> tuple[list[Row], dict[int, Made], list[Fidelity]]:
    """Measure every kind at every size; how the vectors of each size were made, and how well.

    Args:
        work: folder for vectors and graphs while they are needed.
    """
    rows, made = [], {}
    for size in sizes:
        vectors, made[size] = extend(real, size, seed)
        files = _store(vectors, queries, work)
        del vectors
        kinds = [kind for kind in KINDS if size >= SMALLEST.get(kind, 0)]
        for number, kind in enumerate(kinds):
            show(f"{size:,} vectors", number, len(kinds))
            seconds = _apart(threads, build, kind, files)
            built, asked = _apart(threads, ask, kind, files, seconds, SETTINGS[kind], threads)
            rows.append(Row(size, kind, built, asked))
    fidelity = []
    if max(sizes) > len(real) >= max(SMALLEST.values()):
        tenth = real[np.random.default_rng(seed).permutation(len(real))[::10]]
        for name, base in ((f"{len(real):,} real", real), (f"as many from {len(tenth):,}", tenth)):
            vectors, how = extend(base, len(real), seed)
            files = _store(vectors, queries, work)
            fidelity.append(_fidelity(name, how, files, threads))
    return rows, made, fidelity


def report(
    rows: Sequence[Row],
    made: dict[int, Made],
    fidelity: Sequence[Fidelity],
    facts: dict[str, Any],
) -> str:
    """What `main` prints."""
    head = (
        f"Indexes of {facts['dimension']}-dimensional vectors on {facts['machine']}, "
        f"{facts['threads']} threads, faiss {facts['faiss']}; graphs are built on one. "
        f"{facts['real']:,} vectors are those of the functions of {facts['code']}, encoded by "
        f"{facts['model']}; {facts['queries']} queries are the first paragraphs of the "
        "documentation of other functions. Recall@10 against the exact ranking of the same "
        "vectors. Where it can, the tool scores anew what an index proposes by the vectors in "
        f"float16, which are stored besides ({2 * facts['dimension']} bytes each) and mapped into "
        "memory."
    )
    more = [_how_made(size, facts["real"], how) for size, how in made.items() if how.scale]
    parts = [head, *([" ".join(more)] if more else []), _built_table(rows), _asked_table(rows)]
    if fidelity:
        parts += [_fidelity_table(fidelity)]
    return "\n\n".join(parts)


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Draws recall@10 against queries a second, one at a time, a panel for each size."""
    sizes = sorted({row.size for row in rows})
    with plt.rc_context(LOOK):
        figure, panels = plt.subplots(
            1, len(sizes), figsize=(4.6 * len(sizes), 4.6), dpi=130, squeeze=False,
            sharey=True, layout="constrained",
        )  # fmt: skip
        for axes, size in zip(panels.flat, sizes, strict=True):
            _panel(axes, [row for row in rows if row.size == size])
            axes.set_title(f"{size:,} vectors")
            axes.set_xlabel("recall@10")
        panels[0, 0].set_ylabel("queries a second, one at a time")
        handles, labels = panels[0, -1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
        figure.savefig(path)
        plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search.index_types",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "search")
    parser.add_argument("--index", type=Path, help="of the tool, with --text both")
    parser.add_argument("--model", default=DEFAULT, help="by default %(default)s")
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_SIZES} vectors from some packages"
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.sizes, options.queries = QUICK_SIZES, QUICK_QUERIES
    try:
        print(measure(options))
    except (SearchError, ValueError) as error:
        print(f"search: {error}", file=sys.stderr)
        return 1
    return 0


def measure(options: argparse.Namespace) -> str:
    """Measure everything, write it, and return the report.

    Raises:
        SearchError: there is no usable index or model. ValueError: too few documented functions.
    """
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    index, model = _open(options, out)
    real, queries = real_vectors(index, model, options.queries, options.seed)
    with tempfile.TemporaryDirectory(dir=out, prefix="index-types-") as work:
        rows, made, fidelity = study(
            real, queries, options.sizes, Path(work), options.threads, options.seed
        )
    facts = {
        "real": len(real),
        "queries": len(queries),
        "dimension": real.shape[1],
        "code": index.root.name,
        "model": index.description.model["name"].rpartition(":")[2].rpartition("/")[2],
        "machine": machine(),
        "threads": options.threads,
        "faiss": faiss.__version__,
        "seed": options.seed,
    }
    text = report(rows, made, fidelity, facts)
    (out / "index_types.md").write_text(text + "\n")
    content = {
        "facts": facts,
        "rows": [asdict(row) for row in rows],
        "made": {size: asdict(how) for size, how in made.items()},
        "fidelity": [asdict(row) for row in fidelity],
    }
    (out / "index_types.json").write_text(json.dumps(content, indent=1) + "\n")
    plot(out / "index_types.png", rows)
    return text


def _open(options: argparse.Namespace, out: Path) -> tuple[Index, Model]:
    """The index that is named, else one of the standard library, built or brought up to date."""
    if options.index:
        index = Index(options.index.resolve())
        built_by = index.description.model
        settings = Settings(**{field.name: built_by[field.name] for field in fields(Settings)})
        return index, load(settings)
    repository = copy_library(out, QUICK_MODULES if options.quick else ())
    home = out / f"tenfold-index{'-quick' * options.quick}"
    settings = Settings(options.model, precision_of(home, options.model) or "auto")
    model = load(settings)
    build_index(Options(repository, home), model, settings, show)
    return Index(home), model


def _store(vectors: Floats, queries: Floats, work: Path) -> Files:
    names = ("vectors.npy", "graph.faiss", "queries.npy", "tenth.npy")
    files = Files(*(work / name for name in names))
    stored = vectors.astype(np.float16)
    np.save(files.vectors, stored)
    np.save(files.queries, queries)
    np.save(files.tenth, exact_tenth(stored, queries))
    return files


def _apart(threads: int, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call it in a new process, whose libraries use so many threads."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    old = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    finally:
        for name, value in old.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _fidelity(name: str, how: Made, files: Files, threads: int) -> Fidelity:
    recalls = {}
    for kind, setting in CHECKED.items():
        _apart(threads, build, kind, files)
        asked = _apart(threads, ask, kind, files, 0.0, (setting,), threads)[1]
        recalls[kind] = asked[1].recall
    return Fidelity(name, how.distance, recalls)


# --- tables ---


def _how_made(size: int, real: int, how: Made) -> str:
    return (
        f"{size - real:,} of the {size:,} vectors are made: a real vector plus the displacement "
        "between another real vector and its nearest neighbour, forth or back, times "
        f"{how.scale:.2f}, normalised, so that the median distance to the nearest neighbour is "
        f"{how.distance:.3f} (the real ones' power law gives {how.aim:.3f} there)."
    )


def _built_table(rows: Sequence[Row]) -> str:
    lines = [
        "| vectors | index | build s | index MB | bytes per vector | resident MB, of it mapped |",
        "|--:|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        built = row.built
        memory = "unknown"
        if built.memory_mb is not None and built.mapped_mb is not None:
            memory = f"{built.memory_mb + built.mapped_mb:.0f}, {built.mapped_mb:.0f}"
        lines.append(
            f"| {row.size:,} | {TITLES[row.kind]} | {built.seconds:.1f} "
            f"| {built.index_bytes / 1e6:.1f} | {built.index_bytes / row.size:.0f} | {memory} |"
        )
    return "\n".join(lines)


def _asked_table(rows: Sequence[Row]) -> str:
    lines = [
        "| vectors | index | asked by | recall@10 | queries/s, one at a time | all at once |",
        "|--:|---|---|--:|--:|--:|",
    ]
    for row in rows:
        for asked in row.asked:
            batched = "" if asked.batched is None else f"{asked.batched:,.0f}"
            lines.append(
                f"| {row.size:,} | {TITLES[row.kind]} | {asked.setting} | {asked.recall:.3f} "
                f"| {asked.single:,.0f} | {batched} |"
            )
    return "\n".join(lines)


def _fidelity_table(rows: Sequence[Fidelity]) -> str:
    settings = " | ".join(
        f"recall@10, {TITLES[kind]} {'efSearch' if kind == 'hnsw' else 'nprobe'} {setting}"
        for kind, setting in CHECKED.items()
    )
    lines = [
        "How true made vectors are:",
        "",
        f"| vectors | median distance to the nearest | {settings} |",
        f"|---|--:|{'--:|' * len(CHECKED)}",
    ]
    for row in rows:
        recalls = " | ".join(f"{value:.3f}" for value in row.recall.values())
        lines.append(f"| {row.name} | {row.distance:.3f} | {recalls} |")
    return "\n".join(lines)


def _panel(axes: Axes, rows: Sequence[Row]) -> None:
    number = 0
    for row in rows:
        tool, *others = row.asked
        curves = {TITLES[row.kind]: [a for a in others if "re-scored" not in a.setting]}
        if rescored := [a for a in others if "re-scored" in a.setting]:
            curves[f"{TITLES[row.kind]}, re-scored"] = rescored
        for name, asked in curves.items():
            colour, style, marker = (list_[number] for list_ in (COLOURS, STYLES, MARKERS))
            points = asked or [tool]
            axes.plot(
                [a.recall for a in points], [a.single for a in points],
                color=colour, linestyle=style, marker=marker, label=name,
            )  # fmt: skip
            if asked and name == TITLES[row.kind]:
                axes.plot(
                    tool.recall, tool.single, color=colour, marker="*", markersize=15,
                    linestyle="", label=f"{name}, as the tool asks",
                )  # fmt: skip
            number += 1
    axes.set_yscale("log")
    axes.grid(alpha=0.25)


if __name__ == "__main__":
    sys.exit(main())
