"""Near-duplicates among functions, which a corpus leaves out.

Source: docs/papers/cascode.md, section 6.2.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components


def near_duplicates(
    documents: Sequence[Sequence[str]],
    set_threshold: float = 0.8,
    multiset_threshold: float = 0.7,
) -> list[list[int]]:
    """Clusters of similar documents, each sorted, by their first members; singles are left out.

    Two documents are similar when the Jaccard indices of their tokens (see `identifiers`) as sets
    and as multisets both reach their threshold; clusters are the transitive closure. All pairs are
    found, exactly.
    """
    counts = _count_matrix(documents)
    first, second = _candidates(counts, set_threshold)
    present = csr_array((np.ones_like(counts.data), counts.indices, counts.indptr), counts.shape)
    for matrix, threshold in ((present, set_threshold), (counts, multiset_threshold)):
        similar = _jaccard(matrix, first, second) >= threshold
        first, second = first[similar], second[similar]
    edges = coo_array((np.ones(len(first)), (first, second)), (len(documents),) * 2)
    labels = connected_components(edges, directed=False)[1]
    members: dict[int, list[int]] = {}
    for document in np.unique(np.concatenate([first, second])).tolist():
        members.setdefault(labels[document], []).append(document)
    return list(members.values())


def _count_matrix(documents: Sequence[Sequence[str]]) -> csr_array:
    """(documents, vocabulary) counts, the rarest tokens in the first columns."""
    counters = [Counter(tokens) for tokens in documents]
    frequency = Counter(token for counter in counters for token in counter)
    column = {t: i for i, t in enumerate(sorted(frequency, key=lambda t: (frequency[t], t)))}
    sizes = [len(counter) for counter in counters]
    columns = [column[token] for counter in counters for token in counter]
    values = [count for counter in counters for count in counter.values()]
    matrix = csr_array(
        (np.array(values, np.int64), np.array(columns, np.int64), np.cumsum([0, *sizes])),
        (len(documents), len(column)),
    )
    matrix.sort_indices()
    return matrix


def _candidates(counts: csr_array, threshold: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs i < j that share one of their rarest tokens, and so all pairs of the similarity wanted.

    Of n different tokens at least ceil(threshold * n) must be shared, so that the rarest
    n - ceil(threshold * n) + 1 of both documents can't be disjoint (Bayardo et al. 2007).
    """
    sizes = np.diff(counts.indptr)
    needed = np.ceil(threshold * sizes - 1e-9).astype(np.int64)
    position = np.arange(len(counts.indices)) - np.repeat(counts.indptr[:-1], sizes)
    rare = position < np.repeat(sizes - needed + 1, sizes)
    rows = np.repeat(np.arange(len(sizes)), sizes)[rare]
    prefixes = csr_array((np.ones(len(rows), np.int32), (rows, counts.indices[rare])), counts.shape)
    pairs = (prefixes @ prefixes.T).tocoo()
    first, second = (axis.astype(np.int64) for axis in pairs.coords)
    shorter = np.minimum(sizes[first], sizes[second])
    longer = np.maximum(sizes[first], sizes[second])
    kept = (first < second) & (shorter >= threshold * longer - 1e-9)
    return first[kept], second[kept]


def _jaccard(
    counts: csr_array, first: NDArray[np.int64], second: NDArray[np.int64], batch: int = 50_000
) -> NDArray[np.float64]:
    """Jaccard index of the multisets of each pair of documents."""
    totals = np.asarray(counts.sum(axis=1))
    shared = [
        np.asarray(counts[first[i : i + batch]].minimum(counts[second[i : i + batch]]).sum(axis=1))
        for i in range(0, len(first), batch)
    ]
    both = np.concatenate([np.empty(0, np.int64), *shared])
    union: NDArray[np.int64] = totals[first] + totals[second] - both
    return both / union
