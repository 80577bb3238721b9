"""Resuming after every batch, independence of workers, and Lightning's use of the loader."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from shared.data.loading.loader import EvaluationLoader, ResumableLoader
from shared.data.loading.streams import Draws, Permutations, StreamBatches

STEPS = 5


class Echo:
    """Hands out the positions and passes it is asked for."""

    def __getitems__(self, plan: tuple[Draws, Draws]) -> dict[str, Tensor]:
        parts = [torch.from_numpy(np.stack(draws)) for draws in plan]
        return {"labelled": parts[0], "unlabelled": parts[1]}


def loader(workers: int = 0) -> ResumableLoader:
    streams = [Permutations(0, 6, 4 * STEPS), Permutations(0, 50, 12 * STEPS, 1)]
    return ResumableLoader(Echo(), StreamBatches(streams, [4, 12]), workers)


def epoch_of(source: ResumableLoader, epoch: int) -> list[Tensor]:
    source.set_epoch(epoch)
    return [torch.cat([b["labelled"], b["unlabelled"]], 1) for b in source]


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_after_every_batch(workers: int) -> None:
    expected = epoch_of(loader(), 3)
    source, resumed = loader(workers), loader(workers)
    source.set_epoch(3)
    states = [copy.deepcopy(source.state_dict()) for _ in source]
    for done, state in enumerate(states, start=1):
        resumed.load_state_dict(state)
        iterator = iter(resumed)  # Lightning announces the epoch after this
        resumed.set_epoch(3)
        rest = [torch.cat([b["labelled"], b["unlabelled"]], 1) for b in iterator]
        assert same(rest, expected[done:])
        assert len(resumed) == STEPS
        assert same(epoch_of(resumed, 4), epoch_of(loader(), 4))


@pytest.mark.filterwarnings("ignore:.*worker processes.*")
def test_workers_and_repetition_change_nothing() -> None:
    before = torch.get_rng_state()
    expected = [epoch_of(loader(), e) for e in (0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    assert not same(*expected)
    source = loader(workers=2)
    assert same(epoch_of(source, 0), expected[0])
    next(iter(source))  # an abandoned iteration leaves no trace
    assert same(epoch_of(source, 1), expected[1])
    assert same(epoch_of(source, 1), expected[1])


def test_state_of_another_epoch_length_is_refused() -> None:
    with pytest.raises(ValueError, match="has 9 batches, this one has 5"):
        loader().load_state_dict({"epoch": 0, "position": 3, "length": 9})


def test_evaluation_visits_each_sample_once() -> None:
    class Indices:
        def __getitems__(self, indices: np.ndarray) -> dict[str, Any]:
            return {"indices": indices}

    for world in (1, 2, 3):
        ranks = [EvaluationLoader(Indices(), 11, 4, 0, r, world) for r in range(world)]
        seen = np.concatenate([b["indices"] for source in ranks for b in source])
        assert sorted(seen) == list(range(11))


class Recorder(pl.LightningModule):
    """Trains one weight and remembers the batches."""

    def __init__(self, workers: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.workers, self.seen = workers, []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.seen.append(torch.cat([batch["labelled"], batch["unlabelled"]], 1))
        return self.weight * batch["unlabelled"].float().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], 0.1)

    def train_dataloader(self) -> ResumableLoader:
        return loader(self.workers)


class Interrupt(Callback):
    """Saves after `step` updates, as `ResumeCheckpoint` does, and stops as a kill would."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise InterruptedError


def fit(module: Recorder, limits: dict[str, int], *callbacks: Callback, **arguments: Any) -> None:
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **limits,  # type: ignore[arg-type]
    )
    trainer.fit(module, **arguments)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("limits", "workers", "steps"),
    [
        ({"max_epochs": 3}, 0, (1, 5, 6)),
        ({"max_steps": 13, "max_epochs": -1}, 0, (4, 12)),
        ({"max_epochs": 3}, 2, (8,)),
        pytest.param({"max_steps": 13, "max_epochs": -1}, 2, (5,), marks=pytest.mark.slow),
    ],
)
def test_lightning_continues_with_the_next_batch(
    tmp_path: Path, limits: dict[str, int], workers: int, steps: tuple[int, ...]
) -> None:
    undisturbed = Recorder(0)
    fit(undisturbed, limits)
    for step in steps:
        first, second = Recorder(workers), Recorder(workers)
        path = tmp_path / f"{step}.ckpt"
        with pytest.raises(InterruptedError):
            fit(first, limits, Interrupt(step, path))
        fit(second, limits, ckpt_path=path)
        assert same(first.seen + second.seen, undisturbed.seen), step
        assert torch.equal(second.weight, undisturbed.weight)
