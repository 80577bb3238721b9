"""Vectors of real functions, queries for them, and more vectors of the same structure.

Shapes: N vectors, M real ones, Q queries, d dimensions.

Vectors that are drawn at random lie equally far from each other in 384 dimensions, which makes
every approximate index look bad. So made vectors are real ones, moved: each is a real vector plus
the displacement between another real vector and its nearest neighbour, forth or back, times one
scale for all, and normalised. The scale is chosen so that the median distance to the nearest
neighbour is what real vectors would have at that number: among subsets of the real ones it falls
with a power of their number, which is extrapolated.
"""

from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from methods.cascode.search.models import Model
from methods.cascode.search.store import Index

Floats = NDArray[np.float32]

PROBES = 500  # vectors whose nearest neighbour is looked at
HALVINGS = 3  # of the real vectors, for the power law
SCALES = 0.02, 3.0
ROWS = 65_536


@dataclass(frozen=True)
class Made:
    """How vectors were made.

    Attributes:
        scale: of the displacements; 0 where none was needed.
        aim, distance: median distance to the nearest neighbour, as extrapolated and as reached.
    """

    scale: float
    aim: float
    distance: float


def real_vectors(index: Index, model: Model, queries: int, seed: int) -> tuple[Floats, Floats]:
    """(M, d) vectors of indexed functions, and (Q, d) of queries whose functions are not among
    them.

    A query is the first paragraph of a function's documentation.

    Args:
        index: that holds documentation and code ("both").

    Raises:
        ValueError: fewer than twice as many documented functions as queries.
    """
    about = [index.text(row).split("\n", 1)[0].strip() for row in range(len(index))]
    documented = [row for row, text in enumerate(about) if text]
    if index.description.text != "both" or len(documented) < 2 * queries:
        raise ValueError(
            f"{index.home} holds {len(documented)} functions with documentation: {2 * queries} are "
            f"needed for {queries} queries. Index more code, with --text both, or ask fewer"
        )
    order = np.random.default_rng(seed).permutation(len(index))
    held_out = [row for row in order.tolist() if about[row]][:queries]
    kept = np.delete(np.arange(len(index)), held_out)
    vectors = index.vectors[kept].astype(np.float32)
    return vectors, model.encode_queries([about[row] for row in held_out])


def neighbour_distances(probes: Floats, vectors: Floats, among: bool) -> Floats:
    """(P,) distances of unit vectors to their nearest neighbour.

    Args:
        among: whether the probes are among the vectors; none is its own neighbour.
    """
    scores = faiss.knn(probes, vectors, 1 + among, faiss.METRIC_INNER_PRODUCT)[0]
    return np.sqrt(np.maximum(2 - 2 * scores[:, -1], 0))


def extend(real: Floats, count: int, seed: int) -> tuple[Floats, Made]:
    """(count, d) vectors: a random subset of the real ones, or all and more of their structure.

    Args:
        real: (M, d), unit norm.
    """
    generator = np.random.default_rng(seed)
    if count <= len(real):
        chosen = real[generator.permutation(len(real))[:count]]
        reached = _median_distance(chosen, generator)
        return chosen, Made(0.0, reached, reached)
    aim = _extrapolated(real, count, generator)
    displacements = _displacements(real)
    bases, others, signs = (
        generator.integers(bound, size=count - len(real)) for bound in (len(real), len(real), 2)
    )
    vectors = np.empty((count, real.shape[1]), np.float32)
    vectors[: len(real)] = real
    probes = generator.permutation(count)[:PROBES]

    def fill(scale: float) -> float:
        """Make the vectors; the median distance less what is aimed at."""
        steps = scale * (2 * signs - 1).astype(np.float32)
        for start in range(0, len(bases), ROWS):
            part = slice(start, start + ROWS)
            made = real[bases[part]] + steps[part, None] * displacements[others[part]]
            end = len(real) + start + len(made)
            vectors[len(real) + start : end] = _normalised(made)
        return float(np.median(neighbour_distances(vectors[probes], vectors, among=True))) - aim

    beside = [fill(scale) for scale in SCALES]
    if beside[0] * beside[1] < 0:
        scale = float(brentq(fill, *SCALES, xtol=0.03))
    else:  # out of reach: as near as it gets, which the result tells
        scale = SCALES[int(np.argmin(np.abs(beside)))]
    return vectors, Made(scale, aim, fill(scale) + aim)


def _extrapolated(real: Floats, count: int, generator: np.random.Generator) -> float:
    """Median distance to the nearest neighbour among `count` vectors, by a power law."""
    order = generator.permutation(len(real))
    probes, rest = np.split(real[order], [min(PROBES, len(real) // 4)])
    sizes = [len(rest) >> halving for halving in range(HALVINGS + 1)]
    medians = [np.median(neighbour_distances(probes, rest[:size], among=False)) for size in sizes]
    power, factor = np.polyfit(np.log(sizes), np.log(medians), 1)
    return float(np.exp(factor + power * np.log(count)))


def _median_distance(vectors: Floats, generator: np.random.Generator) -> float:
    probes = generator.permutation(len(vectors))[:PROBES]
    return float(np.median(neighbour_distances(vectors[probes], vectors, among=True)))


def _displacements(real: Floats) -> Floats:
    """(M, d) from each vector to its nearest neighbour."""
    rows = faiss.knn(real, real, 2, faiss.METRIC_INNER_PRODUCT)[1]
    other = np.where(rows[:, 0] == np.arange(len(real)), rows[:, 1], rows[:, 0])
    return real[other] - real


def _normalised(vectors: Floats) -> Floats:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
