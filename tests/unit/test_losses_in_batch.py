"""Contrast within a batch: values by hand, and the gradient."""

import math
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from shared.losses.contrastive import InBatchContrast, in_batch_nce


def close(found: Tensor, expected: Any) -> None:
    expected = torch.as_tensor(expected, dtype=found.dtype)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_in_batch_nce_by_hand() -> None:
    """Similarities [[1, 0], [0.6, 0.8]] at tau = 0.5."""
    queries = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    codes = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    first = -2 + math.log(math.exp(2) + 1)
    second = -1.6 + math.log(math.exp(1.2) + math.exp(1.6))
    close(in_batch_nce(queries, codes, 0.5), (first + second) / 2)
    close(in_batch_nce(queries, codes, 1.0), (
        -1 + math.log(math.e + 1) - 0.8 + math.log(math.exp(0.6) + math.exp(0.8))
    ) / 2)  # fmt: skip


def test_the_contrast_is_from_queries_to_codes() -> None:
    """A query with one rival; seen from the codes there would be none."""
    queries, codes = torch.tensor([[1.0, 0.0]]), torch.eye(2)
    close(in_batch_nce(queries, codes, 1.0), math.log(math.e + 1) - 1)
    close(in_batch_nce(queries, codes, 1.0, first=1), math.log(math.e + 1))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(0, 3), st.integers(0, 3), st.floats(0.02, 1.0))
def test_in_batch_nce_and_its_gradient(
    size: int, before: int, behind: int, temperature: float
) -> None:
    """dL/dq_i = (1 / (B tau)) sum_j (P_ij - delta_ij) c_j, where codes of others stand around."""
    torch.manual_seed(size)
    queries = F.normalize(torch.randn(size, 4), dim=1).requires_grad_()
    codes = F.normalize(torch.randn(before + size + behind, 4), dim=1).requires_grad_()
    loss = in_batch_nce(queries, codes, temperature, first=before)
    logits = (queries @ codes.T / temperature).detach()
    own = F.one_hot(torch.arange(size) + before, len(codes))
    apart = (logits.softmax(dim=1) - own) / (size * temperature)
    close(loss, (torch.logsumexp(logits, dim=1) - (logits * own).sum(dim=1)).mean())
    loss.backward()
    torch.testing.assert_close(queries.grad, apart @ codes.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(codes.grad, apart.T @ queries.detach(), rtol=1e-4, atol=1e-5)


def test_similarities_are_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    queries, codes = torch.randn(4, 64), torch.randn(4, 64)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = in_batch_nce(queries, codes, 0.05)
    assert torch.equal(mixed, in_batch_nce(queries, codes, 0.05))


def test_symmetric_contrast_is_the_mean_of_both_directions() -> None:
    torch.manual_seed(0)
    queries, codes = torch.randn(3, 4), torch.randn(3, 4)
    there, back = in_batch_nce(queries, codes, 0.5), in_batch_nce(codes, queries, 0.5)
    one, both = InBatchContrast(gather=False), InBatchContrast(symmetric=True)
    close(one(queries, codes, 0.5), there)
    close(both(queries, codes, torch.tensor(0.5)), (there + back) / 2)
    assert one.negatives(3) == both.negatives(3) == 2
