"""Streams and the batches cut from them: contents, frequencies, ranks, starts in the middle."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.comatch.data import check_sizes, fixed_steps, one_pass
from shared.data.loading.streams import (
    ClassCycles,
    Draws,
    Interleaved,
    Permutations,
    ProgressiveDraws,
    RestartedPasses,
    Rotation,
    Stream,
    StreamBatches,
    WeightedDraws,
    number_repeats,
    permutation_stream,
)

fast = settings(max_examples=20, deadline=None)


def joined(plans: list[tuple[Draws, ...]], stream: int = 0) -> Draws:
    columns = zip(*(plan[stream] for plan in plans), strict=True)
    return Draws(*(np.concatenate(column) for column in columns))


def same(one: Draws, other: Draws) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


STREAMS: dict[str, Stream] = {
    "permutation": Permutations(3, 20),
    "permutations": Permutations(3, 20, 45),
    "restarted": RestartedPasses(3, 20, 2, copies=3),
    "weighted": WeightedDraws(3, np.arange(20), 45),
    "progressive": ProgressiveDraws(3, np.arange(20), 3, 45),
    "cycles": ClassCycles(3, np.repeat([0, 1, 2], [12, 5, 3])),
    "rotation": Rotation(3, 6, np.array([10, 15, 25])),
    "interleaved": Interleaved(3, [Permutations(3, 7), WeightedDraws(3, np.arange(9), 5)], [0, 7]),
}


@pytest.mark.parametrize("name", STREAMS)
def test_draws_are_a_function_of_seed_and_epoch(name: str) -> None:
    stream = STREAMS[name]
    first = stream.draws(0)
    assert len(first.positions) == len(first.passes) == len(stream)
    later = stream.draws(1)
    assert same(stream.draws(0), first)  # asking for another epoch in between changes nothing
    assert not np.array_equal(first.positions, later.positions)
    # No image gets the same augmentation twice.
    pairs = [p for e in range(4) for p in zip(*(c.tolist() for c in stream.draws(e)), strict=True)]
    assert len(set(pairs)) == len(pairs) == 4 * len(stream)


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


def test_progressive_draws_move_from_all_alike_to_the_weights() -> None:
    weights = np.array([0.0, 1.0, 3.0])
    stream = ProgressiveDraws(0, weights, 4, 20_000)
    for epoch, share in ((0, 0.0), (1, 0.25), (3, 0.75), (4, 1.0), (9, 1.0)):
        counts = np.bincount(stream.draws(epoch).positions, minlength=3)
        expected = 20_000 * ((1 - share) / 3 + share * weights / 4)
        assert (abs(counts - expected) <= 4 * np.sqrt(expected)).all(), epoch
    with pytest.raises(ValueError, match="epochs=0"):
        ProgressiveDraws(0, weights, 0, 3)


@fast
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(0, 3))
def test_repeats_are_numbered_in_order(positions: list[int], epoch: int) -> None:
    draws = number_repeats(np.array(positions), epoch)
    for place, position in enumerate(positions):
        earlier = positions[:place].count(position)
        assert draws.passes[place] == epoch * len(positions) + earlier


def test_weighted_draws_follow_the_weights() -> None:
    weights = np.array([0.0, 1.0, 3.0, 0.0, 6.0, 0.0])
    counts = np.bincount(WeightedDraws(0, weights, 20_000).draws(0).positions, minlength=6)
    assert counts[[0, 3, 5]].tolist() == [0, 0, 0]
    expected = 20_000 * weights / weights.sum()
    # four standard deviations of a binomial count
    assert (abs(counts - expected) <= 4 * np.sqrt(expected)).all()
    for bad in ([0.0, 0.0], [1.0, -1.0], [1.0, np.nan], [[1.0]]):
        with pytest.raises(ValueError, match="weights"):
            WeightedDraws(0, np.array(bad), 3)


@fast
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 4), st.integers(0, 3))
def test_class_cycles(sizes: list[int], per_class: int, epoch: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    stream = ClassCycles(0, labels, per_class)
    assert len(stream) == max(sizes) * len(sizes)
    positions = stream.draws(epoch).positions
    drawn = labels[positions]
    runs = [drawn[i : i + per_class] for i in range(0, len(drawn), per_class)]
    assert all(len(set(run.tolist())) == 1 for run in runs)
    for start in range(0, len(runs) - len(sizes) + 1, len(sizes)):  # each class once in a cycle
        assert {int(r[0]) for r in runs[start : start + len(sizes)]} == set(range(len(sizes)))
    for label, size in enumerate(sizes):  # each class's own images: whole passes one after another
        own = positions[drawn == label]
        for start in range(0, len(own) - size + 1, size):
            assert len(set(own[start : start + size].tolist())) == size


def test_class_cycles_shuffle_each_pass_and_skip_absent_classes() -> None:
    own = ClassCycles(0, np.zeros(20, np.int64), count=60).draws(0).positions.reshape(3, 20)
    assert len({tuple(order) for order in [*own.tolist(), list(range(20))]}) == 4
    stream = ClassCycles(0, np.array([4, 4, 9]), per_class=2, count=7)
    assert np.bincount(stream.draws(0).positions).sum() == len(stream) == 7
    for labels, per_class in (([], 1), ([0], 0)):
        with pytest.raises(ValueError, match="class"):
            ClassCycles(0, np.array(labels, np.int64), per_class)


@fast
@given(st.integers(1, 50), st.integers(1, 6), st.sampled_from([1, 2, 3]), st.booleans())
def test_ranks_share_one_batch(size: int, share: int, world: int, drop_last: bool) -> None:
    batch = share * world
    if batch > size:
        with pytest.raises(ValueError, match=f"batch_size={batch} is larger"):
            StreamBatches([Permutations(0, size)], [batch], drop_last, 0, world)
        return
    whole = list(StreamBatches([Permutations(0, size)], [batch], drop_last).batches(1))
    ranks = [
        list(StreamBatches([Permutations(0, size)], [batch], drop_last, r, world).batches(1))
        for r in range(world)
    ]
    assert len(whole) == (size // batch if drop_last else -(-size // batch))
    assert all(len(plans) == len(whole) for plans in ranks)
    for step, (single,) in enumerate(whole):
        parts = [plans[step][0] for plans in ranks]
        assert len({len(p.positions) for p in parts}) == 1
        shared = np.concatenate([p.positions for p in parts])
        length = len(single.positions)
        np.testing.assert_array_equal(shared[:length], single.positions)
        # What fills up a ragged batch is of the batch itself.
        assert set(shared) == set(single.positions)
        assert len(shared) < length + world
    seen = joined(whole).positions
    assert len(set(seen)) == len(seen) == (len(whole) * batch if drop_last else size)


def test_two_streams_run_side_by_side() -> None:
    schedule = StreamBatches([Permutations(0, 9), Permutations(0, 30)], [2, 4])  # the second is cut
    assert [[len(d.positions) for d in p] for p in schedule.batches(0)] == [[2, 4]] * 4
    streams = [Permutations(0, 10), WeightedDraws(0, np.ones(10), 10)]
    plans = list(StreamBatches(streams, [4, 4], drop_last=False).batches(2))
    assert [[len(d.positions) for d in plan] for plan in plans] == [[4, 4], [4, 4], [2, 2]]
    for number, stream in enumerate(streams):
        assert same(joined(plans, number), stream.draws(2))


@pytest.mark.parametrize(
    "schedule",
    [
        StreamBatches([Permutations(0, 7, 23), Permutations(1, 23)], [4, 4], False),
        fixed_steps(3, (5, 40), (4, 12), 7),
        one_pass(3, (9, 40), (4, 12), 2),
    ],
)
def test_starting_at_any_step_gives_the_rest(schedule: StreamBatches) -> None:
    whole = list(schedule.batches(3))
    for start in range(len(schedule) + 1):
        rest = list(schedule.batches(3, start))
        assert len(rest) == len(schedule) - start
        for found, expected in zip(rest, whole[start:], strict=True):
            assert all(same(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("lengths", "batches", "drop_last", "message"),
    [
        ((10,), (0,), True, "not a positive multiple"),
        ((10,), (3,), True, "multiple of the world size 2"),
        ((10, 7), (2, 2), True, "equally many batches"),
        ((10, 12), (2, 2), False, "equally many batches"),
        ((0,), (2,), True, "larger than the training set"),
    ],
)
def test_batches_that_can_not_be_cut(
    lengths: tuple, batches: tuple, drop_last: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        StreamBatches([Permutations(0, n) for n in lengths], batches, drop_last, world=2)


# --- labelled and unlabelled images side by side ---


@fast
@given(st.integers(0, 3), st.integers(1, 3), st.integers(1, 4), st.data())
def test_one_pass_covers_the_unlabelled_set(
    epoch: int, world: int, repeat: int, data: st.DataObject
) -> None:
    batches = (world * data.draw(st.integers(1, 4)), world * data.draw(st.integers(1, 6)))
    labelled = data.draw(st.integers(batches[0], 20))
    unlabelled = data.draw(st.integers(batches[1], 50))
    ranks = [one_pass(0, (labelled, unlabelled), batches, repeat, r, world) for r in range(world)]
    plans = [list(schedule.batches(epoch)) for schedule in ranks]
    steps = -(-unlabelled // batches[1])
    assert all(len(p) == len(s) == steps for p, s in zip(plans, ranks, strict=True))
    for step in range(steps):  # all ranks the same size
        for stream in (0, 1):
            assert len({len(p[step][stream].positions) for p in plans}) == 1
    drawn = [joined(p, 1).positions for p in plans]
    assert set(np.concatenate(drawn)) == set(range(unlabelled))
    if world == 1:
        assert len(drawn[0]) == unlabelled
        first_pass = joined(plans[0][: -(-labelled * repeat // batches[0])], 0)
        if steps >= -(-labelled * repeat // batches[0]):
            counts = np.bincount(first_pass.positions, minlength=labelled)
            assert (counts == repeat).all()
            pairs = set(zip(*(c.tolist() for c in first_pass), strict=True))
            assert len(pairs) == labelled * repeat


@fast
@given(st.integers(0, 5), st.sampled_from([1, 2, 4]), st.data())
def test_fixed_steps_ranks_concatenate_to_one_process(
    epoch: int, world: int, data: st.DataObject
) -> None:
    sizes = (data.draw(st.integers(1, 30)), data.draw(st.integers(40, 90)))
    batches = (4 * data.draw(st.integers(1, 4)), 4 * data.draw(st.integers(1, 10)))
    whole = list(fixed_steps(0, sizes, batches, 6).batches(epoch))
    ranks = [list(fixed_steps(0, sizes, batches, 6, r, world).batches(epoch)) for r in range(world)]
    for step, plan in enumerate(whole):
        for stream in (0, 1):
            assert same(joined([plans[step] for plans in ranks], stream), plan[stream])


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
        check_sizes(sizes, batches, world)
    with pytest.raises(ValueError, match="larger than the labelled set"):
        one_pass(0, (3, 20), (4, 8))


@fast
@given(
    st.integers(0, 6), st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 2**70)
)
def test_groups_take_turns_beside_the_base(base: int, sizes: list[int], seed: int) -> None:
    ends = base + np.cumsum(sizes)
    stream = Rotation(seed, base, ends)
    assert len(stream) == base + min(sizes)
    for epoch in range(2 * len(sizes)):
        drawn = stream.draws(epoch).positions.tolist()
        group = epoch % len(sizes)
        own = set(range(ends[group] - sizes[group], ends[group]))
        assert len(set(drawn)) == len(drawn) == len(stream)
        assert set(drawn) <= {*range(base)} | own
        assert sizes[group] > min(sizes) or set(drawn) == {*range(base)} | own


@fast
@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 2**70))
def test_interleaving_keeps_the_order_of_each_stream(sizes: list[int], seed: int) -> None:
    streams = [Permutations(seed, size, number=place) for place, size in enumerate(sizes)]
    offsets = [100 * place for place in range(len(sizes))]
    drawn = Interleaved(seed, streams, offsets).draws(2)
    for place, stream in enumerate(streams):
        own = drawn.positions // 100 == place
        assert same(Draws(drawn.positions[own] - 100 * place, drawn.passes[own]), stream.draws(2))
