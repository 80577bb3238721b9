"""The E-step: prototypes at several granularities, and how concentrated their clusters are.

Shapes: N training images, d dimensions, K clusters of one granularity.
Source: docs/papers/pcl.md, sections 3.3 and 3.4; salesforce/PCL@964da1f
`main_pcl.py:compute_features, run_kmeans`.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.distributed import gather_objects, rank
from shared.evaluation.clustering import assign, kmeans
from shared.evaluation.features import Features

log = logging.getLogger(__name__)
SMOOTHING = 10  # alpha of the concentration


@dataclass(frozen=True)
class Granularity:
    """One clustering."""

    im2cluster: Tensor  # (highest data-set index + 1,) int64; -1 where it is not trained on
    prototypes: Tensor  # (K, d) float32, unit norm
    density: Tensor  # (K,) float32, concentrations phi, whose mean is the temperature of InfoNCE

    @cached_property
    def candidates(self) -> int:
        """Negatives are ids below this: up to the largest non-empty cluster, as official."""
        return int(self.im2cluster.max()) + 1

    @cached_property
    def entropy(self) -> float:
        """Entropy of the cluster sizes over log K: 1 when all are equally large."""
        sizes = torch.bincount(self.im2cluster[self.im2cluster >= 0].cpu()).double()
        shares = sizes[sizes > 0] / sizes.sum()
        return float(-(shares * shares.log()).sum() / math.log(max(2, len(self.density))))


@dataclass(frozen=True)
class Clusters:
    """Prototypes for the M-steps of one epoch; part of the checkpoint.

    The official code saves none, and resumed within an epoch it clusters again, by another encoder.
    """

    epoch: int
    granularities: tuple[Granularity, ...]

    @cached_property
    def entropy(self) -> float:
        """Mean of the granularities' entropies."""
        return sum(g.entropy for g in self.granularities) / len(self.granularities)

    def to(self, device: torch.device | str) -> "Clusters":
        moved = (
            Granularity(*(x.to(device) for x in (g.im2cluster, g.prototypes, g.density)))
            for g in self.granularities
        )
        return Clusters(self.epoch, tuple(moved))

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "granularities": [asdict(g) for g in self.granularities]}

    @staticmethod
    def from_state_dict(state: Mapping[str, Any]) -> "Clusters":
        return Clusters(state["epoch"], tuple(Granularity(**g) for g in state["granularities"]))


def cluster(
    features: Features, numbers: Sequence[int], temperature: float, epoch: int, **settings: Any
) -> Clusters:
    """Cluster the features of all N training images on rank 0; all ranks return the same.

    `numbers` are K of each granularity, whose place is the seed of its k-means; `settings` those of
    `kmeans`. A ValueError of fewer images than clusters, or features that have collapsed.
    """
    rows, size = features.features, int(features.indices.max()) + 1
    found = []
    for seed, number in enumerate(numbers):
        granularity, start = None, time.perf_counter()
        if rank() == 0:
            centroids = kmeans(rows, number, seed, **settings)
            ids, squared_distances = assign(rows, centroids, gpu=settings["gpu"])
            im2cluster = torch.full((size,), -1)
            im2cluster[features.indices] = ids
            prototypes = F.normalize(centroids, dim=1)
            density = concentration(ids, squared_distances, number, temperature)
            granularity = Granularity(im2cluster, prototypes, density)
            log.info(
                "%d clusters of %d images in %.1f s, entropy of their sizes %.3f",
                number, len(rows), time.perf_counter() - start, granularity.entropy,
            )  # fmt: skip
        found.append(gather_objects(granularity)[0])
    return Clusters(epoch, tuple(found))


def concentration(
    ids: Tensor, squared_distances: Tensor, number: int, temperature: float
) -> Tensor:
    """(K,) phi of each cluster: small for large dense clusters, large for loose or small ones.

    1. the mean distance (the ROOT of what the search returns) over log(Z + 10) where the cluster
       has Z > 1 members; 2. clusters of one or no member get the largest phi; 3. clipped to the
       10th and 90th percentile; 4. scaled to the mean `temperature`. In float64. A ValueError if
       the members of most clusters coincide.

    Args: ids (N,), squared_distances (N,) to the centroids that were not normalised.
    """
    distances = squared_distances.double().clamp(min=0).sqrt()
    sizes = torch.bincount(ids, minlength=number)
    sums = torch.zeros(number, dtype=torch.float64).index_add_(0, ids, distances)
    phi = sums / sizes.clamp(min=1) / (sizes + SMOOTHING).log()
    several = sizes > 1
    if not several.any():
        return torch.full((number,), temperature)
    phi[~several] = phi[several].max()
    low, high = torch.quantile(phi, torch.tensor([0.1, 0.9], dtype=torch.float64))
    phi = phi.clamp(low, high)
    if phi.min() <= 0:
        said = f"most of the {number} clusters hold identical features: the network has collapsed"
        raise ValueError(f"{said}, or num_clusters is too large; lower it or the learning rate")
    return (temperature * phi / phi.mean()).float()
