"""The only file that touches private attributes of Lightning.

`tests/unit/test_lightning_internals.py` fails where a release of Lightning has changed one of them.
"""

from __future__ import annotations

import threading
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
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


WHOLE = {
    "fast_dev_run": False,
    "overfit_batches": 0.0,
    "limit_train_batches": 1.0,
    "limit_test_batches": 1.0,
}
"""What a trainer says that neither trains nor tests on a part."""


def shortfall(trainer: pl.Trainer, fitted: bool = True) -> str | None:
    """Why a fit and a test that have returned did not do all that was configured; None if all."""
    for name, whole in WHOLE.items():
        given = getattr(trainer, name)  # of batches 1 is one of them, 1.0 all
        if given != whole or (whole == 1.0 and isinstance(given, int)):
            return f"{name}={given}"
    loop, epochs = trainer.fit_loop, trainer.max_epochs
    if not fitted or -1 < trainer.max_steps <= trainer.global_step:
        return None
    last = loop.epoch_loop.batch_progress.is_last_batch
    if last and epochs is not None and -1 < epochs <= trainer.current_epoch:
        return None
    timers = (c for c in trainer.callbacks if isinstance(c, pl.callbacks.Timer))  # type: ignore[attr-defined]
    left = [seconds for timer in timers if (seconds := timer.time_remaining()) is not None]
    late = min(left, default=1.0) <= 0
    return f"{'max_time' if late else 'a callback'} ended it after step {trainer.global_step}"


def leave_requeueing(trainer: pl.Trainer) -> None:
    """Keep Lightning from putting a SLURM job back into the queue with a checkpoint of its own,
    which it would then test instead of the trained weights."""
    environment: Any = trainer._accelerator_connector.cluster_environment
    if hasattr(environment, "auto_requeue"):
        environment.auto_requeue = False


def let_children_end() -> None:
    """Keep the thread that watches the processes started by this one from killing it as soon as
    one of them has ended by SIGTERM."""
    for thread in threading.enumerate():
        if isinstance(thread, _ChildProcessObserver):
            thread._child_processes = []
