"""Batches of sequences that are about equally long and have nothing in common."""

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Plan = NDArray[np.int64]
Groups = set[tuple[int, int]]  # number of the grouping, number of the group
LEAST = 2  # samples of a rank: one to compare another with


class LengthBuckets:
    """One shuffled pass an epoch: pools of some batches sorted by length, the batches shuffled.

    What is left of the pass is a shorter batch at its end. Samples of one group never share a
    batch: one of them changes places with a sample of the nearest batch that can take it, or is
    left out of the epoch with a warning where its group is in every other batch.

    A plan is the places (B,) of one rank's samples: the r-th contiguous slice of `batch_size` over
    all ranks. Of a shorter batch ranks get equal shares and the rest is left out, or all of it at
    fewer than two samples a rank. `apart` are groupings of the samples, each (N,): equal numbers
    stay apart; `pool_batches` 1 doesn't sort by length.
    """

    def __init__(
        self,
        lengths: NDArray,
        batch_size: int,
        seed: int,
        apart: Sequence[NDArray] = (),
        pool_batches: int = 20,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size % world or batch_size < LEAST * world:
            wanted = f"no multiple of the world size {world} with at least {LEAST} samples a rank"
            raise ValueError(f"batch_size={batch_size} is {wanted}: it is the total over all ranks")
        if len(lengths) < batch_size:
            large = f"batch_size={batch_size} is larger than the training set"
            raise ValueError(f"{large} ({len(lengths)} samples): lower it or use more data")
        if pool_batches < 1:
            raise ValueError(f"pool_batches={pool_batches}: a pool has at least one batch")
        self.lengths, self.batch_size, self.seed = np.asarray(lengths), batch_size, seed
        self.pool_batches, self.rank, self.world = pool_batches, rank, world
        self.full, rest = divmod(len(lengths), batch_size)
        self.steps = self.full + (rest >= LEAST * world)
        self._groups = _repeated(apart)

    def __len__(self) -> int:
        return self.steps

    def batches(self, epoch: int, start: int = 0) -> Iterator[Plan]:
        """The plans of an epoch from step `start` on."""
        generator = np.random.default_rng([self.seed & (2**64 - 1), epoch, 0x1E9])
        batches = self._sorted(generator.permutation(len(self.lengths)))
        if self._groups:
            batches, left_out = _separated(batches, self._groups)
            if left_out:
                count = f"epoch {epoch}: {left_out} of {len(self.lengths)} training samples"
                reason = "every batch has one of their group already"
                warnings.warn(f"{count} are left out, {reason}", stacklevel=2)
        order = [*generator.permutation(self.full).tolist(), self.full]
        for batch in (batches[place] for place in order[start : self.steps]):
            share = len(batch) // self.world
            if share < LEAST:
                told = "too many of the training samples are of one group, as equal texts are"
                raise ValueError(f"a batch of {len(batch)} samples: {told}; remove duplicates")
            yield np.array(batch[self.rank * share : (self.rank + 1) * share], np.int64)

    def _sorted(self, drawn: Plan) -> list[list[int]]:
        """Full batches, then the rest; it has no part in the sorting of the others."""
        size, end = self.batch_size, self.full * self.batch_size
        pool = size * self.pool_batches
        if self.pool_batches > 1:
            pools = (drawn[i : min(i + pool, end)] for i in range(0, end, pool))
            ordered = [p[np.argsort(self.lengths[p], kind="stable")] for p in pools]
            drawn = np.concatenate([*ordered, drawn[end:]])
        return [drawn[i : i + size].tolist() for i in range(0, len(drawn), size)]


def _repeated(apart: Sequence[NDArray]) -> dict[int, Groups]:
    """The groups of each sample that shares one; most samples share none and are not listed."""
    groups: dict[int, Groups] = {}
    for number, values in enumerate(apart):
        _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
        for sample in np.flatnonzero(counts[group] > 1).tolist():
            groups.setdefault(sample, set()).add((number, int(group[sample])))
    return groups


def _separated(batches: list[list[int]], groups: dict[int, Groups]) -> tuple[list[list[int]], int]:
    """Batches without two samples of a group, and how many samples had to be left out."""
    present: list[Groups] = [set() for _ in batches]
    clashing: list[tuple[int, int]] = []
    for place, batch in enumerate(batches):
        for slot, sample in enumerate(batch):
            own = groups.get(sample, ())
            if present[place].isdisjoint(own):
                present[place].update(own)
            else:
                clashing.append((place, slot))
    waiting = set(clashing)

    def exchange(sample: int, place: int) -> tuple[int, int] | None:
        """Batch and slot of a sample that this one of batch `place` can change places with."""
        for distance in range(1, len(batches)):
            for there in (place + distance, place - distance):
                if not 0 <= there < len(batches) or not present[there].isdisjoint(groups[sample]):
                    continue
                for slot, other in enumerate(batches[there]):
                    free = present[place].isdisjoint(groups.get(other, ()))
                    if free and (there, slot) not in waiting:
                        return there, slot
        return None

    for place, slot in clashing:
        sample = batches[place][slot]
        if present[place].isdisjoint(groups[sample]):  # what it clashed with has moved
            present[place] |= groups[sample]
            waiting.remove((place, slot))
        elif found := exchange(sample, place):
            there, other_slot = found
            other = batches[there][other_slot]
            present[there] = (present[there] - groups.get(other, set())) | groups[sample]
            present[place] |= groups.get(other, set())
            batches[place][slot], batches[there][other_slot] = other, sample
            waiting.remove((place, slot))
    kept = [
        [sample for slot, sample in enumerate(batch) if (place, slot) not in waiting]
        for place, batch in enumerate(batches)
    ]
    return kept, len(waiting)
