"""Schedules: permutations, pass numbers, slices of ranks, starts in the middle."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.data.loading.samplers import BatchPlan, Draws, FixedSteps, OnePass, permutation_stream

fast = settings(max_examples=40, deadline=None)


def joined(plans: list[BatchPlan], stream: str) -> Draws:
    draws = [getattr(plan, stream) for plan in plans]
    return Draws(*(np.concatenate(column) for column in zip(*draws, strict=True)))


@fast
@given(st.integers(0, 9), st.integers(0, 5), st.integers(1, 30), st.integers(1, 100))
def test_stream_is_whole_permutations_then_a_cut_one(
    seed: int, epoch: int, size: int, count: int
) -> None:
    draws = permutation_stream(seed, epoch, 1, size, count)
    assert len(draws.positions) == len(draws.passes) == count
    for start in range(0, count - size + 1, size):
        assert set(draws.positions[start : start + size]) == set(range(size))
    tail = draws.positions[count - count % size :]
    assert len(set(tail)) == len(tail)
    passes = -(-count // size)
    assert draws.passes.tolist() == [epoch * passes + i // size for i in range(count)]


def test_no_sample_meets_a_pass_twice() -> None:
    """Else it would get the same augmentation twice."""
    seen = set()
    for epoch in range(4):
        draws = permutation_stream(0, epoch, 0, 7, 40)
        seen |= set(zip(draws.positions.tolist(), draws.passes.tolist(), strict=True))
    assert len(seen) == 4 * 40


@fast
@given(st.integers(0, 5), st.sampled_from([1, 2, 4]), st.data())
def test_fixed_steps_ranks_concatenate_to_one_process(
    epoch: int, world: int, data: st.DataObject
) -> None:
    sizes = (data.draw(st.integers(1, 30)), data.draw(st.integers(40, 90)))
    batches = (4 * data.draw(st.integers(1, 4)), 4 * data.draw(st.integers(1, 10)))
    whole = list(FixedSteps(0, sizes, batches, 6).batches(epoch))
    ranks = [list(FixedSteps(0, sizes, batches, 6, r, world).batches(epoch)) for r in range(world)]
    for step, plan in enumerate(whole):
        for stream in ("labelled", "unlabelled"):
            parts = joined([plans[step] for plans in ranks], stream)
            for found, expected in zip(parts, getattr(plan, stream), strict=True):
                np.testing.assert_array_equal(found, expected)


@fast
@given(st.integers(0, 3), st.integers(1, 3), st.integers(1, 4), st.data())
def test_one_pass_covers_the_unlabelled_set(
    epoch: int, world: int, repeat: int, data: st.DataObject
) -> None:
    batches = (world * data.draw(st.integers(1, 4)), world * data.draw(st.integers(1, 6)))
    labelled = data.draw(st.integers(batches[0], 20))
    unlabelled = data.draw(st.integers(batches[1], 50))
    ranks = [OnePass(0, (labelled, unlabelled), batches, repeat, r, world) for r in range(world)]
    plans = [list(schedule.batches(epoch)) for schedule in ranks]
    steps = -(-unlabelled // batches[1])
    assert all(len(p) == len(s) == steps for p, s in zip(plans, ranks, strict=True))
    for step in range(steps):  # all ranks the same size
        for stream in ("labelled", "unlabelled"):
            assert len({len(getattr(p[step], stream).positions) for p in plans}) == 1
    drawn = [joined(p, "unlabelled").positions for p in plans]
    assert set(np.concatenate(drawn)) == set(range(unlabelled))
    if world == 1:
        assert len(drawn[0]) == unlabelled
        first_pass = joined(plans[0][: -(-labelled * repeat // batches[0])], "labelled")
        if steps >= -(-labelled * repeat // batches[0]):
            counts = np.bincount(first_pass.positions, minlength=labelled)
            assert (counts == repeat).all()
            pairs = set(zip(*(c.tolist() for c in first_pass), strict=True))
            assert len(pairs) == labelled * repeat


@pytest.mark.parametrize("kind", ["fixed", "one pass"])
def test_starting_at_any_step_gives_the_rest(kind: str) -> None:
    schedule = (
        FixedSteps(3, (5, 40), (4, 12), 7) if kind == "fixed" else OnePass(3, (9, 40), (4, 12), 2)
    )
    whole = list(schedule.batches(2))
    for start in range(len(schedule) + 1):
        rest = list(schedule.batches(2, start))
        assert len(rest) == len(schedule) - start
        for found, expected in zip(rest, whole[start:], strict=True):
            for stream in (0, 1):
                np.testing.assert_array_equal(found[stream], expected[stream])


def test_epochs_and_seeds_differ() -> None:
    def positions(seed: int, epoch: int) -> np.ndarray:
        return joined(list(FixedSteps(seed, (5, 90), (4, 30), 3).batches(epoch)), "unlabelled")[0]

    base = positions(0, 0)
    assert (base == positions(0, 0)).all()
    assert (base != positions(0, 1)).any()
    assert (base != positions(1, 0)).any()


@pytest.mark.parametrize(
    ("sizes", "batches", "world", "message"),
    [
        ((0, 9), (2, 4), 1, "labelled set is empty"),
        ((9, 3), (2, 4), 1, "larger than the unlabelled set"),
        ((9, 9), (3, 4), 2, "multiple of the world size 2"),
        ((9, 9), (2, 0), 1, "not a positive multiple"),
    ],
)
def test_bad_sizes_are_refused(sizes: tuple, batches: tuple, world: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FixedSteps(0, sizes, batches, 3, world=world)


def test_one_pass_refuses_a_labelled_batch_above_its_set() -> None:
    with pytest.raises(ValueError, match="larger than the labelled set"):
        OnePass(0, (3, 20), (4, 8))
