"""Callbacks for what Lightning lacks: exact resumption, finite gradients, honest throughput."""

from __future__ import annotations

import math
import random
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    Callback,
    Checkpoint,
    ProgressBar,
    WeightAveraging,
)
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from shared.distributed import gather_objects
from shared.provenance import peak_bytes
from shared.training import lightning_internals as internals
from shared.training.loggers import CsvLogger

WARM_UP = 3  # steps of a process before its throughput counts


class ResumeCheckpoint(Checkpoint):
    """Keeps ``<folder>/last.ckpt``, from which training goes on as if it had never stopped.

    What Lightning's ``ModelCheckpoint`` saves after a batch that validation follows resumes behind
    that validation, whose metrics are then lost. Here such a batch is saved once its validation is
    over, and the metrics of a step are written before the checkpoint that says the step is done.
    SIGTERM to any process ends all of them behind such a save, with Lightning's SIGTERMException.
    Every process's random number generators are part of the checkpoint; metrics averaged over a
    training epoch (``on_epoch=True``) are not: log them per step.

    Args:
        every_n_steps: optimiser steps between two saves; every epoch end is saved as well.
        minutes: that have to be over, too, by the clock of process 0.
    """

    def __init__(self, folder: str | Path, every_n_steps: int = 100, minutes: float = 0.0) -> None:
        self.path = Path(folder) / "last.ckpt"
        self.every_n_steps = every_n_steps
        self.seconds = 60 * minutes
        self._saved_step, self._saved = 0, -math.inf
        self.terminated = False
        self._generators: list[dict[str, Any]] = []

    def _take_sigterm(self, trainer: pl.Trainer) -> None:
        # Lightning's handler calls a collective wherever the signal finds it: that hangs.
        def receive(number: int, *_: Any) -> None:
            if not self.terminated and (launcher := trainer.strategy.launcher) is not None:
                launcher.kill(number)  # the processes that this one has started
            self.terminated = True
            if trainer.state.fn != "fit":  # nothing to save
                raise SIGTERMException

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, receive)

    def on_test_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._take_sigterm(trainer)

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._take_sigterm(trainer)
        self._saved_step, self._saved = trainer.global_step, time.monotonic()
        if trainer.global_step == 0:  # what a run killed before its first checkpoint has left
            _continue_metrics(trainer, 0)
        if self._generators:
            _set_generators(self._generators[trainer.global_rank])
            self._generators = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        # A metric that this step does not log would be written with its last value of the epoch,
        # as if measured now; a resumed run, which has no last value, would write nothing.
        internals.forget_logged_values(trainer)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Not in on_train_start, which a run that was killed after its last step does not reach.
        if trainer.state.fn == "fit":
            _continue_metrics(trainer, checkpoint["global_step"])

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if not internals.validation_follows(trainer):
            self._save_if_due(trainer)

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save_if_due(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        # An epoch that was cut short (`max_time`) is saved as open, by `_save_if_due`.
        if trainer.max_steps == -1 and internals.is_last_batch(trainer):
            self._save(trainer)
            if self._end_asked(trainer):
                raise SIGTERMException

    def on_fit_end(self, trainer: pl.Trainer, *_: Any) -> None:
        # A run that was killed behind its last checkpoint finds nothing left to do, and would label
        # its test metrics with the step and the epoch that this checkpoint was still within.
        internals.complete_epoch(trainer)

    def _save_if_due(self, trainer: pl.Trainer) -> None:
        # Better when the epoch is over. But with `max_steps` Lightning repeats the end of an epoch
        # that was saved when over, and counts it twice; then the last batch is saved instead.
        last = internals.is_last_batch(trainer) or trainer.global_step == trainer.max_steps
        terminated = self._end_asked(trainer)
        due = trainer.global_step >= self._saved_step + self.every_n_steps
        if due and self.seconds:
            late = time.monotonic() >= self._saved + self.seconds
            due = trainer.strategy.broadcast(late)
        if (trainer.max_steps != -1) if last else (due or terminated or trainer.should_stop):
            self._save(trainer)
            if terminated:
                raise SIGTERMException

    def _end_asked(self, trainer: pl.Trainer) -> bool:
        """Whether SIGTERM has reached any process of the run: the same answer in all of them."""
        return trainer.strategy.reduce_boolean_decision(self.terminated, all=False)

    def _save(self, trainer: pl.Trainer) -> None:
        # What Lightning will write for this step in a moment; the logger drops the repeat.
        if not trainer.validating and (values := internals.values_to_log(trainer)):
            for logger in _csv_loggers(trainer):
                logger.log_metrics(values, trainer.global_step - 1)
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved_step, self._saved = trainer.global_step, time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"generators": gather_objects(_get_generators())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._generators = state_dict["generators"]


def moving_average(decay: float) -> WeightAveraging:
    """Callback that evaluates, saves and leaves behind the exponential moving average of all
    parameters, `decay` in (0, 1) of the old one a step; buffers are the last step's. A checkpoint's
    `state_dict` is the average, and training goes on from the weights beside it."""
    if not 0 < decay < 1:
        raise ValueError(f"ema_decay={decay!r}: expected a number between 0 and 1, or null")
    return WeightAveraging(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(decay))


class FiniteGradients(Callback):
    """Stops before an update by a gradient that is not finite although the loss was.

    Under float16 the gradient scaler skips such steps on purpose; then this does nothing.
    """

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        named = [(n, p.grad) for n, p in pl_module.named_parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([gradient for _, gradient in named])
        if torch.isfinite(norm):
            return
        broken = [name for name, gradient in named if not torch.isfinite(gradient).all()]
        # The norm alone may overflow: then every gradient is finite but far too large.
        where = f"not finite in {', '.join(broken)}"
        what = where if broken else "so large that its norm overflows"
        said = f"step {trainer.global_step}: the gradient is {what}; stopped before the update, the"
        advice = "Lower the learning rate, or try precision=32-true."
        raise FloatingPointError(f"{said} last checkpoint is good. {advice}")


class Throughput(Callback):
    """Samples per second of training alone, and the peak memory, logged as ``perf/...``.

    A sample is one row of any image tensor of the batch, so several views of an image count each.
    Warm-up (but in `steps`), evaluation and checkpoint writing do not count, loading does.
    """

    def __init__(self) -> None:
        self.steps = self._samples = 0
        self._seconds = 0.0
        self._since: float | None = None  # None: the next step has no fair beginning

    @property
    def samples_per_second(self) -> float:
        """Of all processes of the run together; 0.0 until a step has been counted."""
        return self._samples / self._seconds if self._seconds else 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        now = time.perf_counter()
        self.steps += 1
        if self._since is not None and self.steps > WARM_UP:
            self._seconds += now - self._since
            self._samples += _rows(batch) * trainer.world_size
        self._since = now

    def on_validation_start(self, *_: Any) -> None:
        self._since = None

    def on_save_checkpoint(self, *_: Any) -> None:
        self._since = None

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._since = None
        if self._seconds:
            figures = {
                "epoch": trainer.current_epoch,
                "perf/samples_per_second": self.samples_per_second,
                "perf/peak_memory_mb": peak_memory_mb(),
            }
            for logger in trainer.loggers:
                logger.log_metrics(figures, trainer.global_step - 1)


class PlainProgress(ProgressBar):
    """One line every so many seconds, for logs and pipes where a bar would leave rubbish."""

    def __init__(self, every_seconds: float = 10.0) -> None:
        super().__init__()
        self.every_seconds = every_seconds
        self._printed = -math.inf

    def enable(self) -> None:
        self._printed = -math.inf

    def disable(self) -> None:
        self._printed = math.inf

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (now := time.monotonic()) - self._printed < self.every_seconds:
            return
        self._printed = now
        loss = trainer.logged_metrics.get("train/loss")
        shown = f" loss {float(loss):.4f}" if loss is not None else ""
        where = f"epoch {trainer.current_epoch} batch {batch_idx + 1}/{self.total_train_batches}"
        print(f"step {trainer.global_step} ({where}){shown}", flush=True)


def peak_memory_mb() -> float:
    """Peak of this process in MB (1e6 bytes): the GPU allocator's if one is used, else resident."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e6
    return peak_bytes() / 1e6


def _rows(batch: Any) -> int:
    """Rows of the floating-point tensors of at least three dimensions, else of the first tensor."""
    values = list(batch.values()) if isinstance(batch, Mapping) else batch
    values = [values] if isinstance(values, Tensor) else values
    tensors = [value for value in values if isinstance(value, Tensor)]
    inputs = [t for t in tensors if t.ndim >= 3 and t.is_floating_point()]
    return sum(len(t) for t in inputs or tensors[:1])


def _csv_loggers(trainer: pl.Trainer) -> list[CsvLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, CsvLogger)]


def _continue_metrics(trainer: pl.Trainer, global_step: int) -> None:
    for logger in _csv_loggers(trainer):
        logger.continue_from(global_step)


def _get_generators() -> dict[str, Any]:
    """The state of every global generator, as plain data."""
    version, python, gauss = random.getstate()
    kind, keys, *rest = cast(tuple, np.random.get_state(legacy=True))  # noqa: NPY002
    return {
        "python": [version, list(python), gauss],
        "numpy": [kind, keys.tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def _set_generators(state: dict[str, Any]) -> None:
    version, python, gauss = state["python"]
    random.setstate((version, tuple(python), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
