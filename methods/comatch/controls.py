"""Negative controls of the claims: CoMatch with its decisive part taken away, in batches of random
order, so that any fixed relabelling joins random samples."""

import zlib

import torch
from torch import Tensor

from methods.comatch.module import CoMatch


class PermutedGraph(CoMatch):
    """Every sample gets the graph targets of another one, self-loop included."""

    def graph(self, probs: Tensor) -> Tensor:
        return super().graph(probs).roll(1, dims=1)


class PermutedEdges(CoMatch):
    """Only edges between samples are another sample's, which leaves instance discrimination."""

    def gather(self, probs: Tensor) -> Tensor:
        return super().gather(probs).roll(1, dims=0)


def permuted_weights(key: str, values: Tensor) -> Tensor:
    """The entries of `values`, and so their distribution, in an order drawn from the name `key`."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    order = torch.randperm(values.numel(), generator=generator).to(values.device)
    return values.flatten()[order].view_as(values)
