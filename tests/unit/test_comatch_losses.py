"""Equations of CoMatch and FixMatch on numbers worked out by hand."""

from math import e, log

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from methods.comatch.losses import (
    DistributionAlignment,
    confident_cross_entropy,
    graph_contrastive_loss,
    pseudo_label_graph,
    smooth_with_memory,
)
from shared.losses.contrastive import info_nce, similarity_logits, soft_target_nce


def close(got: Tensor, expected: object) -> None:
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=got.dtype))


def test_alignment_divides_by_the_mean_of_the_window() -> None:
    alignment = DistributionAlignment(num_classes=2, window=2)
    # First batch: the window holds only its own mean (0.7, 0.3).
    first = alignment(torch.tensor([[0.9, 0.1], [0.5, 0.5]]))
    odds = torch.tensor([(0.9 / 0.7) / (0.1 / 0.3), 0.3 / 0.7])
    close(first[:, 0] / first[:, 1], odds)
    close(first.sum(dim=1), [1.0, 1.0])
    # Second: mean of (0.7, 0.3) and (0.2, 0.8).
    second = alignment(torch.tensor([[0.2, 0.8]]))
    close(alignment.mean(), [0.45, 0.55])
    close(second[0, 0] / second[0, 1], (0.2 / 0.45) / (0.8 / 0.55))
    # Third: the first batch has left.
    alignment(torch.tensor([[0.4, 0.6]]))
    close(alignment.mean(), [0.3, 0.7])
    close(alignment.history(), [[0.2, 0.8], [0.4, 0.6]])


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


def test_smoothing_by_hand() -> None:
    """Similarities 1 and 0 at T = 1: affinities e : 1."""
    smoothed = smooth_with_memory(
        torch.tensor([[0.5, 0.5]]),
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        temperature=1.0,
        alpha=0.8,
    )
    close(smoothed, [[0.4 + 0.2 * e / (e + 1), 0.4 + 0.2 / (e + 1)]])


def test_smoothing_keeps_rows_summing_to_one_and_alpha_one_changes_nothing() -> None:
    probs = torch.randn(4, 3).softmax(dim=1)
    memory = F.normalize(torch.randn(9, 5), dim=1), torch.randn(9, 3).softmax(dim=1)
    z = F.normalize(torch.randn(4, 5), dim=1)
    close(smooth_with_memory(probs, z, *memory, 0.2, 0.9).sum(dim=1), torch.ones(4))
    close(smooth_with_memory(probs, z, *memory, 0.2, 1.0), probs)


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


def test_graph_contrastive_loss_by_hand() -> None:
    """Similarities (1, 0) at T = 1, target (1/2, 1/2)."""
    loss = graph_contrastive_loss(
        torch.tensor([[1.0, 0.0]]), torch.eye(2), torch.tensor([[0.5, 0.5]]), temperature=1.0
    )
    close(loss, -0.5 * log(e / (e + 1) + 1e-7) - 0.5 * log(1 / (e + 1) + 1e-7))


def test_confident_cross_entropy_averages_over_all() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, log(3.0)], [5.0, 5.0]])
    mask = torch.tensor([1.0, 1.0, 0.0])
    hard = confident_cross_entropy(logits, torch.tensor([0, 1, 0]), mask)
    close(hard, (log(2) + log(4 / 3)) / 3)
    soft = torch.tensor([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]])
    close(
        confident_cross_entropy(logits, soft, mask),
        (log(2) - 0.25 * log(1 / 4) - 0.75 * log(3 / 4)) / 3,
    )
    close(confident_cross_entropy(logits, soft, torch.zeros(3)), 0.0)


def test_info_nce_by_hand() -> None:
    """Positive 1, negatives 0 and -1, T = 1."""
    query, key = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    queue = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    close(info_nce(query, key, queue, 1.0), -log(e / (e + 1 + 1 / e)))


def test_info_nce_is_the_soft_target_loss_with_one_positive() -> None:
    query, key, queue = (F.normalize(torch.randn(n, 6), dim=1) for n in (3, 3, 8))
    references = torch.cat([key, queue])
    logits = similarity_logits(query, references, 0.3)
    targets = torch.zeros(3, 11)
    targets[:, :3] = torch.eye(3)
    logits[:, :3].masked_fill_(~torch.eye(3, dtype=torch.bool), -torch.inf)
    log_probs = logits.log_softmax(dim=1)
    expected = -log_probs[:, :3].diagonal().mean()
    close(info_nce(query, key, queue, 0.3), expected)


def test_queue_may_be_written_between_info_nce_and_its_backward_pass() -> None:
    query, key, queue = (F.normalize(torch.randn(n, 6), dim=1) for n in (3, 3, 8))
    gradients = []
    for overwrite in (False, True):
        memory, leaf = queue.clone(), query.clone().requires_grad_()
        loss = info_nce(leaf, key, memory, 0.3)
        if overwrite:
            memory.zero_()
        loss.backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


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
