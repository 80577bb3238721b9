"""Time and memory of PCL's E-step at ImageNet's size: `python -m benchmarks.scale.estep`.

Clusters made-up unit-norm features with `shared.evaluation.clustering`, as the method does, for a
few numbers of clusters K and few iterations, and projects the paper's setting from the measured
throughput. A training of k-means compares points x K x iterations x restarts pairs, where points
is N or, if that is less, 1000 K; the assignment compares N x K pairs. What faiss does besides
(centroid sums, filling empty clusters) grows with N + K only and is part of the measured time.

The network's pass over the images is not measured here. Writes outputs/scale/estep.json.
"""

import argparse
import json
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import faiss
import torch
from torch import Tensor

from shared.evaluation.clustering import assign, kmeans
from shared.training.callbacks import peak_memory_mb

ROOT = Path(__file__).resolve().parents[2]
PAPER_CLUSTERS, PAPER_ITERATIONS, PAPER_RESTARTS = (25000, 50000, 100000), 20, 5
PAPER_EPOCHS = 180  # 200 of which the first 20 do without clusters
POINTS_PER_CENTROID = 1000
ROWS = 65536


@dataclass(frozen=True)
class Measured:
    """One number of clusters; memory of the whole process in MB (1e6 bytes)."""

    clusters: int
    iterations: int
    restarts: int
    points: int
    train_seconds: float
    assign_seconds: float
    train_pairs_per_second: float
    assign_pairs_per_second: float
    peak_mb: float
    besides_mb: float  # over what the process and its features took before


@dataclass(frozen=True)
class Projected:
    """The E-step of one number of clusters in the paper's setting."""

    clusters: int
    train_seconds: float
    assign_seconds: float
    besides_mb: float

    @property
    def seconds(self) -> float:
        return self.train_seconds + self.assign_seconds


def clumped_features(count: int, dim: int, seed: int, clumps: int = 1000) -> Tensor:
    """(count, dim) float32 unit-norm features around `clumps` random directions.

    Made block by block in the memory that is returned, without a second copy.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(clumps, dim, generator=generator)
    features = torch.empty(count, dim)
    for block in features.split(ROWS):
        clump = torch.randint(clumps, (len(block),), generator=generator)
        block.normal_(generator=generator).add_(centres[clump])
        block.div_(block.norm(dim=1, keepdim=True))
    return features


def points_used(count: int, clusters: int) -> int:
    """How many of `count` features k-means trains on."""
    return min(count, POINTS_PER_CENTROID * clusters)


def bytes_needed(count: int, dim: int, clusters: int) -> int:
    """What grows with N and K: the subset of the features if there is one, an id and a distance
    per point in training and in assignment, centroids (current, best, returned, in the index)."""
    points = points_used(count, clusters)
    subset = 4 * points * dim if points < count else 0
    return subset + 12 * (points + count) + 4 * 4 * clusters * dim


def measure(features: Tensor, clusters: int, iterations: int, restarts: int) -> Measured:
    """Cluster and assign once."""
    forget_peak()
    before = memory_mb("VmRSS")
    started = time.perf_counter()
    centroids = kmeans(features, clusters, 0, iterations, restarts, POINTS_PER_CENTROID)
    trained = time.perf_counter()
    assign(features, centroids)
    train_seconds, assign_seconds = trained - started, time.perf_counter() - trained
    peak, points = memory_mb("VmHWM"), points_used(len(features), clusters)
    return Measured(
        clusters,
        iterations,
        restarts,
        points,
        train_seconds,
        assign_seconds,
        points * clusters * iterations * restarts / train_seconds,
        len(features) * clusters / assign_seconds,
        peak,
        peak - before,
    )


def project(measured: Measured, count: int, dim: int, clusters: int) -> Projected:
    """From a measured K (the largest, where the pairs dominate) to K = `clusters` of the paper."""
    pairs = points_used(count, clusters) * clusters * PAPER_ITERATIONS * PAPER_RESTARTS
    fixed = measured.besides_mb - bytes_needed(count, dim, measured.clusters) / 1e6
    return Projected(
        clusters,
        pairs / measured.train_pairs_per_second,
        count * clusters / measured.assign_pairs_per_second,
        max(0.0, fixed) + bytes_needed(count, dim, clusters) / 1e6,
    )


def forget_peak() -> None:
    """Start the kernel's record of this process's peak anew, where that can be done (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def memory_mb(field: str) -> float:
    """Resident memory now (VmRSS) or its peak since `forget_peak` (VmHWM); elsewhere the peak of
    the process's whole life."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return peak_memory_mb()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024 / 1e6


def report(features: Tensor, measured: Sequence[Measured], projected: Sequence[Projected]) -> str:
    """What `main` prints."""
    count, dim = features.shape
    size = features.numel() * features.element_size() / 1e6
    lines = [
        f"k-means and assignment of {count} x {dim} {str(features.dtype)[6:]} features "
        f"({size:.0f} MB), {torch.get_num_threads()} threads, faiss {faiss.__version__}",
        "",
        "| K | points | iterations x restarts | training s | assignment s "
        "| training pairs/s | assignment pairs/s | peak MB | of it besides the features |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {m.clusters} | {m.points} | {m.iterations} x {m.restarts} | {m.train_seconds:.1f} "
        f"| {m.assign_seconds:.1f} | {m.train_pairs_per_second:.2e} "
        f"| {m.assign_pairs_per_second:.2e} | {m.peak_mb:.0f} | {m.besides_mb:.0f} |"
        for m in measured
    ]
    lines += [
        "",
        f"projected to {PAPER_ITERATIONS} iterations x {PAPER_RESTARTS} restarts, at the "
        f"throughput of K = {measured[-1].clusters}:",
        "",
        "| K | training h | assignment min | MB besides the features |",
        "|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {p.clusters} | {p.train_seconds / 3600:.2f} | {p.assign_seconds / 60:.1f} "
        f"| {p.besides_mb:.0f} |"
        for p in projected
    ]
    hours = sum(p.seconds for p in projected) / 3600
    lines += [
        "",
        f"E-step of one epoch: {hours:.1f} h; of the paper's {PAPER_EPOCHS} epochs with clusters: "
        f"{hours * PAPER_EPOCHS / 24:.0f} days on this machine",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale.estep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=1281167, help="N")
    parser.add_argument("--dim", type=int, default=128, help="d")
    parser.add_argument("--clusters", type=int, nargs="+", default=[1000, 2500], help="K to run")
    parser.add_argument("--iterations", type=int, default=3, help="of k-means, measured")
    parser.add_argument("--restarts", type=int, default=1, help="of k-means, measured")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0, help="of the features")
    parser.add_argument("--output", default=str(ROOT / "outputs"), help="folder of results")
    options = parser.parse_args(arguments)
    if max(options.clusters) > options.images:
        parser.error(f"--clusters {max(options.clusters)} are more than --images {options.images}")
    torch.set_num_threads(options.threads)
    features = clumped_features(options.images, options.dim, options.seed)
    measured = [
        measure(features, clusters, options.iterations, options.restarts)
        for clusters in sorted(options.clusters)
    ]
    projected = [
        project(measured[-1], options.images, options.dim, clusters) for clusters in PAPER_CLUSTERS
    ]
    print(report(features, measured, projected))
    result = {
        "images": options.images,
        "dim": options.dim,
        "threads": options.threads,
        "faiss": faiss.__version__,
        "machine": platform.processor() or platform.machine(),
        "measured": [asdict(m) for m in measured],
        "projected": [asdict(p) for p in projected],
    }
    path = Path(options.output) / "scale" / "estep.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
