"""Nearest vectors by inner product: exact, by an HNSW graph, or by IVF-PQ.

Shapes: N vectors, d dimensions. Graphs are built on one thread and so do not depend on how many
there are. They propose candidates; scores are always of the stored vectors.
"""

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Kind = Literal["auto", "flat", "hnsw", "ivfpq"]
Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

KINDS = get_args(Kind)
FLAT, HNSW = 50_000, 500_000  # `auto` takes them up to so many vectors
SMALLEST = {"hnsw": 1_000, "ivfpq": 10_000}  # below, there is nothing to win, or to train on
LINKS, BUILD_BREADTH, SEARCH_BREADTH = 32, 80, 128  # of HNSW
POINTS_PER_CENTROID = 39  # what k-means needs
CHUNK = 16_384
SAMPLE = 4_096  # vectors that the spread of scores is estimated from, where not all are scored


def resolve_kind(kind: str, count: int) -> str:
    """What is built of `count` vectors: `auto` by their number, "flat" where they are too few."""
    if kind == "auto":
        kind = "flat" if count <= FLAT else "hnsw" if count <= HNSW else "ivfpq"
    return "flat" if count < SMALLEST.get(kind, 0) else kind


def build_graph(kind: str, vectors: NDArray[np.float16]) -> bytes | None:
    """faiss' index of (N, d) vectors as bytes; None for "flat", which needs none."""
    if kind == "flat":
        return None
    import faiss

    count, dimension = vectors.shape
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        graph: Any
        if kind == "hnsw":
            graph = faiss.IndexHNSWFlat(dimension, LINKS, faiss.METRIC_INNER_PRODUCT)
            graph.hnsw.efConstruction = BUILD_BREADTH
        else:
            lists = int(min(4 * count**0.5, count / POINTS_PER_CENTROID))
            pieces = next(m for m in range(max(1, dimension // 8), 0, -1) if dimension % m == 0)
            # "np": without polysemous codes, whose training takes ten times the rest's time.
            graph = faiss.index_factory(
                dimension, f"IVF{lists},PQ{pieces}np", faiss.METRIC_INNER_PRODUCT
            )
            step = max(1, count // (lists * 2 * POINTS_PER_CENTROID))
            graph.train(vectors[::step].astype(np.float32))
        for start in range(0, count, CHUNK):
            graph.add(vectors[start : start + CHUNK].astype(np.float32))
        return faiss.serialize_index(graph).tobytes()
    finally:
        faiss.omp_set_num_threads(threads)


class NearestVectors:
    """Scores and candidates of one index.

    Args:
        vectors: (N, d). kind: as resolved. graph: file of faiss' index, for other than "flat".
    """

    def __init__(self, vectors: NDArray[np.float16], kind: str, graph: Path) -> None:
        self._graph: Any = None
        self._vectors: NDArray[Any] = vectors
        if kind == "flat":
            self._vectors = vectors.astype(np.float32)  # a product with float16 is far slower
            self._sample = self._vectors
            return
        import faiss

        self._sample = vectors[:: max(1, len(vectors) // SAMPLE)].astype(np.float32)
        self._graph = faiss.deserialize_index(np.fromfile(graph, np.uint8))
        if kind == "hnsw":
            self._graph.hnsw.efSearch = SEARCH_BREADTH
        else:
            self._graph.nprobe = max(16, self._graph.nlist // 32)

    def candidates(self, query: Floats, count: int) -> Rows:
        """Rows that may be among the `count` nearest of a (d,) query: all of them where exact."""
        if self._graph is None:
            return np.arange(len(self._vectors))
        if hasattr(self._graph, "hnsw"):
            self._graph.hnsw.efSearch = max(SEARCH_BREADTH, count)
        found = self._graph.search(query[None], min(count, len(self._vectors)))[1][0]
        return np.sort(found[found >= 0])

    def scores(self, query: Floats, rows: Rows) -> Floats:
        """(len(rows),) inner products with a (d,) query."""
        if len(rows) == len(self._vectors) and self._graph is None:
            return self._vectors @ query
        parts = np.split(rows, range(CHUNK, len(rows), CHUNK))
        return np.concatenate([self._vectors[part].astype(np.float32) @ query for part in parts])

    def spread(self, query: Floats) -> tuple[float, float]:
        """Mean and standard deviation of the scores of all vectors; of a sample if many."""
        scores = self._sample @ query
        return float(scores.mean()), float(scores.std())
