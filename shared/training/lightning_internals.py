"""The only file that touches private attributes of Lightning.

`tests/unit/test_lightning_internals.py` fails where a release of Lightning has changed one of them.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.apply_func import convert_tensors_to_scalars


def trainer_of(module: pl.LightningModule) -> pl.Trainer | None:
    """The trainer of a module; None where it has none (`module.trainer` raises there)."""
    return module._trainer


def validation_follows(trainer: pl.Trainer) -> bool:
    """Whether Lightning validates between this training batch and the next."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def is_last_batch(trainer: pl.Trainer) -> bool:
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def forget_logged_values(trainer: pl.Trainer) -> None:
    """Drop the last value of every training metric, so that a step logs only what it measured."""
    for result in (trainer.fit_loop.epoch_loop._results or {}).values():
        result._forward_cache = None


def values_to_log(trainer: pl.Trainer) -> dict[str, float]:
    """The metrics that Lightning will hand to the loggers in a moment; empty if it will not."""
    connector = trainer._logger_connector
    epoch_end = connector._first_loop_iter is None
    if not (epoch_end or connector.should_update_logs):
        return {}
    values: dict[str, float] = convert_tensors_to_scalars(connector.metrics["log"])
    return {"epoch": trainer.current_epoch, **values} if values else {}


def complete_epoch(trainer: pl.Trainer) -> None:
    """Count an epoch as over that a checkpoint from within it has left open."""
    loop: Any = trainer.fit_loop
    epochs = loop.epoch_progress.current
    if epochs.processed < epochs.started:
        epochs.processed = epochs.completed = epochs.started
        loop.epoch_loop._batches_that_stepped += 1
