"""Contrast and matching of images and texts: values by hand, and properties of the draws."""

from math import e, log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared.losses.image_text import (
    draw_negatives,
    matching_loss,
    multi_positive_targets,
    negative_weights,
    soften,
)


def close(found: Tensor, expected: object) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype))


# --- targets ---


def test_soften_by_hand() -> None:
    """Teacher's odds are 3 to 1; a quarter of the weight is its."""
    found = soften(torch.tensor([[1.0, 0.0]]), torch.tensor([[log(3.0), 0.0]]), 0.25)
    close(found, [[0.25 * 0.75 + 0.75, 0.25 * 0.25]])


def test_positives_share_a_row() -> None:
    positives = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 1, 1]]).bool()
    close(
        multi_positive_targets(positives),
        [[0.5, 0, 0.5, 0], [0, 1, 0, 0], [0.25, 0.25, 0.25, 0.25]],
    )


# --- negatives ---


def test_weights_by_hand() -> None:
    """The softmax of all, positives then removed and nothing normalised again."""
    logits = torch.tensor([[1.0, 0.0, 1.0]], requires_grad=True)
    found = negative_weights(logits, torch.tensor([[True, False, False]]))
    close(found, [[0.0, 1 / (2 * e + 1), e / (2 * e + 1)]])
    assert not found.requires_grad


def draws(weights: Tensor, positives: Tensor, count: int) -> Tensor:
    """(count,) evenly spaced draws of the first row."""
    uniforms = (torch.arange(count) + 0.5) / count
    rows = (weights[:1].expand(count, -1), positives[:1].expand(count, -1))
    return draw_negatives(*rows, uniforms)


def test_frequencies_follow_the_weights() -> None:
    weights = torch.tensor([[0.0, 0.1, 0.0, 0.3, 0.2]])  # they do not sum to 1
    positives = torch.tensor([[True, False, False, False, False]])
    found = draws(weights, positives, 600).bincount(minlength=5)
    assert found.tolist() == [0, 100, 0, 300, 200]


def test_a_row_whose_weights_have_vanished_draws_evenly_among_negatives() -> None:
    """As when the softmax underflows but at the positive: 200 of temperature 0.01 apart."""
    positives = torch.tensor([[False, True, False, True, False]])
    logits = torch.tensor([[0.0, 200.0, 0.0, -50.0, 1.0]])
    weights = negative_weights(logits, positives)
    assert (weights == 0).all()
    found = draws(weights, positives, 300).bincount(minlength=5)
    assert found.tolist() == [100, 0, 100, 0, 100]


def test_rows_draw_by_themselves() -> None:
    """By their own number alone: also a vanished row beside one that is not."""
    weights = torch.tensor([[0.0, 0.5, 0.5], [0.0, 0.0, 0.0], [0.9, 0.1, 0.0]])
    positives = torch.eye(3).bool()
    positives[2] = torch.tensor([False, False, True])
    uniforms = torch.tensor([0.6, 0.6, 0.95])
    together = draw_negatives(weights, positives, uniforms)
    assert together.tolist() == [2, 2, 1]
    for row in range(3):
        part = slice(row, row + 1)
        assert draw_negatives(weights[part], positives[part], uniforms[part]) == together[part]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 12),
    st.integers(1, 4),
    st.sampled_from([0.0, 1.0, 30.0, 300.0]),
    st.sampled_from([0.0, 1e-8, 0.5, 1 - 2**-24]),
    st.integers(0, 10_000),
)
def test_a_positive_is_never_drawn(
    size: int, images: int, spread: float, uniform: float, seed: int
) -> None:
    """Whatever the similarities, even where they underflow, and at both ends of the uniforms."""
    generator = torch.Generator().manual_seed(seed)
    identities = torch.randint(0, images + 1, (size,), generator=generator)
    identities[:2] = torch.tensor([0, 1])  # at least two images
    positives = identities[:, None] == identities
    logits = spread * torch.randn(size, size, generator=generator)
    logits[positives] += spread
    weights = negative_weights(logits, positives)
    found = draw_negatives(weights, positives, torch.full((size,), uniform))
    rows = torch.arange(size)
    assert not positives[rows, found].any()
    vanished = weights.sum(dim=1) == 0
    assert (weights[rows, found][~vanished] > 0).all(), "nothing of weight 0 is drawn"


def test_a_batch_of_one_image_is_refused() -> None:
    positives = torch.ones(3, 3).bool()
    with pytest.raises(ValueError, match=r"show the same image(.|\n)*raise batch_size"):
        draw_negatives(torch.zeros(3, 3), positives, torch.zeros(3))


# --- matching ---


def test_matching_loss_by_hand() -> None:
    """Logits (no match, match); the first pair matches, the two others do not."""
    logits = torch.tensor([[0.0, log(3.0)], [log(4.0), 0.0], [0.0, 0.0]])
    expected = -(log(3 / 4) + log(4 / 5) + log(1 / 2)) / 3
    close(matching_loss(logits, 1), expected)
    # All of them match: the labels of the last two turn.
    close(matching_loss(logits, 3), -(log(3 / 4) + log(1 / 5) + log(1 / 2)) / 3)


def test_a_floor_is_added_to_the_softmax_but_not_to_positives() -> None:
    logits = torch.tensor([[0.0, 1.0, -40.0]])
    positives = torch.tensor([[False, True, False]])
    found = negative_weights(logits, positives, floor=1e-4)
    softmax = logits.softmax(dim=1)
    assert found[0].tolist() == pytest.approx([float(softmax[0, 0]) + 1e-4, 0.0, 1e-4])
