"""Collectives between two gloo processes, and their identity in one."""

from typing import Any

import pytest
import torch
from torch import nn

from shared.distributed import (
    all_gather,
    all_reduce_mean,
    own_rows,
    pad_to_longest,
    rank,
    shuffled_forward,
    step_permutation,
    world_size,
)
from tests.parity.two_processes import on_each_rank

PERMUTATION = torch.tensor([2, 0, 3, 1])


def local(which: int) -> torch.Tensor:
    """Rows 0, 1 on rank 0 and 10, 11 on rank 1."""
    return 10.0 * which + torch.arange(2.0)[:, None]


class KeyNetwork(nn.Module):
    """(B, 2) -> None and the rows normalised together: the pair of an `Encoder` without classes."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2, affine=False)

    def forward(self, x: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, self.norm(x)


IMAGES = torch.tensor([[0.0, 5.0], [1.0, 3.0], [4.0, 9.0], [10.0, 2.0]])


def worker(number: int) -> dict[str, Any]:
    x = local(number).requires_grad_()
    # Each rank's loss weighs the gathered rows by (1, 2, 3, 4), times 1 on rank 0 and 10 on rank 1.
    gathered = all_gather(x, grad=True)
    (gathered[:, 0] * torch.arange(1.0, 5.0)).sum().mul(10.0**number).backward()
    shuffled = own_rows(all_gather(x)[PERMUTATION])
    nothing, keys = shuffled_forward(KeyNetwork(), own_rows(IMAGES), PERMUTATION)
    try:
        all_gather(torch.zeros(number + 1, 1))
        uneven = ""
    except ValueError as error:
        uneven = str(error)
    return {
        "place": (rank(), world_size()),
        "gathered": gathered.detach(),
        "gradient": x.grad,
        "plain": all_gather(x),
        "mean": all_reduce_mean(x.detach()),
        "own": own_rows(torch.arange(6)),
        "shuffled": shuffled,
        "nothing": nothing,
        "keys": keys,
        "padded": pad_to_longest(torch.full((2, 2 + number), number + 1), -7),
        "padded_mask": pad_to_longest(torch.ones(1, 3 - number), 0),
        "permutation": step_permutation(3, 7, 4),
        "uneven": uneven,
    }


@pytest.fixture(scope="module")
def ranks() -> list[dict]:
    return on_each_rank(worker)


def test_each_collective(ranks: list[dict]) -> None:
    for number, result in enumerate(ranks):
        assert result["place"] == (number, 2)
        assert result["gathered"].flatten().tolist() == [0, 1, 10, 11]  # in rank order
        assert torch.equal(result["plain"], result["gathered"])
        assert not result["plain"].requires_grad
        # The gradient of all ranks reaches the owner.
        assert result["gradient"].flatten().tolist() == [[11, 22], [33, 44]][number]
        assert result["mean"].flatten().tolist() == [5, 6]
        assert result["own"].tolist() == [[0, 1, 2], [3, 4, 5]][number]
        # Rows are padded to the longest of all ranks, whichever rank has it.
        assert result["padded"].tolist() == [[[1, 1, -7]] * 2, [[2, 2, 2]] * 2][number]
        assert result["padded_mask"].tolist() == [[[1, 1, 1]], [[1, 1, 0]]][number]
        assert result["padded"].dtype == torch.long
        assert "different batch sizes: [1, 2]" in result["uneven"]


def test_shuffle_crosses_ranks(ranks: list[dict]) -> None:
    assert ranks[0]["shuffled"].flatten().tolist() == [10, 0]
    assert ranks[1]["shuffled"].flatten().tolist() == [11, 1]


def test_shuffled_forward_is_one_process_with_batchnorm_over_the_shuffled_halves(
    ranks: list[dict],
) -> None:
    network = KeyNetwork()
    shuffled = IMAGES[PERMUTATION]
    halves = torch.cat([network(shuffled[:2])[1], network(shuffled[2:])[1]])
    expected = torch.empty_like(halves)
    expected[PERMUTATION] = halves
    for number, result in enumerate(ranks):
        assert result["nothing"] is None
        torch.testing.assert_close(result["keys"], expected[2 * number : 2 * number + 2])
    unshuffled = network(IMAGES[:2])[1]
    assert not torch.allclose(ranks[0]["keys"], unshuffled, atol=0.1)


def test_permutation_of_a_step_is_the_same_on_all_ranks_and_changes_with_seed_and_step(
    ranks: list[dict],
) -> None:
    assert torch.equal(ranks[0]["permutation"], ranks[1]["permutation"])
    assert torch.equal(ranks[0]["permutation"], step_permutation(3, 7, 4))
    drawn = [step_permutation(seed, step, 50) for seed, step in ((3, 7), (3, 8), (4, 7), (7, 3))]
    assert all(sorted(p.tolist()) == list(range(50)) for p in drawn)
    assert len({tuple(p.tolist()) for p in drawn}) == 4


def test_one_process_is_the_identity() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    assert (rank(), world_size()) == (0, 1)
    assert all_gather(x, grad=True) is x
    assert all_reduce_mean(x) is x
    assert pad_to_longest(x, 0.0) is x
    assert torch.equal(own_rows(x), x)


def test_shuffled_forward_in_one_process_is_the_plain_forward_without_gradient() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    images = torch.randn(4, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    seen = []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    keys = shuffled_forward(network, images, PERMUTATION)
    assert torch.equal(seen[0], images[PERMUTATION])
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert not keys.requires_grad
    torch.testing.assert_close(keys, network(images).detach())
