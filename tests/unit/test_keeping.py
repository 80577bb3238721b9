"""Checkpoints that stay: the best by validation, those of some epochs, and how often the last."""

import math
import time

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from shared.checkpoints.reading import load_checkpoint
from shared.checkpoints.writing import AtomicCheckpointIO
from shared.training.callbacks import ResumeCheckpoint
from shared.training.keeping import BestCheckpoint, epoch_checkpoints

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Judged(pl.LightningModule):
    """A weight that counts the steps; validation logs what it is told for each epoch."""

    def __init__(self, values):
        super().__init__()
        self.values = values
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return -self.weight

    def validation_step(self, batch, batch_idx):
        self.log("val/accuracy", self.values[self.current_epoch])

    def test_step(self, batch, batch_idx):
        self.log("test/weight", self.weight)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(folder, values, *kept, epochs=None, **options):
    module = Judged(values)
    resume = ResumeCheckpoint(folder, 100, **options)
    last = resume.path if resume.path.exists() else None
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs or len(values),
        callbacks=[*kept, resume],
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    batches = DataLoader(torch.zeros(3, 1))
    trainer.fit(module, batches, batches, ckpt_path=last)
    return trainer, module, batches


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ((1.0, 3.0, 2.0), 6),
        ((2.0, 2.0, 1.0), 3),  # of equals the earlier
        ((math.nan, 1.0, 1.5), 9),  # nothing is greater than a value that is none
    ],
)
def test_the_best_epoch_is_kept_and_tested(tmp_path, values, steps):
    best = BestCheckpoint(tmp_path, "val/accuracy")
    trainer, module, batches = fit(tmp_path, values, best)
    assert best.step == steps
    assert load_checkpoint(best.path)["state_dict"]["weight"] == steps
    (tested,) = trainer.test(module, batches, ckpt_path=best.path, verbose=False)
    assert tested["test/weight"] == steps
    assert load_checkpoint(tmp_path / "last.ckpt")["state_dict"]["weight"] == 9


def test_a_continued_run_knows_what_was_best(tmp_path):
    values = (3.0, 1.0, 2.0)
    fit(tmp_path, values, BestCheckpoint(tmp_path, "val/accuracy"), epochs=2)
    best = BestCheckpoint(tmp_path, "val/accuracy")
    fit(tmp_path, values, best)
    assert (best.value, best.step) == (3.0, 3)
    assert load_checkpoint(best.path)["global_step"] == 3
    assert load_checkpoint(tmp_path / "last.ckpt")["global_step"] == 9


def test_no_last_checkpoint_knows_of_a_best_one_that_is_not_there(tmp_path, monkeypatch):
    """A kill between the two saves leaves the better weights, or the older state."""
    saved = []
    save = pl.Trainer.save_checkpoint

    def watched(trainer, path, *args, **kwargs):
        save(trainer, path, *args, **kwargs)
        saved.append((path.name, trainer.global_step))

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", watched)
    fit(tmp_path, (1.0, 2.0), BestCheckpoint(tmp_path, "val/accuracy"))
    names = ("best.ckpt", 3), ("last.ckpt", 3), ("best.ckpt", 6), ("last.ckpt", 6)
    assert saved == list(names)


def test_a_metric_that_validation_lacks_is_named(tmp_path):
    said = r"best=val/top1 is no metric of this validation: val/accuracy"
    with pytest.raises(ValueError, match=said):
        fit(tmp_path, (1.0, 2.0), BestCheckpoint(tmp_path, "val/top1"))


def test_checkpoints_of_some_epochs_stay(tmp_path):
    fit(tmp_path, (1.0,) * 5, epoch_checkpoints(tmp_path, 2))
    fit(tmp_path, (1.0,) * 6, epoch_checkpoints(tmp_path, 2))  # goes on
    kept = {path.name: load_checkpoint(path)["global_step"] for path in tmp_path.iterdir()}
    assert kept == {"0001.ckpt": 6, "0003.ckpt": 12, "0005.ckpt": 18, "last.ckpt": 18}


def test_saves_within_an_epoch_wait_for_the_minutes(tmp_path, monkeypatch):
    steps = []
    clock = [0.0]

    class Watched(ResumeCheckpoint):
        state_key = "ResumeCheckpoint"

        def _save(self, trainer):
            super()._save(trainer)
            steps.append(trainer.global_step)

        def on_train_batch_start(self, *args):
            super().on_train_batch_start(*args)
            clock[0] += 20.0

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[Watched(tmp_path, 2, minutes=1.5)],
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Judged((0.0,)), DataLoader(torch.zeros(16, 1)))
    assert steps == [5, 10, 15, 16]  # every second step is due, 90 seconds are five
