"""Schedules at points known by hand; parameter groups by name."""

from math import cos, pi, sqrt

import pytest
import torch
from torch import nn

from shared.training.optim import weight_decay_groups
from shared.training.schedules import cosine_7_16, half_cosine, steps, warm_up_decay


def test_cosine_7_16() -> None:
    assert cosine_7_16(0, 100) == 1.0
    assert cosine_7_16(100, 100) == pytest.approx(cos(7 * pi / 16))
    assert cosine_7_16(100, 100) == pytest.approx(0.19509, abs=1e-5)
    assert cosine_7_16(400, 700) == pytest.approx(sqrt(2) / 2)  # a quarter of pi


def test_half_cosine() -> None:
    assert half_cosine(0, 12) == 1.0
    assert half_cosine(4, 12) == pytest.approx(0.75)
    assert half_cosine(6, 12) == pytest.approx(0.5)
    assert half_cosine(12, 12) == pytest.approx(0.0, abs=1e-12)


def test_steps_change_at_the_milestones() -> None:
    rates = [steps(epoch, [2, 4], 0.2) for epoch in range(6)]
    assert rates == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04])
    assert steps(100, [], 0.1) == 1.0


def test_warm_up_decay() -> None:
    assert warm_up_decay(0, 0.99) == pytest.approx(0.1)
    assert warm_up_decay(8, 0.99) == pytest.approx(0.5)
    assert warm_up_decay(10_000, 0.99) == 0.99
    assert warm_up_decay(0, 0.05) == 0.05


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn1, self.fc = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Linear(1, 1)
        self.frozen = nn.Linear(1, 1).requires_grad_(False)


def test_groups_go_by_name() -> None:
    toy = Toy()
    decayed, spared = weight_decay_groups(toy, 0.1, ["bn"])
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0.0
    assert [id(p) for p in spared["params"]] == [id(toy.bn1.weight), id(toy.bn1.bias)]
    # Biases of linear layers are decayed, and nothing frozen is there.
    expected = [toy.conv.weight, toy.conv.bias, toy.fc.weight, toy.fc.bias]
    assert [id(p) for p in decayed["params"]] == [id(p) for p in expected]


def test_one_group_without_exceptions_and_no_misspelt_one() -> None:
    [everything] = weight_decay_groups(Toy(), 0.1)
    assert len(everything["params"]) == 6
    with pytest.raises(ValueError, match="'batchnorm' fits no parameter"):
        weight_decay_groups(Toy(), 0.1, ["batchnorm"])


def test_decay_alone_moves_only_the_decayed() -> None:
    toy = Toy()
    optimizer = torch.optim.SGD(weight_decay_groups(toy, 0.5, ["bn"]), lr=0.1)
    before = {name: p.detach().clone() for name, p in toy.named_parameters()}
    for p in toy.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in toy.named_parameters():
        kept = 1.0 if "bn" in name or "frozen" in name else 0.95
        torch.testing.assert_close(p.detach(), kept * before[name])
