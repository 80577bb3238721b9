"""Checkpoints that stay beside ``last.ckpt``: the best by validation, and those of some epochs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, ModelCheckpoint


class BestCheckpoint(Callback):
    """Keeps ``<folder>/best.ckpt``, of the validation with the greatest value of a metric, the
    earlier one of equals, as the official fine-tuning scripts do.

    It must save before `ResumeCheckpoint` does, so that no ``last.ckpt`` knows of a best one that
    a kill has prevented; Lightning runs checkpoint callbacks last.

    Args:
        metric: as validation logs it, ``val/...``.
    """

    def __init__(self, folder: str | Path, metric: str) -> None:
        self.path = Path(folder) / "best.ckpt"
        self.metric = metric
        self.value, self.step = -math.inf, 0

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if self.metric not in trainer.callback_metrics:
            known = sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
            said = f"best={self.metric} is no metric of this validation"
            raise ValueError(f"{said}: {', '.join(known) or 'it logs none'}")
        value = float(trainer.callback_metrics[self.metric])
        if trainer.strategy.broadcast(value > self.value):  # decided once for all processes
            self.value, self.step = value, trainer.global_step
            trainer.save_checkpoint(self.path, weights_only=False)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.value, self.step = float(state_dict["value"]), int(state_dict["step"])


def epoch_checkpoints(folder: str | Path, every_n_epochs: int) -> ModelCheckpoint:
    """Callback that keeps ``<folder>/NNNN.ckpt`` of every so many epochs, counted from 0."""
    return ModelCheckpoint(
        folder,
        "{epoch:04d}",
        save_top_k=-1,
        every_n_epochs=every_n_epochs,
        save_on_train_epoch_end=True,
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )
