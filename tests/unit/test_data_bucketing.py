"""LengthBuckets: one pass, lengths, groups that stay apart, ranks, starts in the middle."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.data.text.length_buckets import LEAST, LengthBuckets

fast = settings(max_examples=20, deadline=None)


def lengths_of(size: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(1, 100, size)


def plans(schedule: LengthBuckets, epoch: int = 0) -> list[list[int]]:
    return [batch.tolist() for batch in schedule.batches(epoch)]


@fast
@given(st.integers(2, 60), st.integers(2, 9), st.integers(1, 4), st.integers(0, 2))
def test_an_epoch_is_one_pass(size: int, batch: int, pool: int, epoch: int) -> None:
    if batch > size:
        with pytest.raises(ValueError, match=f"batch_size={batch} is larger"):
            LengthBuckets(lengths_of(size), batch, 0)
        return
    schedule = LengthBuckets(lengths_of(size), batch, 0, pool_batches=pool)
    found = plans(schedule, epoch)
    seen = [sample for plan in found for sample in plan]
    left_out = size % batch if size % batch < LEAST else 0
    assert len(found) == len(schedule)
    assert len(set(seen)) == len(seen) == size - left_out
    assert sorted(map(len, found))[1:] == [batch] * (len(found) - 1)
    assert min(map(len, found)) >= LEAST


def test_a_function_of_seed_and_epoch_from_any_step_on() -> None:
    schedule = LengthBuckets(lengths_of(50), 8, 3, [np.arange(50) // 2])
    first = plans(schedule)
    assert plans(schedule, 1) != first
    assert plans(schedule) == first
    assert plans(LengthBuckets(lengths_of(50), 8, 4)) != plans(LengthBuckets(lengths_of(50), 8, 3))
    whole = plans(schedule, 2)
    for start in range(len(schedule) + 1):
        assert [b.tolist() for b in schedule.batches(2, start)] == whole[start:]


def padding(schedule: LengthBuckets) -> float:
    """Share of the positions of an epoch that is padding."""
    batches = [schedule.lengths[plan] for plan in plans(schedule)]
    positions = sum(len(batch) * batch.max() for batch in batches)
    return 1 - sum(batch.sum() for batch in batches) / positions


def test_batches_are_about_equally_long_and_come_in_any_order() -> None:
    lengths = lengths_of(4000)
    sorted_by = {pool: LengthBuckets(lengths, 20, 0, pool_batches=pool) for pool in (1, 20)}
    assert padding(sorted_by[20]) < 0.06 < 0.4 < padding(sorted_by[1])
    means = np.array([lengths[plan].mean() for plan in plans(sorted_by[20])])
    assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 0.25  # neither rising nor falling


def test_a_pool_of_one_batch_keeps_the_order_of_the_draw() -> None:
    schedule = LengthBuckets(np.array([5, 1, 4, 2, 3, 9] * 20), 6, 0, pool_batches=1)
    assert any(schedule.lengths[p].tolist() != sorted(schedule.lengths[p]) for p in plans(schedule))


@fast
@given(st.lists(st.integers(0, 12), min_size=24, max_size=60), st.integers(2, 6), st.integers(0, 3))
def test_groups_stay_apart(groups: list[int], batch: int, epoch: int) -> None:
    """Two groupings at once: one drawn, one that pairs neighbours."""
    apart = [np.array(groups), np.arange(len(groups)) // 2]
    schedule = LengthBuckets(lengths_of(len(groups)), batch, 0, apart, pool_batches=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = plans(schedule, epoch)
        except ValueError:  # a whole batch of one group; another test reads the message
            return
    for plan in found:
        for grouping in apart:
            assert len(set(grouping[plan])) == len(plan)
    seen = [sample for plan in found for sample in plan]
    assert len(set(seen)) == len(seen)


def test_nothing_is_lost_while_there_is_room_elsewhere() -> None:
    """Equal samples are equally long, too: sorting puts them side by side."""
    groups = np.arange(600) // 3
    schedule = LengthBuckets(groups, 20, 0, [groups], pool_batches=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch in range(5):
            found = plans(schedule, epoch)
            assert [len(plan) for plan in found] == [20] * 30
            assert all(len(set(groups[plan])) == 20 for plan in found)
    assert padding(schedule) < 0.25


def test_a_group_of_more_samples_than_batches_loses_some_or_all() -> None:
    groups = np.where(np.arange(100) < 15, 0, np.arange(100))
    schedule = LengthBuckets(lengths_of(100), 10, 0, [groups])
    with pytest.warns(UserWarning, match="epoch 1: 5 of 100 training samples are left out"):
        found = plans(schedule, 1)
    assert len(found) == len(schedule) == 10
    assert all((groups[plan] == 0).sum() == 1 for plan in found)
    schedule = LengthBuckets(lengths_of(20), 5, 0, [np.zeros(20)])
    with (
        pytest.warns(UserWarning, match="16 of 20"),
        pytest.raises(ValueError, match="too many of the training samples are of one group"),
    ):
        plans(schedule)


@fast
@given(st.integers(48, 90), st.integers(2, 4), st.sampled_from([2, 3]))
def test_ranks_share_one_batch(size: int, share: int, world: int) -> None:
    groups = [np.arange(size) // 2]
    batch = share * world
    alone = plans(LengthBuckets(lengths_of(size), batch, 0, groups))
    ranks = [
        plans(LengthBuckets(lengths_of(size), batch, 0, groups, rank=r, world=world))
        for r in range(world)
    ]
    assert len({len(found) for found in ranks}) == 1
    joined = [[s for part in parts for s in part] for parts in zip(*ranks, strict=True)]
    full = size // batch
    assert joined[:full] == alone[:full]
    assert {len(plan) for plan in alone[:full]} == {batch}
    for parts in zip(*ranks, strict=True):
        assert len({len(part) for part in parts}) == 1
        assert len(parts[0]) >= LEAST
    rest = size % batch
    assert len(joined) == full + (rest >= LEAST * world)
    for plan in joined[full:]:
        assert plan == alone[full][: rest // world * world]


@pytest.mark.parametrize(
    ("batch", "pool", "world", "message"),
    [
        (9, 1, 2, "no multiple of the world size 2"),
        (2, 1, 2, "at least 2 samples a rank"),
        (1, 1, 1, "at least 2 samples a rank"),
        (0, 1, 1, "at least 2 samples a rank"),
        (8, 0, 1, "pool_batches=0"),
    ],
)
def test_batches_that_can_not_be_cut(batch: int, pool: int, world: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LengthBuckets(lengths_of(20), batch, 0, pool_batches=pool, world=world)
