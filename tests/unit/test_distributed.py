"""Collectives between two gloo processes, and their identity in one."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from shared.training.distributed import (
    all_gather,
    all_reduce_mean,
    batch_shuffle,
    batch_unshuffle,
    own_rows,
    rank,
    world_size,
)

PERMUTATION = torch.tensor([2, 0, 3, 1])


def local(which: int) -> torch.Tensor:
    """Rows 0, 1 on rank 0 and 10, 11 on rank 1."""
    return 10.0 * which + torch.arange(2.0)[:, None]


def worker(number: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=2
    )
    x = local(number).requires_grad_()
    # Each rank's loss weighs the gathered rows by (1, 2, 3, 4), times 1 on rank 0 and 10 on rank 1.
    gathered = all_gather(x, grad=True)
    (gathered[:, 0] * torch.arange(1.0, 5.0)).sum().mul(10.0**number).backward()
    shuffled = batch_shuffle(x, PERMUTATION)
    try:
        all_gather(torch.zeros(number + 1, 1))
        uneven = ""
    except ValueError as error:
        uneven = str(error)
    result = {
        "place": (rank(), world_size()),
        "gathered": gathered.detach(),
        "gradient": x.grad,
        "plain": all_gather(x),
        "mean": all_reduce_mean(x.detach()),
        "own": own_rows(torch.arange(6)),
        "shuffled": shuffled,
        "unshuffled": batch_unshuffle(shuffled, PERMUTATION),
        "uneven": uneven,
    }
    torch.save(result, f"{folder}/{number}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{number}.pt") for number in range(2)]


def test_gather_is_in_rank_order(ranks: list[dict]) -> None:
    for number, result in enumerate(ranks):
        assert result["place"] == (number, 2)
        assert result["gathered"].flatten().tolist() == [0, 1, 10, 11]
        assert torch.equal(result["plain"], result["gathered"])
        assert not result["plain"].requires_grad


def test_gradient_of_all_ranks_reaches_the_owner(ranks: list[dict]) -> None:
    assert ranks[0]["gradient"].flatten().tolist() == [11, 22]
    assert ranks[1]["gradient"].flatten().tolist() == [33, 44]


def test_mean_and_own_rows(ranks: list[dict]) -> None:
    for number, result in enumerate(ranks):
        assert result["mean"].flatten().tolist() == [5, 6]
        assert result["own"].tolist() == [[0, 1, 2], [3, 4, 5]][number]


def test_shuffle_crosses_ranks_and_is_undone(ranks: list[dict]) -> None:
    assert ranks[0]["shuffled"].flatten().tolist() == [10, 0]
    assert ranks[1]["shuffled"].flatten().tolist() == [11, 1]
    for result in ranks:
        assert result["unshuffled"].flatten().tolist() == [0, 1, 10, 11]


def test_uneven_batches_are_refused(ranks: list[dict]) -> None:
    assert all("different batch sizes: [1, 2]" in result["uneven"] for result in ranks)


def test_one_process_is_the_identity() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    assert (rank(), world_size()) == (0, 1)
    assert all_gather(x, grad=True) is x
    assert all_reduce_mean(x) is x
    assert torch.equal(own_rows(x), x)
    assert torch.equal(batch_unshuffle(batch_shuffle(x, PERMUTATION), PERMUTATION), x)
