"""The negative control of the claim: PCL with prototypes that know nothing of their images."""

from dataclasses import replace

import torch

from methods.pcl.clustering import Clusters
from methods.pcl.module import PCL
from shared.evaluation.features import Features
from shared.randomness import torch_generator


class PermutedClusters(PCL):
    """Every image gets the cluster of another one, at all granularities."""

    def cluster(self, features: Features) -> Clusters:
        return permuted(super().cluster(features), self.hparams["seed"])


def permuted(clusters: Clusters, seed: int) -> Clusters:
    """The clusters, otherwise as they are, with their images exchanged in a single cycle, which
    leaves no image its own cluster but by chance."""
    trained = (clusters.granularities[0].im2cluster >= 0).nonzero()[:, 0]
    generator = torch_generator(seed, clusters.epoch, "permuted clusters")
    order = trained[torch.randperm(len(trained), generator=generator).to(trained.device)]
    changed = []
    for granularity in clusters.granularities:
        im2cluster = granularity.im2cluster.clone()
        im2cluster[order] = granularity.im2cluster[order.roll(1)]
        changed.append(replace(granularity, im2cluster=im2cluster))
    return Clusters(clusters.epoch, tuple(changed))
