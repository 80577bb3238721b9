"""The equations of CoMatch and FixMatch.

Shapes: M = mu B unlabelled images, C classes, d embedding size, K memory rows, R graph columns.
Source: salesforce/CoMatch@08b4cce `Train_CoMatch.py:train_one_epoch`, `imagenet/Model.py`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.distributed import all_reduce_mean
from shared.losses.contrastive import matmul_float32, similarity_logits, soft_target_nce

LOG_EPSILON = 1e-7


class DistributionAlignment(nn.Module):
    """Divide class probabilities by their running mean over the last `window` batches.

    The mean of the current batch enters the window before it is averaged, the target prior is
    uniform, and there is no epsilon. The window is a buffer: the official ImageNet code keeps it
    in a Python list and loses it on resume.
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

    def history(self) -> Tensor:
        """(n, C) batch means held, oldest first."""
        return oldest_first(self.window, int(self.count))


def oldest_first(window: Tensor, count: int) -> Tensor:
    """(n, C) rows of a ring buffer to which `count` rows were ever written."""
    held = min(count, len(window))
    order = (count - held + torch.arange(held)) % len(window)
    return window[order.to(window.device)]


def smooth_with_memory(
    probs: Tensor,
    embeddings: Tensor,
    memory_embeddings: Tensor,
    memory_probs: Tensor,
    temperature: float,
    alpha: float,
) -> Tensor:
    """Memory-smoothed pseudo-labels: alpha p + (1 - alpha) sum_k a_k p_k.

    a is the softmax over the memory of z . z_k / T.
    Shapes: probs (M, C), embeddings (M, d), memory (K, d) and (K, C). Returns (M, C).
    """
    affinity = similarity_logits(embeddings, memory_embeddings, temperature).softmax(dim=1)
    return alpha * probs + (1 - alpha) * matmul_float32(affinity, memory_probs)


def pseudo_label_graph(
    probs: Tensor, reference: Tensor, threshold: float, first_self_loop: int = 0
) -> Tensor:
    """W_ij = p_i . p_j, self-loops of weight 1, edges below the threshold removed, rows of sum 1.

    Args:
        probs: (M, C) pseudo-labels of the rows.
        reference: (R, C) pseudo-labels of the columns, of which columns
            first_self_loop .. first_self_loop + M - 1 are the rows themselves.
    Returns: (M, R).
    """
    graph = matmul_float32(probs, reference.T)
    graph.diagonal(offset=first_self_loop).fill_(1.0)
    graph = graph * (graph >= threshold)
    return graph / graph.sum(dim=1, keepdim=True)


def graph_contrastive_loss(
    query: Tensor, reference: Tensor, graph: Tensor, temperature: float
) -> Tensor:
    """Cross-entropy between the pseudo-label graph (target) and the embedding graph.

    Shapes: query (M, d), reference (R, d), graph (M, R). Returns the mean over rows.
    """
    return soft_target_nce(similarity_logits(query, reference, temperature), graph, LOG_EPSILON)


def confident_cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of the confident samples, averaged over ALL M samples.

    `targets`: (M,) hard labels (FixMatch) or (M, C) soft ones (CoMatch); `mask`: (M,) in {0, 1}.
    """
    return (F.cross_entropy(logits, targets, reduction="none") * mask).mean()
