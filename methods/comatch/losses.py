"""The equations of CoMatch and FixMatch, and the figures that are logged of their pseudo-labels.

Shapes: M = mu B unlabelled images, C classes, d embedding size, K memory rows, R graph columns.
Source: salesforce/CoMatch@08b4cce `Train_CoMatch.py:train_one_epoch`, `imagenet/Model.py`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.distributed import all_gather, all_reduce_mean, rank
from shared.losses.contrastive import matmul_float32, similarity_logits, soft_target_nce
from shared.nn.queue import FeatureQueue

LOG_EPSILON = 1e-7
Figures = dict[str, Tensor | float]


class DistributionAlignment(nn.Module):
    """Divide class probabilities by their running mean over the last `window` batches.

    The current batch is in the mean, the prior is uniform, and there is no epsilon. The window is a
    buffer: the official ImageNet code keeps it in a list and loses it on resume.
    """

    window: Tensor
    count: Tensor

    def __init__(self, num_classes: int, window: int):
        super().__init__()
        self.register_buffer("window", torch.zeros(window, num_classes))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def forward(self, probs: Tensor) -> Tensor:
        """(M, C) -> aligned (M, C), rows summing to 1."""
        self.window[self.count % len(self.window)] = all_reduce_mean(probs.mean(dim=0))
        self.count += 1
        aligned = probs / self.mean()
        return aligned / aligned.sum(dim=1, keepdim=True)

    def mean(self) -> Tensor:
        """(C,) plain mean of the batch means held."""
        held = self.count.clamp(max=len(self.window))
        return self.window.sum(dim=0) / held  # rows not yet written are zero


def oldest_first(window: Tensor, count: int) -> Tensor:
    """(n, C) rows held by a ring buffer to which `count` rows were ever written."""
    held = min(count, len(window))
    order = (count - held + torch.arange(held)) % len(window)
    return window[order.to(window.device)]


def smooth_with_memory(
    probs: Tensor, embeddings: Tensor, memory: FeatureQueue, temperature: float, alpha: float
) -> Tensor:
    """(M, C) memory-smoothed pseudo-labels: alpha p + (1 - alpha) sum_k a_k p_k, with a the softmax
    over the memory of z . z_k / T."""
    affinity = similarity_logits(embeddings, memory.features, temperature).softmax(dim=1)
    return alpha * probs + (1 - alpha) * matmul_float32(affinity, memory["probs"])


def pseudo_label_graph(
    probs: Tensor, reference: Tensor, threshold: float, first_self_loop: int = 0
) -> Tensor:
    """(M, R) W_ij = p_i . p_j, self-loops of weight 1, no edges below the threshold, rows of sum 1.

    Args: probs (M, C) pseudo-labels of the rows; reference (R, C) those of the columns, of which
        first_self_loop .. first_self_loop + M - 1 are the rows themselves.
    """
    graph = matmul_float32(probs, reference.T)
    graph.diagonal(offset=first_self_loop).fill_(1.0)
    graph = graph * (graph >= threshold)
    return graph / graph.sum(dim=1, keepdim=True)


def graph_contrastive_loss(
    query: Tensor, reference: Tensor, graph: Tensor, temperature: float
) -> Tensor:
    """Cross-entropy of the embedding graph with the pseudo-label graph as target, mean over rows.

    Shapes: query (M, d), reference (R, d), graph (M, R).
    """
    return soft_target_nce(similarity_logits(query, reference, temperature), graph, LOG_EPSILON)


def confident_cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of the confident samples (`mask` (M,) in {0, 1}), averaged over ALL M samples.

    `targets`: (M,) hard labels (FixMatch) or (M, C) soft ones (CoMatch).
    """
    return (F.cross_entropy(logits, targets, reduction="none") * mask).mean()


def pseudo_label_quality(labels: Tensor, mask: Tensor, hidden_labels: Tensor) -> Figures:
    """Percentage of confident pseudo-labels, and their accuracy by the true `hidden_labels` (M,),
    -1 if unknown, which serve nothing else."""
    values: Figures = {"coverage": 100 * mask.mean()}
    known = mask * (hidden_labels >= 0)
    if known.any():
        right = (labels == hidden_labels) * known
        values["pseudo_label_accuracy"] = 100 * right.sum() / known.sum()
    return values


def graph_quality(graph: Tensor, hidden_labels: Tensor) -> Figures:
    """Edges per row of the (M, world M) graph but self-loops, and percentage that join a class."""
    everyone = all_gather(hidden_labels)
    edges = graph > 0
    edges.diagonal(offset=rank() * len(graph)).fill_(False)
    values: Figures = {"edges_per_row": edges.sum() / len(graph)}
    known = edges * (hidden_labels >= 0)[:, None] * (everyone >= 0)[None]
    if known.any():
        same = known * (hidden_labels[:, None] == everyone[None])
        values["edge_precision"] = 100 * same.sum() / known.sum()
    return values
