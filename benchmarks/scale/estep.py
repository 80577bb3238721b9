"""Time and memory of PCL's E-step at ImageNet's size: `python -m benchmarks.scale.estep`.

Clusters made-up unit-norm features with `shared.evaluation.clustering`, as the method does, for a
few numbers of clusters K and few iterations, and projects the paper's setting from the measured
throughput. A training of k-means compares points x K x iterations x restarts pairs, where points
is N or, if that is less, 1000 K; the assignment compares N x K pairs. What faiss does besides
(centroid sums, filling empty clusters) grows with N + K only and is part of the measured time.

The network's pass over the images is not measured here. Writes outputs/scale/estep.json.
"""

import argparse
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import faiss
import torch
from torch import Tensor

from shared.evaluation.clustering import assign, kmeans
from shared.files import write_json
from shared.training.callbacks import peak_memory_mb

ROOT = Path(__file__).resolve().parents[2]
PAPER_CLUSTERS, PAPER_ITERATIONS, PAPER_RESTARTS = (25000, 50000, 100000), 20, 5
PAPER_EPOCHS = 180  # 200 of which the first 20 do without clusters
POINTS_PER_CENTROID = 1000
ROWS = 65536
Figures = Mapping[str, float]


def clumped_features(count: int, dim: int, seed: int, clumps: int = 1000) -> Tensor:
    """(count, dim) float32 unit-norm features around `clumps` random directions, made in place."""
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
    """What grows with N and K: the subset of the features if there is one, an id and a distance per
    point in training and assignment, and four sets of centroids."""
    points = points_used(count, clusters)
    subset = 4 * points * dim if points < count else 0
    return subset + 12 * (points + count) + 4 * 4 * clusters * dim


def measure(features: Tensor, clusters: int, iterations: int) -> Figures:
    """Cluster and assign once: seconds, pairs a second, and the process's memory in MB (1e6 bytes),
    of which `besides_mb` is over what it took before."""
    with suppress(OSError):  # starts the kernel's record of the peak anew (Linux)
        Path("/proc/self/clear_refs").write_text("5")
    before, started = memory_mb("VmRSS"), time.perf_counter()
    centroids = kmeans(features, clusters, 0, iterations, 1, POINTS_PER_CENTROID)
    trained = time.perf_counter()
    assign(features, centroids)
    train, assignment = trained - started, time.perf_counter() - trained
    peak, points = memory_mb("VmHWM"), points_used(len(features), clusters)
    return {
        "clusters": clusters,
        "points": points,
        "train_seconds": train,
        "assign_seconds": assignment,
        "train_pairs_per_second": points * clusters * iterations / train,
        "assign_pairs_per_second": len(features) * clusters / assignment,
        "peak_mb": peak,
        "besides_mb": peak - before,
    }


def project(measured: Figures, count: int, dim: int, clusters: int) -> Figures:
    """From a measured K (the largest, where the pairs dominate) to K = `clusters` of the paper."""
    pairs = points_used(count, clusters) * clusters * PAPER_ITERATIONS * PAPER_RESTARTS
    fixed = measured["besides_mb"] - bytes_needed(count, dim, int(measured["clusters"])) / 1e6
    return {
        "clusters": clusters,
        "train_seconds": pairs / measured["train_pairs_per_second"],
        "assign_seconds": count * clusters / measured["assign_pairs_per_second"],
        "besides_mb": max(0.0, fixed) + bytes_needed(count, dim, clusters) / 1e6,
    }


def memory_mb(field: str) -> float:
    """Memory now (VmRSS) or its peak since the measurement began (VmHWM), else in its life."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return peak_memory_mb()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024 / 1e6


def table(rows: Sequence[Figures]) -> str:
    lines = [list(rows[0]), ["--:"] * len(rows[0])]
    lines += [[f"{v:.2e}" if v > 1e6 else f"{v:.6g}" for v in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale.estep", description=__doc__)
    parser.add_argument("--images", type=int, default=1281167, help="N")
    parser.add_argument("--dim", type=int, default=128, help="d")
    parser.add_argument("--clusters", type=int, nargs="+", default=[1000, 2500], help="K to run")
    parser.add_argument("--iterations", type=int, default=3, help="of k-means, measured")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", default=str(ROOT / "outputs"), help="folder of results")
    options = parser.parse_args(arguments)
    count, dim, iterations = options.images, options.dim, options.iterations
    if max(options.clusters) > count:
        parser.error(f"--clusters {max(options.clusters)} are more than --images {count}")
    torch.set_num_threads(options.threads)
    features = clumped_features(count, dim, seed=0)
    measured = [measure(features, clusters, iterations) for clusters in sorted(options.clusters)]
    projected = [project(measured[-1], count, dim, clusters) for clusters in PAPER_CLUSTERS]
    hours = sum(p["train_seconds"] + p["assign_seconds"] for p in projected) / 3600
    print(
        f"k-means and assignment of {count} x {dim} float32 features ({features.nbytes / 1e6:.0f} "
        f"MB), {options.threads} threads, faiss {faiss.__version__}, {iterations} iterations x "
        f"1 restarts\n\n{table(measured)}\n\nprojected to {PAPER_ITERATIONS} iterations "
        f"x {PAPER_RESTARTS} restarts:\n\n{table(projected)}\n\nE-step of one epoch: {hours:.1f} h;"
        f" of the paper's {PAPER_EPOCHS} epochs with clusters: {hours * PAPER_EPOCHS / 24:.0f} days"
        " on this machine"
    )
    facts = {"images": count, "dim": dim, "threads": options.threads, "faiss": faiss.__version__}
    facts["machine"] = platform.processor() or platform.machine()
    path = Path(options.output) / "scale" / "estep.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**facts, "measured": measured, "projected": projected})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
