"""Streams of draws and the batches cut from them: pure functions of (seed, epoch), no state.

A stream lists an epoch's draws of one set; `StreamBatches` cuts one or several streams side by side
into batches, for a `ResumableLoader`.

Batch sizes are totals over all ranks; rank r gets the r-th contiguous slice, so the concatenation
of the ranks' batches is the batch of a single process.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Draws(NamedTuple):
    """Positions within a set and, for each, the number of the pass over the set it belongs to."""

    positions: NDArray[np.int64]
    passes: NDArray[np.int64]


class Schedule(Protocol):
    """Anything that lists the batches of an epoch, from any step on, as plans for a data set."""

    def __len__(self) -> int: ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]: ...


class Stream:
    """`count` draws of each epoch; `number` tells apart sets that are drawn in the same epoch."""

    def __init__(self, seed: int, count: int, number: int) -> None:
        self.seed, self.count, self.number = seed, count, number

    def __len__(self) -> int:
        return self.count

    def draws(self, epoch: int) -> Draws:
        raise NotImplementedError

    def _generator(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self.seed & (2**64 - 1), epoch, self.number])


class Permutations(Stream):
    """Shuffled passes over range(size) one after another: `count` draws, or None for one pass."""

    def __init__(self, seed: int, size: int, count: int | None = None, number: int = 0) -> None:
        super().__init__(seed, size if count is None else count, number)
        self.size = size

    def draws(self, epoch: int) -> Draws:
        return permutation_stream(self.seed, epoch, self.number, self.size, self.count)


class RestartedPasses(Stream):
    """`passes` shuffled passes per epoch, of `restart` draws each, cut into batches by themselves.
    Each sample is listed `copies` times within a pass; the c-th copy in pass p counts as pass
    p * copies + c, and so is augmented in its own way."""

    def __init__(self, seed: int, size: int, passes: int, copies: int = 1, number: int = 0) -> None:
        super().__init__(seed, passes * size * copies, number)
        self.size, self.copies, self.restart = size, copies, size * copies

    def draws(self, epoch: int) -> Draws:
        listed = permutation_stream(self.seed, epoch, self.number, self.restart, self.count)
        copies, positions = np.divmod(listed.positions, self.size)
        return Draws(positions, listed.passes * self.copies + copies)


class Rotation(Stream):
    """Each epoch a shuffled pass over `base` samples and one of the groups behind them: the e-th
    modulo their number, as BLIP reads LAION. `ends` (G,): where each group's samples end.

    Every epoch has as many draws as the smallest group gives; of an epoch with a larger one some
    samples, drawn anew each time, are left out.
    """

    def __init__(self, seed: int, base: int, ends: NDArray[np.int64], number: int = 3) -> None:
        self.base, self.starts, self.ends = base, np.concatenate([[base], ends[:-1]]), ends
        super().__init__(seed, base + int((self.ends - self.starts).min()), number)

    def draws(self, epoch: int) -> Draws:
        group = epoch % len(self.ends)
        own = np.arange(self.starts[group], self.ends[group])
        mixed = self._generator(epoch).permutation(np.concatenate([np.arange(self.base), own]))
        return Draws(mixed[: self.count], np.full(self.count, epoch, np.int64))


class Interleaved(Stream):
    """The draws of several streams in a random order among each other; each stream's own order
    stays. Positions of the i-th stream are moved on by `offsets[i]`."""

    def __init__(
        self, seed: int, streams: Sequence[Stream], offsets: Sequence[int], number: int = 4
    ) -> None:
        super().__init__(seed, sum(map(len, streams)), number)
        self.streams, self.offsets = tuple(streams), tuple(offsets)

    def draws(self, epoch: int) -> Draws:
        sizes = [len(stream) for stream in self.streams]
        order = self._generator(epoch).permutation(np.repeat(np.arange(len(sizes)), sizes))
        mixed = Draws(np.empty(len(self), np.int64), np.empty(len(self), np.int64))
        for place, (stream, offset) in enumerate(zip(self.streams, self.offsets, strict=True)):
            own = stream.draws(epoch)
            mixed.positions[order == place] = own.positions + offset
            mixed.passes[order == place] = own.passes
        return mixed


class WeightedDraws(Stream):
    """`count` independent draws with replacement, sample i with probability weights[i] / sum."""

    def __init__(self, seed: int, weights: NDArray, count: int, number: int = 1) -> None:
        super().__init__(seed, count, number)
        weights = np.asarray(weights, np.float64)
        if weights.ndim != 1 or not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise ValueError("image weights must be finite, non-negative numbers, one per image")
        if weights.sum() <= 0:
            raise ValueError("all image weights are zero: nothing can be drawn")
        self._cumulative = np.cumsum(weights)

    def draws(self, epoch: int) -> Draws:
        total = self._cumulative[-1]
        drawn = self._generator(epoch).random(self.count) * total
        positions = np.searchsorted(self._cumulative, drawn, side="right")
        # u < 1, but u * total may round up to the total, behind the last image that has a weight.
        last = np.searchsorted(self._cumulative, total, side="left")
        return number_repeats(np.minimum(positions, last), epoch)


class ProgressiveDraws(Stream):
    """Draws whose weights move from all alike, in epoch 0, to `weights` (N,) after `epochs`: in
    epoch e they are (1 - e / epochs) / N + (e / epochs) weights / sum (Kang et al. 2020)."""

    def __init__(
        self, seed: int, weights: NDArray, epochs: int, count: int, number: int = 1
    ) -> None:
        super().__init__(seed, count, number)
        if epochs < 1:
            raise ValueError(f"epochs={epochs}: weights need one or more to move in")
        self.weights, self.epochs = np.asarray(weights, np.float64), epochs

    def draws(self, epoch: int) -> Draws:
        share = min(1.0, epoch / self.epochs)
        size = len(self.weights)
        mixed = (1 - share) / size + share * self.weights / self.weights.sum()
        return WeightedDraws(self.seed, mixed, self.count, self.number).draws(epoch)


class ClassCycles(Stream):
    """Class-balanced draws: classes in shuffled cycles, `per_class` images of a class in a row.

    The public class-aware sampler (docs/papers/iccl.md, section 3.2): each class has its own
    shuffled cycle of images, reshuffled whenever it is exhausted. The classes that occur in
    `labels` (N,) take part; where an image may show several, each class's images are given instead.
    `count` None is the public epoch, (largest class) x (classes).
    """

    def __init__(
        self,
        seed: int,
        labels: NDArray[np.int64] | Sequence[NDArray[np.int64]],
        per_class: int = 4,
        count: int | None = None,
        number: int = 2,
    ) -> None:
        if per_class < 1:
            raise ValueError(f"per_class={per_class}: at least one image of a class at a time")
        self.per_class = per_class
        if isinstance(labels, np.ndarray):
            labels = [np.flatnonzero(labels == k) for k in np.unique(labels)]
        self.members = list(labels)
        if not self.members:
            raise ValueError("no labels: there is no class to draw from")
        whole = max(map(len, self.members)) * len(self.members)
        super().__init__(seed, whole if count is None else count, number)

    def draws(self, epoch: int) -> Draws:
        generator = self._generator(epoch)
        classes, length = len(self.members), self.per_class
        cycles = math.ceil(self.count / (classes * length))
        order = generator.permuted(np.tile(np.arange(classes), (cycles, 1)), axis=1)
        # Row k: all that class k hands out in the course of the epoch, cycle by cycle.
        rows = []
        for members in self.members:
            passes = np.tile(members, (math.ceil(cycles * length / len(members)), 1))
            rows.append(generator.permuted(passes, axis=1).reshape(-1)[: cycles * length])
        images = np.stack(rows).reshape(classes, cycles, length)
        positions = images[order, np.arange(cycles)[:, None]].reshape(-1)[: self.count]
        return number_repeats(positions, epoch)


class StreamBatches:
    """Cuts equally many batches from each of `streams`; a plan is one `Draws` per stream.

    The first stream that is not restarted defines the epoch. With `drop_last` its ragged last batch
    is left out, else it is kept, and with several ranks filled up to a multiple of the world size
    by repeating its own samples (shuffled batch norm needs equal batches on all ranks); then all
    streams that are not restarted must end with the same step, in the same proportion.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        batch_sizes: Sequence[int],
        drop_last: bool = True,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.streams, self.batch_sizes = tuple(streams), tuple(batch_sizes)
        self.rank, self.world = rank, world
        self.restarts = [getattr(stream, "restart", len(stream)) for stream in self.streams]
        lengths = []
        for stream, batch, restart in zip(streams, batch_sizes, self.restarts, strict=True):
            if batch < 1 or batch % world:
                told = f"batch_size={batch} is not a positive multiple of the world size {world}"
                raise ValueError(f"{told}: it is the total over all ranks")
            if restart < batch:
                large = f"batch_size={batch} is larger than the training set"
                raise ValueError(f"{large} ({restart} images an epoch): lower it or use more data")
            lengths.append(len(stream) / batch)
        once = [n for n, s in zip(lengths, streams, strict=True) if not hasattr(s, "restart")]
        self.steps = (math.floor if drop_last else math.ceil)(once[0])
        if min(once) < self.steps if drop_last else len(set(once)) > 1:
            counts = f"streams of {', '.join(str(len(stream)) for stream in self.streams)} draws"
            raise ValueError(f"{counts} don't give equally many batches of {self.batch_sizes}")

    def __len__(self) -> int:
        return self.steps

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Draws, ...]]:
        drawn = [stream.draws(epoch) for stream in self.streams]
        parts = list(zip(drawn, self.batch_sizes, self.restarts, strict=True))
        for step in range(start, self.steps):
            yield tuple(self._slice(draws, step, *sizes) for draws, *sizes in parts)

    def _slice(self, draws: Draws, step: int, batch: int, restart: int) -> Draws:
        nth_pass, within = divmod(step, math.ceil(restart / batch))
        begin, length = nth_pass * restart + within * batch, min(batch, restart - within * batch)
        local = math.ceil(length / self.world)
        rows = begin + np.arange(self.rank * local, (self.rank + 1) * local) % length
        return Draws(draws.positions[rows], draws.passes[rows])


class Alternating:
    """Whole batches of several schedules: `group` in a row come from one that is drawn evenly,
    however long each is (docs/papers/alpro.md, section 3.9). An epoch has as many batches as theirs
    together, and one that is exhausted goes on with its next epoch. A plan is the number of a
    schedule and a plan of it."""

    def __init__(self, schedules: Sequence[Schedule], seed: int, group: int = 1) -> None:
        self.schedules, self.seed, self.group = tuple(schedules), seed, group
        self.steps = sum(map(len, schedules))

    def __len__(self) -> int:
        return self.steps

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[int, Any]]:
        generator = np.random.default_rng([self.seed & (2**64 - 1), epoch, 5])
        draws = generator.integers(len(self.schedules), size=math.ceil(self.steps / self.group))
        drawn = draws.repeat(self.group)[: self.steps]
        parts = [
            self._going_on(schedule, epoch, int((drawn[:start] == number).sum()))
            for number, schedule in enumerate(self.schedules)
        ]
        for number in drawn[start:].tolist():
            yield number, next(parts[number])

    def _going_on(self, schedule: Schedule, epoch: int, taken: int) -> Iterator[Any]:
        """The batches of a schedule from the epoch's `taken`-th on."""
        most = math.ceil(self.steps / len(schedule))  # of its epochs, in one of this
        first, past = divmod(taken, len(schedule))
        for turn in range(first, most):
            yield from schedule.batches(epoch * most + turn, past if turn == first else 0)


@lru_cache(maxsize=4)
def permutation_stream(seed: int, epoch: int, stream: int, size: int, count: int) -> Draws:
    """Permutations of range(size), the last one cut; the k-th of an epoch's n is epoch * n + k."""
    passes = math.ceil(count / size)
    generator = np.random.default_rng([seed & (2**64 - 1), epoch, stream])
    rows = np.broadcast_to(np.arange(size), (passes, size))
    positions = generator.permuted(rows, axis=1).reshape(-1)[:count]
    numbers = np.repeat(np.arange(epoch * passes, (epoch + 1) * passes), size)[:count]
    positions.flags.writeable = numbers.flags.writeable = False  # shared by the cache
    return Draws(positions, numbers)


def number_repeats(positions: NDArray[np.int64], epoch: int) -> Draws:
    """Give the r-th time that a position occurs in an epoch of n draws the pass epoch * n + r."""
    order = np.argsort(positions, kind="stable")
    ordered = positions[order]
    first = np.searchsorted(ordered, ordered, side="left")
    repeats = np.empty(len(positions), np.int64)
    repeats[order] = np.arange(len(positions)) - first
    return Draws(positions, epoch * len(positions) + repeats)
