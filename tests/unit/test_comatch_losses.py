"""Equations of CoMatch and FixMatch: a graph worked out by hand, and properties."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from methods.comatch.losses import (
    DistributionAlignment,
    pseudo_label_graph,
    smooth_with_memory,
)
from shared.losses.contrastive import similarity_logits, soft_target_nce
from shared.nn.queue import FeatureQueue


def close(got: Tensor, expected: object) -> None:
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=got.dtype))


def test_alignment_makes_a_single_batch_uniform_on_average() -> None:
    """Equal rows aligned by their own mean become uniform."""
    aligned = DistributionAlignment(3, 4)(torch.tensor([[0.7, 0.2, 0.1]] * 5))
    close(aligned, torch.full((5, 3), 1 / 3))


def test_alignment_survives_a_checkpoint() -> None:
    one, other = DistributionAlignment(3, 4), DistributionAlignment(3, 4)
    batches = torch.randn(7, 5, 3).softmax(dim=2)
    for batch in batches[:6]:
        one(batch)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(batches[6]), other(batches[6]))


def test_smoothing_keeps_rows_summing_to_one_and_alpha_one_changes_nothing() -> None:
    probs = torch.randn(4, 3).softmax(dim=1)
    memory = FeatureQueue(9, 5, {"probs": 3})
    rows, z = (F.normalize(torch.randn(n, 5), dim=1) for n in (9, 4))
    memory.enqueue(rows, probs=torch.randn(9, 3).softmax(dim=1))
    close(smooth_with_memory(probs, z, memory, 0.2, 0.9).sum(dim=1), torch.ones(4))
    close(smooth_with_memory(probs, z, memory, 0.2, 1.0), probs)


def test_graph_by_hand() -> None:
    probs = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    # Off-diagonal products 0.5, 0, 0.5; the threshold keeps what equals it.
    graph = pseudo_label_graph(probs, probs, threshold=0.5)
    close(graph, [[2 / 3, 1 / 3, 0], [1 / 4, 1 / 2, 1 / 4], [0, 1 / 3, 2 / 3]])
    close(pseudo_label_graph(probs, probs, threshold=0.51), torch.eye(3))


def test_graph_of_one_slice_is_that_slice_of_the_whole() -> None:
    probs = torch.randn(6, 4).softmax(dim=1)
    whole = pseudo_label_graph(probs, probs, threshold=0.25)
    close(pseudo_label_graph(probs[2:4], probs, 0.25, first_self_loop=2), whole[2:4])
    assert (whole.diagonal() > 0).all()


def test_soft_target_loss_without_epsilon_is_cross_entropy() -> None:
    logits, targets = torch.randn(4, 5), torch.randn(4, 5).softmax(dim=1)
    close(soft_target_nce(logits, targets), F.cross_entropy(logits, targets))


@pytest.mark.parametrize("epsilon", [0.0, 1e-7])
def test_losses_stay_finite_in_half_precision(epsilon: float) -> None:
    """exp(1 / 0.05) overflows float16; under autocast everything is computed in float32."""
    z = F.normalize(torch.randn(6, 8), dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = similarity_logits(z.bfloat16(), z.bfloat16(), 0.05)
        loss = soft_target_nce(logits, torch.eye(6), epsilon)
    assert logits.dtype == loss.dtype == torch.float32
    assert torch.isfinite(loss)
