"""Which samples make up a training batch: pure functions of (seed, epoch), no state.

Two schedules of joint labelled/unlabelled batches (the docs/papers/comatch.md, sections 3.4 and
6.1):
`FixedSteps` draws a given number of batches per epoch from concatenated permutations, so that
batches may span two passes; `OnePass` goes once through the unlabelled set, with a shorter last
batch, and restarts the labelled set whenever it is exhausted.

Batch sizes are totals over all ranks. Rank r gets the r-th contiguous slice, so the concatenation
of the ranks' batches is the batch of a single process.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Draws(NamedTuple):
    """Positions within a set and, for each, the number of the pass over the set it belongs to."""

    positions: NDArray[np.int64]
    passes: NDArray[np.int64]

    def part(self, start: int, stop: int) -> "Draws":
        return Draws(self.positions[start:stop], self.passes[start:stop])


class BatchPlan(NamedTuple):
    """What one rank loads in one step."""

    labelled: Draws
    unlabelled: Draws


class Schedule(Protocol):
    """Anything that lists the batches of an epoch, from any step on, as plans for a data set."""

    def __len__(self) -> int: ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]: ...


class FixedSteps:
    """`steps` batches per epoch, the samples drawn from concatenated permutations.

    Raises:
        ValueError: a batch is larger than the unlabelled set or not divisible by the world size.
    """

    def __init__(
        self,
        seed: int,
        sizes: tuple[int, int],
        batch_sizes: tuple[int, int],
        steps: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        check_sizes(sizes, batch_sizes, world)
        self.seed, self.sizes, self.batch_sizes = seed, sizes, batch_sizes
        self.steps, self.rank, self.world = steps, rank, world

    def __len__(self) -> int:
        return self.steps

    def batches(self, epoch: int, start: int = 0) -> Iterator[BatchPlan]:
        streams = [
            permutation_stream(self.seed, epoch, stream, size, batch * self.steps)
            for stream, (size, batch) in enumerate(zip(self.sizes, self.batch_sizes, strict=True))
        ]
        for step in range(start, self.steps):
            yield BatchPlan(*(self._slice(draws, step, i) for i, draws in enumerate(streams)))

    def _slice(self, draws: Draws, step: int, stream: int) -> Draws:
        local = self.batch_sizes[stream] // self.world
        begin = step * self.batch_sizes[stream] + self.rank * local
        return draws.part(begin, begin + local)


class OnePass:
    """One pass of the unlabelled set per epoch; the last batch is shorter, never dropped.

    The labelled set is cut in the same way and reshuffled whenever it is exhausted; no batch spans
    two passes. `labelled_repeat` lists each labelled sample that many times within one pass. With
    several ranks a ragged batch is filled up to a multiple of the world size by repeating its own
    samples, because shuffled batch norm needs equal batches on all ranks.

    Raises:
        ValueError: a batch is larger than its set or not divisible by the world size.
    """

    def __init__(
        self,
        seed: int,
        sizes: tuple[int, int],
        batch_sizes: tuple[int, int],
        labelled_repeat: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.listed = (sizes[0] * labelled_repeat, sizes[1])
        check_sizes(self.listed, batch_sizes, world)
        if self.listed[0] < batch_sizes[0]:
            raise ValueError(
                f"batch_size={batch_sizes[0]} is larger than the labelled set ({self.listed[0]} "
                "samples a pass); lower batch_size or raise labelled_repeat"
            )
        self.seed, self.batch_sizes, self.repeat = seed, batch_sizes, labelled_repeat
        self.rank, self.world = rank, world
        self.per_pass = tuple(
            math.ceil(n / b) for n, b in zip(self.listed, batch_sizes, strict=True)
        )

    def __len__(self) -> int:
        return self.per_pass[1]

    def batches(self, epoch: int, start: int = 0) -> Iterator[BatchPlan]:
        labelled_passes = math.ceil(len(self) / self.per_pass[0])
        labelled = permutation_stream(
            self.seed, epoch, 0, self.listed[0], labelled_passes * self.listed[0]
        )
        unlabelled = permutation_stream(self.seed, epoch, 1, self.listed[1], self.listed[1])
        for step in range(start, len(self)):
            plan = BatchPlan(self._slice(labelled, step, 0), self._slice(unlabelled, step, 1))
            yield plan._replace(labelled=self._fold_copies(plan.labelled))

    def _slice(self, draws: Draws, step: int, stream: int) -> Draws:
        size, batch = self.listed[stream], self.batch_sizes[stream]
        nth_pass, within = divmod(step, self.per_pass[stream])
        begin = nth_pass * size + within * batch
        length = min(batch, size - within * batch)
        local = math.ceil(length / self.world)
        rows = begin + np.arange(self.rank * local, (self.rank + 1) * local) % length
        return Draws(draws.positions[rows], draws.passes[rows])

    def _fold_copies(self, draws: Draws) -> Draws:
        """Turn the c-th copy of a sample in pass p into that sample in pass p * repeat + c."""
        size = self.listed[0] // self.repeat
        copies, positions = np.divmod(draws.positions, size)
        return Draws(positions, draws.passes * self.repeat + copies)


@lru_cache(maxsize=4)
def permutation_stream(seed: int, epoch: int, stream: int, size: int, count: int) -> Draws:
    """Return `count` draws: full permutations of range(size) one after another, the last one cut.

    `stream` separates sets drawn in the same epoch. Pass numbers go on from epoch to epoch: with n
    passes (the cut one included) per epoch, the k-th pass of an epoch has the number epoch * n + k.
    """
    passes = math.ceil(count / size)
    generator = np.random.default_rng([seed & (2**64 - 1), epoch, stream])
    rows = np.broadcast_to(np.arange(size), (passes, size))
    positions = generator.permuted(rows, axis=1).reshape(-1)[:count]
    numbers = np.repeat(np.arange(epoch * passes, (epoch + 1) * passes), size)[:count]
    positions.flags.writeable = numbers.flags.writeable = False  # shared by the cache
    return Draws(positions, numbers)


def check_sizes(sizes: tuple[int, int], batch_sizes: tuple[int, int], world: int) -> None:
    """Refuse empty sets, a batch above the unlabelled set, and batches that ranks can't share."""
    names = (("labelled", "batch_size"), ("unlabelled", "batch_size * mu"))
    for (name, key), size, batch in zip(names, sizes, batch_sizes, strict=True):
        if size < 1:
            raise ValueError(f"the {name} set is empty: check num_labels and subset")
        if batch < 1 or batch % world:
            raise ValueError(
                f"{key} = {batch} is not a positive multiple of the world size {world}: it is the "
                "total over all ranks, choose one that they can share evenly"
            )
    if batch_sizes[1] > sizes[1]:
        raise ValueError(
            f"batch_size * mu = {batch_sizes[1]} is larger than the unlabelled set ({sizes[1]} "
            "samples): lower batch_size or mu, or use more data"
        )
