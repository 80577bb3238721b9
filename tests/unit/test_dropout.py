"""Dropout from 16 bits an element."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from shared.nn import dropout as module
from shared.nn.dropout import dropout


@settings(max_examples=30)
@given(st.integers(0, 9), st.sampled_from([0.1, 0.3, 0.5]), st.integers(0, 3))
def test_elements_are_zeroed_or_scaled_and_so_are_gradients(
    count: int, p: float, seed: int
) -> None:
    """Whatever the size is modulo the four elements of a draw."""
    torch.manual_seed(seed)
    x = torch.rand(count, 3, dtype=torch.double).add(1).requires_grad_()
    found = dropout(x, p, training=True)
    kept = (found != 0).double() / (1 - p)
    torch.testing.assert_close(found, x * kept, rtol=1e-12, atol=0)
    found.sum().backward()
    torch.testing.assert_close(x.grad, kept, rtol=1e-12, atol=0)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_each_of_the_four_lanes_is_zeroed_with_probability_p(p: float) -> None:
    torch.manual_seed(0)
    shares = (dropout(torch.ones(200_000, 4), p, training=True) == 0).double().mean(dim=0)
    error = 5 * (p * (1 - p) / 200_000) ** 0.5
    torch.testing.assert_close(shares, torch.full((4,), p).double(), rtol=0, atol=error)


def test_neighbours_are_independent() -> None:
    torch.manual_seed(0)
    zeroed = (dropout(torch.ones(100_000, 4), 0.5, training=True) == 0).double()
    assert (torch.corrcoef(zeroed.T) - torch.eye(4)).abs().max() < 0.02


@pytest.mark.parametrize("p", [1e-6, 1 - 1e-6])
def test_thresholds_at_the_ends_of_16_bits(p: float) -> None:
    """Nearly nothing or nearly all is zeroed; no threshold leaves the range of the numbers."""
    torch.manual_seed(0)
    share = float((dropout(torch.ones(10_000), p, training=True) == 0).double().mean())
    assert share == pytest.approx(p, abs=1e-3)


def test_the_seed_fixes_the_mask() -> None:
    x = torch.rand(7, 5)
    torch.manual_seed(3)
    first, second = dropout(x, 0.5, training=True), dropout(x, 0.5, training=True)
    torch.manual_seed(3)
    assert torch.equal(first, dropout(x, 0.5, training=True))
    assert not torch.equal(first, second)


def test_as_torch_where_nothing_is_drawn() -> None:
    x = torch.rand(5)
    state = torch.get_rng_state()
    assert torch.equal(dropout(x, 0.5, training=False), x)
    assert torch.equal(dropout(x, 0.0, training=True), x)
    assert (dropout(x, 1.0, training=True) == 0).all()
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="probability"):
        dropout(x, 1.5, training=True)


def test_other_devices_draw_as_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(count: int) -> None:
        raise AssertionError("drawn on the CPU")

    monkeypatch.setattr(module, "_uniform16", refuse)
    assert dropout(torch.empty(3, device="meta"), 0.5, training=True).device.type == "meta"


def test_bf16_stays_bf16() -> None:
    x = torch.ones(4000, dtype=torch.bfloat16)
    torch.manual_seed(0)
    found = dropout(x, 0.1, training=True)
    assert found.dtype is torch.bfloat16
    # Torch's own scale has the same rounding.
    assert set(found.tolist()) == set(F.dropout(x, 0.1, training=True).tolist())
