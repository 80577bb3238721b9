"""The first layer that finds edges, by hand."""

import math

import pytest
import torch

from shared.nn.oriented_gradients import BINS, OrientedGradients


def ramp(angle: float, side: int = 16) -> torch.Tensor:
    """A picture that grows brighter in the direction of `angle`."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    brightness = (x * math.cos(angle) + y * math.sin(angle)) / side
    return brightness.expand(1, 3, side, side).clone()


@pytest.mark.parametrize("number", range(BINS))
def test_a_ramp_is_in_the_bin_of_its_direction(number: int) -> None:
    angle = (number + 0.5) * math.pi / BINS
    found = OrientedGradients(4)(ramp(angle))[0, :BINS, 1:3, 1:3]  # without the picture's rim
    assert (found.argmax(dim=0) == number).all()
    opposite = OrientedGradients(4)(ramp(angle + math.pi))[0, :BINS, 1:3, 1:3]
    torch.testing.assert_close(found, opposite, atol=1e-4, rtol=1e-4)


def test_between_two_bins_both_share_it() -> None:
    found = OrientedGradients(4)(ramp(2 * math.pi / BINS))[0, :BINS, 1, 1]
    assert set(found.topk(2).indices.tolist()) == {1, 2}
    torch.testing.assert_close(found[1], found[2], atol=1e-3, rtol=1e-3)
    assert found.topk(3).values[2] < 0.01


def test_an_edge_is_that_of_its_strongest_channel_and_grows_with_it() -> None:
    image = torch.zeros(1, 3, 8, 8)
    image[:, 1] = ramp(0.1, 8)[:, 0]
    image[:, 2] = 0.3 * ramp(1.6, 8)[:, 0]
    layer = OrientedGradients(4)
    both, alone = layer(image), layer(image * torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1))
    torch.testing.assert_close(both[:, :BINS], alone[:, :BINS])
    four_times = layer(4 * image)[:, :BINS]
    torch.testing.assert_close(four_times, 2 * both[:, :BINS], atol=5e-3, rtol=5e-3)


def test_a_flat_picture_has_a_colour_and_no_edge() -> None:
    colour = torch.tensor([0.2, -0.4, 0.9])
    found = OrientedGradients(2)(colour.view(1, 3, 1, 1).expand(2, 3, 8, 8))
    assert found.shape == (2, BINS + 3, 4, 4)
    assert (found[:, :BINS] <= 1.1e-3).all()
    torch.testing.assert_close(found[:, BINS:], colour.view(1, 3, 1, 1).expand(2, 3, 4, 4))


def test_nothing_is_learned_nor_kept_in_a_checkpoint() -> None:
    layer = OrientedGradients(4)
    assert not list(layer.parameters())
    assert not layer.state_dict()
    assert not layer(torch.rand(1, 3, 8, 8, requires_grad=True)).requires_grad
