"""Logged figures of pseudo-labels and of their graph; true labels serve here only."""

from torch import Tensor

from shared.distributed import all_gather, rank


def pseudo_label_quality(
    labels: Tensor, mask: Tensor, hidden_labels: Tensor
) -> dict[str, Tensor | float]:
    """Coverage of the confident pseudo-labels and their accuracy, in percent.

    Args: labels (M,) pseudo-labels, mask (M,), hidden_labels (M,) true labels, -1 if unknown.
    """
    values: dict[str, Tensor | float] = {"coverage": 100 * mask.mean()}
    known = mask * (hidden_labels >= 0)
    if known.any():
        right = (labels == hidden_labels) * known
        values["pseudo_label_accuracy"] = 100 * right.sum() / known.sum()
    return values


def graph_quality(graph: Tensor, hidden_labels: Tensor) -> dict[str, Tensor | float]:
    """Edges per row besides the self-loop, and the percentage that join one class.

    Args: graph (M, world M), hidden_labels (M,) true labels of this rank, -1 if unknown.
    """
    everyone = all_gather(hidden_labels)
    edges = graph > 0
    edges.diagonal(offset=rank() * len(graph)).fill_(False)
    values: dict[str, Tensor | float] = {"edges_per_row": edges.sum() / len(graph)}
    known = edges * (hidden_labels >= 0)[:, None] * (everyone >= 0)[None]
    if known.any():
        same = known * (hidden_labels[:, None] == everyone[None])
        values["edge_precision"] = 100 * same.sum() / known.sum()
    return values
