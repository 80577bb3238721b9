"""Class prototypes: the closed form against the loop of the papers, first sightings, gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from shared.nn.prototypes import ClassPrototypes


def one_after_another(
    prototypes: torch.Tensor, features: torch.Tensor, labels: torch.Tensor, m: float
) -> torch.Tensor:
    """The papers' rule in float64, row by row, then normalised once."""
    prototypes = prototypes.double().clone()
    for z, y in zip(features.double(), labels.tolist(), strict=True):
        prototypes[y] = m * prototypes[y] + (1 - m) * z
    return F.normalize(prototypes, dim=1, eps=1e-12).float()


def unit(rows: int, dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator), dim=1)


@settings(max_examples=25, deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), max_size=12),
    momentum=st.sampled_from([0.0, 0.5, 0.9, 0.999, 1.0]),
    seed=st.integers(0, 100),
    seen=st.booleans(),
)
def test_closed_form_is_the_sequential_rule(labels, momentum, seed, seen) -> None:
    classes = ClassPrototypes(4, 3)
    if seen:
        classes.prototypes.copy_(unit(4, 3, seed + 1))
    features, targets = unit(len(labels), 3, seed), torch.tensor(labels, dtype=torch.long)
    expected = one_after_another(classes.prototypes, features, targets, momentum)
    classes.update(features, targets, momentum)
    torch.testing.assert_close(classes.prototypes, expected)


def test_a_large_batch_of_one_class_keeps_its_precision() -> None:
    classes = ClassPrototypes(1, 4)
    classes.prototypes.copy_(unit(1, 4, 1))
    features, labels = unit(4096, 4, 2), torch.zeros(4096, dtype=torch.long)
    expected = one_after_another(classes.prototypes, features, labels, 0.999)
    classes.update(features, labels, 0.999)
    torch.testing.assert_close(classes.prototypes, expected)


def test_rows_that_are_not_kept_count_for_nothing() -> None:
    features, labels = unit(6, 3, 0), torch.tensor([0, 1, 0, 2, 1, 0])
    keep = torch.tensor([True, False, True, False, True, True])
    masked, filtered = ClassPrototypes(4, 3), ClassPrototypes(4, 3)
    masked.update(features, labels, 0.9, keep)
    filtered.update(features[keep], labels[keep], 0.9)
    assert torch.equal(masked.prototypes, filtered.prototypes)
    assert torch.equal(masked.prototypes[2], torch.zeros(3))
    before = masked.prototypes.clone()
    masked.update(features, labels, 0.9, torch.zeros(6, dtype=torch.bool))
    torch.testing.assert_close(masked.prototypes, before)


def test_the_first_sample_is_the_prototype_and_an_unseen_class_has_logit_zero() -> None:
    classes = ClassPrototypes(3, 4)
    z = unit(1, 4, 0)
    classes.update(z, torch.tensor([1]), 0.999)
    torch.testing.assert_close(classes.prototypes[1], z[0])
    logits = classes.logits(z, temperature=0.5)
    torch.testing.assert_close(logits, torch.tensor([[0.0, 2.0, 0.0]]))


def test_prototypes_are_constants_and_may_change_before_the_backward_pass() -> None:
    classes = ClassPrototypes(3, 4)
    classes.prototypes.copy_(unit(3, 4, 0))
    before = classes.prototypes.clone()
    query = unit(2, 4, 1).requires_grad_()
    logits = classes.logits(query, 0.1)
    classes.update(query, torch.tensor([0, 2]), 0.5)
    logits.sum().backward()
    torch.testing.assert_close(query.grad, (before.sum(dim=0) / 0.1).expand(2, 4))
    assert not classes.prototypes.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_updates_are_in_float32_under_autocast(dtype: torch.dtype) -> None:
    exact, mixed = ClassPrototypes(2, 8), ClassPrototypes(2, 8)
    features, labels = unit(10, 8, 0).to(dtype), torch.arange(10) % 2
    exact.update(features.float(), labels, 0.99)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed.update(features, labels, 0.99)
        logits = mixed.logits(features, 0.1)
    assert torch.equal(mixed.prototypes, exact.prototypes)
    assert mixed.prototypes.dtype == logits.dtype == torch.float32
