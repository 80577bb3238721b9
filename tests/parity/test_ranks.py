"""The pair of processes that tests share: a rank that fails is named at once, and replaced."""

import pytest
import torch.distributed as dist

from .two_processes import on_each_rank


def meet(rank: int, failing: int | None) -> int:
    if rank == failing:
        raise KeyError("planted")
    dist.barrier()
    return rank


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_fails_leaves_no_other_waiting(failing: int) -> None:
    with pytest.raises(KeyError, match="planted"):
        on_each_rank(meet, failing)
    assert on_each_rank(meet, None) == [0, 1]
