"""Building one index of the search tool and asking it, each in a process of its own.

Shapes: N vectors, Q queries, d dimensions.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from methods.cascode.search.query import CANDIDATES
from methods.cascode.search.vectors import NearestVectors, build_graph

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Search = Callable[[Floats], Rows]
"""(Q, d) queries -> rows of what it finds, (Q, 10), -1 for nothing."""

K = 10
TIMED = 200  # queries that are asked one by one
RESCORED = 100
TIES = 1e-5  # of float32 inner products that are summed in another order
TOOL = f"tool: {CANDIDATES:,} candidates, re-scored"


@dataclass(frozen=True)
class Files:
    """Attributes: paths of (N, d) float16 `vectors`, of the `graph` that faiss makes, of (Q, d)
    `queries` and of (Q,) `tenth`, the score of each query's 10th nearest vector."""

    vectors: Path
    graph: Path
    queries: Path
    tenth: Path


@dataclass(frozen=True)
class Built:
    """Attributes:
    seconds: to build. index_bytes: of what faiss stores, or of the vectors themselves.
    memory_mb, mapped_mb: what the tool's process takes for it after `TIMED` queries: of its own,
    and pages of files that the system may drop. None where the system does not tell.
    """

    seconds: float
    index_bytes: int
    memory_mb: float | None
    mapped_mb: float | None


@dataclass(frozen=True)
class Asked:
    """Attributes:
    setting: in words. recall: share of the 10 nearest that are among the first 10, from 0 to 1.
    single, batched: queries a second, one at a time and all at once; None if the tool cannot.
    """

    setting: str
    recall: float
    single: float
    batched: float | None


def exact_tenth(vectors: NDArray[np.float16], queries: Floats) -> Floats:
    """(Q,) score of the 10th nearest vector, by comparing with all of them."""
    scores = faiss.knn(queries, vectors.astype(np.float32), K, faiss.METRIC_INNER_PRODUCT)[0]
    return scores[:, -1]


def build(kind: str, files: Files) -> float:
    """Build and store the graph of `kind`, if it has one; seconds."""
    vectors = np.load(files.vectors, mmap_mode="r")
    start = time.perf_counter()
    graph = build_graph(kind, vectors)
    seconds = time.perf_counter() - start
    if graph is None:
        return 0.0
    files.graph.write_bytes(graph)
    return seconds


def ask(
    kind: str, files: Files, seconds: float, settings: Sequence[int], threads: int
) -> tuple[Built, list[Asked]]:
    """What the index takes and gives: as the tool asks it, then by each setting.

    Args:
        seconds: that `build` took. settings: of efSearch or nprobe. threads: of faiss.
    """
    faiss.omp_set_num_threads(threads)
    queries, tenth = np.load(files.queries), np.load(files.tenth)
    before = _memory()
    vectors = np.load(files.vectors, mmap_mode="r")
    nearest = NearestVectors(vectors, kind, files.graph)
    asked = [_as_the_tool(nearest, vectors, queries, tenth, kind)]
    after = _memory()
    used = [b - a for a, b in zip(before, after, strict=True)] if before and after else [None] * 2
    size = files.vectors if kind == "flat" else files.graph
    built = Built(seconds, size.stat().st_size, used[0], used[1])
    if kind != "flat":
        graph = faiss.read_index(str(files.graph))
        for setting in settings:
            asked += _by_setting(graph, setting, vectors, queries, tenth)
    return built, asked


def recall(scores: Floats, tenth: Floats) -> float:
    """Share of (Q, 10) exact scores of what was found that are as high as the 10th nearest."""
    return float((scores >= tenth[: len(scores), None] - TIES).mean())


def _as_the_tool(
    nearest: NearestVectors,
    vectors: NDArray[np.float16],
    queries: Floats,
    tenth: Floats,
    kind: str,
) -> Asked:
    def one(query: Floats) -> Rows:
        rows = nearest.candidates(query[0], CANDIDATES)
        best = rows[np.argsort(-nearest.scores(query[0], rows))[:K]]
        return np.pad(best, (0, K - len(best)), constant_values=-1)[None]

    found, single = _one_by_one(one, queries)
    value = recall(_exact(vectors, queries[: len(found)], found), tenth)
    if kind != "flat":
        return Asked(TOOL, value, single, None)
    matrix = vectors.astype(np.float32)

    def all_of(batch: Floats) -> Rows:
        return faiss.knn(batch, matrix, K, faiss.METRIC_INNER_PRODUCT)[1]

    _, batched = _at_once(all_of, queries)
    return Asked("exact", value, single, batched)


def _by_setting(
    graph: Any,
    setting: int,
    vectors: NDArray[np.float16],
    queries: Floats,
    tenth: Floats,
) -> list[Asked]:
    if hasattr(graph, "hnsw"):
        graph.hnsw.efSearch, name = setting, f"efSearch {setting}"
    else:
        graph.nprobe, name = setting, f"nprobe {setting}"
    depths = (K,) if hasattr(graph, "hnsw") else (K, RESCORED)

    def search(depth: int, batch: Floats) -> Rows:
        rows = graph.search(batch, depth)[1]
        if depth == K:
            return rows
        order = np.argsort(-_exact(vectors, batch, rows), axis=1)[:, :K]
        return np.take_along_axis(rows, order, axis=1)

    asked = []
    for depth in depths:
        single = _one_by_one(partial(search, depth), queries)[1]
        found, batched = _at_once(partial(search, depth), queries)
        title = name if depth == K else f"{name}, {depth} re-scored"
        asked.append(Asked(title, recall(_exact(vectors, queries, found), tenth), single, batched))
    return asked


def _exact(vectors: NDArray[np.float16], queries: Floats, rows: Rows) -> Floats:
    """(Q, n) inner products with the stored vectors of rows (Q, n); -inf where a row is -1."""
    scores = np.empty(rows.shape, np.float32)
    for number, (query, own) in enumerate(zip(queries, rows, strict=True)):
        scores[number] = vectors[own].astype(np.float32) @ query
    return np.where(rows >= 0, scores, -np.inf)


def _one_by_one(one: Search, queries: Floats) -> tuple[Rows, float]:
    """What the first queries find, and queries a second; the first one is asked twice."""
    one(queries[:1])
    start = time.perf_counter()
    found = [one(query) for query in queries[:TIMED, None]]
    return np.concatenate(found), len(found) / (time.perf_counter() - start)


def _at_once(search: Search, queries: Floats) -> tuple[Rows, float]:
    start = time.perf_counter()
    found = search(queries)
    return found, len(queries) / (time.perf_counter() - start)


def _memory() -> tuple[float, float] | None:
    """This process's resident MB: its own, and of files."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    own, mapped = (int(fields[name].split()[0]) for name in ("RssAnon", "RssFile"))
    return own * 1024 / 1e6, mapped * 1024 / 1e6
