"""Loaders that continue in the middle of an epoch and share evenly among ranks."""

from collections.abc import Iterator
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from shared.data.loading.streams import Schedule


class BatchedDataset(Protocol):
    """Makes a whole collated batch from one key."""

    def __getitems__(self, key: Any, /) -> Any: ...


class _WorkerLoader:
    """Owns a torch DataLoader, which passes each element of `batches` to `dataset.__getitems__`."""

    def __init__(self, dataset: BatchedDataset, batches: Any, num_workers: int) -> None:
        self._loader: DataLoader = DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_sampler=batches,
            collate_fn=unchanged,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # Else each new iterator takes a number from torch's global generator, and a resumed
            # run makes one iterator more than an undisturbed one.
            generator=torch.Generator(),
        )

    @property
    def _iterator(self) -> Any:
        """What Lightning's teardown looks for; else each worker ends after a timeout of 5 s."""
        return self._loader._iterator

    @_iterator.setter
    def _iterator(self, value: None) -> None:
        self._loader._iterator = value


class ResumableLoader(_WorkerLoader):
    """The training batches of `schedule`, resumable after any of them.

    Lightning saves `state_dict()` with each checkpoint and finds `set_epoch` through `.sampler`.
    Only batches handed to the training loop count, however many the workers have prefetched.
    Lightning asks for an iterator before it announces the epoch: work starts at the first `next`.
    """

    def __init__(self, dataset: BatchedDataset, schedule: Schedule, num_workers: int = 0) -> None:
        self.dataset, self.schedule = dataset, schedule
        self.epoch = self.position = 0
        self._resuming = False
        self._plans = _Plans(schedule)
        super().__init__(dataset, self._plans, num_workers)

    @property
    def sampler(self) -> "ResumableLoader":
        return self

    def __len__(self) -> int:
        """Batches of a whole epoch, also when resumed within one."""
        return len(self.schedule)

    def set_epoch(self, epoch: int) -> None:
        """Choose the next iteration's epoch; another one than the resumed one starts afresh."""
        if epoch != self.epoch:
            self.epoch, self.position, self._resuming = epoch, 0, False

    def __iter__(self) -> Iterator[Any]:
        if not self._resuming:
            self.position = 0
        self._resuming = False
        self._plans.epoch, self._plans.start = self.epoch, self.position
        for batch in self._loader:
            self.position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position, "length": len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next iteration go on after the batches that `state` had handed out."""
        if state["length"] != len(self):
            told = f"the checkpoint's epoch has {state['length']} batches, this one has {len(self)}"
            raise ValueError(f"{told}: batch sizes, steps_per_epoch or data have changed")
        self.epoch, self.position, self._resuming = state["epoch"], state["position"], True


class EvaluationLoader(_WorkerLoader):
    """All samples in order, once; rank r of w gets every w-th, none is repeated (as Lightning's
    distributed sampler does, which biases a mean)."""

    def __init__(
        self,
        dataset: BatchedDataset,
        size: int,
        batch_size: int,
        num_workers: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        indices = torch.arange(rank, size, world).numpy()
        batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
        super().__init__(dataset, batches, num_workers)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._loader)


def rank_and_world(data: pl.LightningDataModule) -> tuple[int, int]:
    """Of the trainer that uses the data; a single one without a trainer."""
    trainer = data.trainer
    return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)


def unchanged(batch: Any) -> Any:
    """The batch as a data set made it, instead of what torch would make of its parts."""
    return batch


class _Plans:
    """What torch's DataLoader iterates over, in the main process."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.epoch, self.start = schedule, 0, 0

    def __len__(self) -> int:
        return len(self.schedule) - self.start

    def __iter__(self) -> Iterator[Any]:
        return self.schedule.batches(self.epoch, self.start)
