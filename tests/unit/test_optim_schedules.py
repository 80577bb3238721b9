"""Schedules at points known by hand; parameter groups by name."""

from math import cos, pi, sqrt

import pytest
import torch
from torch import nn

from shared.training.optim import decay_matrices, weight_decay_groups
from shared.training.schedules import (
    cosine_7_16,
    decay_by_epoch,
    half_cosine,
    stepped_cosine,
    steps,
    warm_up_decay,
)

approx = pytest.approx


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (cosine_7_16(0, 100), 1.0),
        (cosine_7_16(100, 100), approx(cos(7 * pi / 16))),
        (cosine_7_16(100, 100), approx(0.19509, abs=1e-5)),
        (cosine_7_16(400, 700), approx(sqrt(2) / 2)),  # a quarter of pi
        (half_cosine(0, 12), 1.0),
        (half_cosine(4, 12), approx(0.75)),
        (half_cosine(6, 12), approx(0.5)),
        (half_cosine(12, 12), approx(0.0, abs=1e-12)),
        (steps(100, [], 0.1), 1.0),
        ([steps(epoch, [2, 4], 0.2) for epoch in range(6)], approx([1, 1, 0.2, 0.2, 0.04, 0.04])),
        (warm_up_decay(0, 0.99), approx(0.1)),
        (warm_up_decay(8, 0.99), approx(0.5)),
        (warm_up_decay(10_000, 0.99), 0.99),
        (warm_up_decay(0, 0.05), 0.05),
    ],
)
def test_factors_at_points_known_by_hand(value, expected) -> None:
    assert value == expected


ALBEF = {"lr": 1e-4, "min_lr": 1e-5, "warmup_lr": 1e-5, "warmup_blocks": 20, "epochs": 30}


def test_stepped_cosine_warms_up_in_stairs() -> None:
    """The rate is set after every hundredth iteration, hence in force from the one after it."""
    for iteration, stair in [(0, 0), (1, 0), (100, 0), (101, 1), (200, 1), (201, 2), (1901, 19),
                             (2000, 19), (2001, 20), (50_000, 20)]:  # fmt: skip
        expected = 1e-5 + stair * 9e-5 / 20
        assert stepped_cosine(0, iteration, **ALBEF) == approx(expected), iteration
    assert stepped_cosine(0, 2001, **ALBEF) == approx(1e-4)


@pytest.mark.parametrize("iteration", [0, 57, 9999])
def test_stepped_cosine_falls_by_epochs(iteration: int) -> None:
    """From the position of the epoch's number, as if the warm-up had been no epoch."""
    for epoch, share in [(10, 0.75), (15, 0.5), (20, 0.25), (30, 0.0), (31, 0.0)]:
        expected = 1e-5 + share * 9e-5
        assert stepped_cosine(epoch, iteration, **ALBEF) == approx(expected)
    first = stepped_cosine(1, iteration, **ALBEF)
    assert first == approx(1e-5 + 9e-5 * (1 + cos(pi / 30)) / 2)


def test_stepped_cosine_with_shorter_stairs_and_without_any() -> None:
    short = {**ALBEF, "warmup_blocks": 3, "warmup_block": 2}
    rates = [stepped_cosine(0, iteration, **short) for iteration in range(9)]
    assert rates == approx([1e-5] * 3 + [4e-5] * 2 + [7e-5] * 2 + [1e-4] * 2)
    none = {**ALBEF, "warmup_blocks": 0}
    assert stepped_cosine(0, 0, **none) == approx(1e-4)
    assert stepped_cosine(15, 0, **none) == approx(5.5e-5)


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


class Wrapped(nn.Module):
    """As ALBEF's: a temperature, embeddings, a class token, tied weights, a frozen copy."""

    def __init__(self) -> None:
        super().__init__()
        self.temp = nn.Parameter(torch.tensor(0.07))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 2))
        self.gain = nn.Parameter(torch.ones(2))
        self.words, self.head = nn.Embedding(3, 2), nn.Linear(2, 3)
        self.head.weight = self.words.weight
        self.norm, self.copy = nn.LayerNorm(2), nn.Linear(2, 2).requires_grad_(False)
        self.table = nn.ParameterDict({"bias": nn.Parameter(torch.zeros(2, 2))})


def test_matrices_are_decayed() -> None:
    """Spared are one-dimensional parameters and all biases, whatever their shape."""
    module = Wrapped()
    names = {id(p): name for name, p in module.named_parameters()}
    decayed, spared = decay_matrices(module, 0.02)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.02, 0.0)
    found = [sorted(names[id(p)] for p in group["params"]) for group in (decayed, spared)]
    assert found == [
        ["cls_token", "temp", "words.weight"],
        ["gain", "head.bias", "norm.bias", "norm.weight", "table.bias"],
    ]


def test_decay_by_epoch_by_hand() -> None:
    """From 1 to 5 in 4 steps of epoch 0, then 5 x 0.5^epoch, at least 1."""
    given = {"lr": 5.0, "min_lr": 1.0, "warmup_lr": 1.0, "warmup_steps": 4, "decay": 0.5}
    first = [decay_by_epoch(0, iteration, **given) for iteration in range(7)]
    assert first == [1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 5.0]
    assert [decay_by_epoch(epoch, 2, **given) for epoch in (1, 2, 3, 9)] == [2.5, 1.25, 1.0, 1.0]
    assert decay_by_epoch(0, 0, **given | {"warmup_steps": 0}) == 5.0


def test_everything_is_decayed_once() -> None:
    module = nn.ModuleDict({"linear": nn.Linear(2, 3), "norm": nn.LayerNorm(3)})
    module["tied"] = module["linear"]
    module["norm"].bias.requires_grad_(False)
    (group,) = weight_decay_groups(module, 0.05)
    assert group["weight_decay"] == 0.05
    assert [p.shape for p in group["params"]] == [(3, 2), (3,), (3,)]
