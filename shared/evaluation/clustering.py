"""k-means as PCL's E-step runs it, exact assignment, and agreement of clusters with classes.

Shapes: N features of d dimensions, K clusters; float32, contiguous, on the CPU, since faiss reads
torch's memory: the only N-sized memory is the caller's and the result of `assign`.
Source: docs/papers/pcl.md, section 3.4; salesforce/PCL@964da1f `main_pcl.py:run_kmeans`.
"""

from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import adjusted_mutual_info_score
from threadpoolctl import threadpool_limits
from torch import Tensor

MIN_POINTS_PER_CENTROID = 10  # below it faiss warns


def kmeans(
    features: Tensor,
    clusters: int,
    seed: int,
    iterations: int = 20,
    restarts: int = 5,
    max_points_per_centroid: int = 1000,
    gpu: bool = False,
) -> Tensor:
    """Centroids (K, d) of the best of `restarts` runs of Lloyd's algorithm in squared L2 distance.

    Not spherical: the centroids are means and are not normalised. With more than
    `max_points_per_centroid` * K features, a random subset of that size is used (and copied).
    The result depends on the seed and, in rounding, on the number of threads. `gpu` searches on
    the current CUDA device and needs `pip install 'tenfold[gpu]'`.
    """
    points = _view(features, "features")
    if not 1 <= clusters <= len(points):
        raise ValueError(
            f"{clusters} clusters of {len(points)} features: the number of clusters does not fit"
        )
    for start, piece in enumerate(features.split(65536)):
        finite = piece.isfinite().all(dim=1)
        if not finite.all():
            row = 65536 * start + int(finite.logical_not().nonzero()[0])
            raise ValueError(f"feature {row} is not finite: the network has diverged")
    clustering = faiss.Clustering(points.shape[1], clusters)
    clustering.niter = iterations
    clustering.nredo = restarts
    clustering.seed = seed
    clustering.max_points_per_centroid = max_points_per_centroid
    clustering.min_points_per_centroid = MIN_POINTS_PER_CENTROID
    # As many threads as torch may use, so that a run on one core uses one.
    with threadpool_limits(torch.get_num_threads(), user_api="openmp"):
        clustering.train(points, _index(points.shape[1], gpu))
    centroids = faiss.vector_to_array(clustering.centroids)  # a copy that outlives `clustering`
    return torch.from_numpy(centroids.reshape(clusters, points.shape[1]))


def assign(features: Tensor, centroids: Tensor, gpu: bool = False) -> tuple[Tensor, Tensor]:
    """Nearest centroid of each feature by exact search: ids (N,) int64, SQUARED distances (N,)."""
    points, centres = _view(features, "features"), _view(centroids, "centroids")
    if points.shape[1] != centres.shape[1]:
        raise ValueError(
            f"features have {points.shape[1]} dimensions, centroids {centres.shape[1]}"
        )
    index = _index(centres.shape[1], gpu)
    with threadpool_limits(torch.get_num_threads(), user_api="openmp"):
        index.add(centres)
        distances, ids = index.search(points, 1)
    return torch.from_numpy(ids[:, 0]), torch.from_numpy(distances[:, 0])


def ami(labels: Tensor, clusters: Tensor) -> float:
    """Adjusted mutual information of classes (N,) and clusters (N,), arithmetic averaging: 1 for
    equal partitions, about 0 for independent ones, whatever the numbers of groups."""
    return float(adjusted_mutual_info_score(labels.numpy(), clusters.numpy()))


def _view(x: Tensor, name: str) -> NDArray[np.float32]:
    """The tensor's own memory as numpy's; anything that faiss would have to copy is refused."""
    if x.ndim != 2 or x.dtype != torch.float32 or x.device.type != "cpu" or not x.is_contiguous():
        raise ValueError(
            f"{name} must be a contiguous (N, d) float32 tensor on the CPU, got {tuple(x.shape)} "
            f"{x.dtype} on {x.device} with strides {x.stride()}"
        )
    return x.detach().numpy()


def _index(dim: int, gpu: bool) -> Any:
    """An empty exact index of squared L2 distances."""
    if not gpu:
        return faiss.IndexFlatL2(dim)
    if not hasattr(faiss, "StandardGpuResources"):
        raise RuntimeError(
            "this faiss has no GPU part: `pip install 'tenfold[gpu]'` (after `pip uninstall "
            "faiss-cpu`), or cluster on the CPU with gpu=false"
        )
    config = faiss.GpuIndexFlatConfig()
    config.device, config.useFloat16 = torch.cuda.current_device(), False
    return faiss.GpuIndexFlatL2(faiss.StandardGpuResources(), dim, config)
