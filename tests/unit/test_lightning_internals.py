"""Lightning's private parts are as `shared.training.lightning_internals` takes them to be."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

import shared
from shared.training import lightning_internals as internals

ROOT = Path(shared.__file__).parent.parent
PRIVATE = re.compile(
    r"\._trainer\b|\.fit_loop\b|\._logger_connector\b|_forward_cache|_should_check_val_fx"
    r"|_data_fetcher|_batches_that_stepped|_first_loop_iter|_accelerator_connector|_child_processes"
)


class Module(pl.LightningModule):
    """Logs `odd` in every other step."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        loss = self.net(batch).sum()
        self.log("loss", loss)
        if batch_idx % 2:
            self.log("odd", float(batch_idx))
        return loss

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Seen(pl.Callback):
    """What the internals say at the end of each batch."""

    def __init__(self):
        self.last, self.validation, self.logged = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        internals.forget_logged_values(trainer)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.last.append(internals.is_last_batch(trainer))
        self.validation.append(internals.validation_follows(trainer))
        self.logged.append(internals.values_to_log(trainer))


@pytest.fixture(scope="module")
def run():
    seen, module = Seen(), Module()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, val_check_interval=2, log_every_n_steps=2, logger=False,
        callbacks=[seen], enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    assert internals.trainer_of(module) is None
    batches = DataLoader(torch.ones(4, 2))
    try:
        trainer.fit(module, batches, batches)
    except AttributeError as error:
        pytest.fail(f"pytorch-lightning {pl.__version__} has changed a private part: {error}")
    return seen, module, trainer


def test_batches_validation_and_what_will_be_logged_are_foreseen(run):
    seen, module, trainer = run
    assert internals.trainer_of(module) is trainer
    assert seen.last == [False, False, False, True] * 2
    assert seen.validation == [False, True, False, True] * 2
    logged = {"loss", "odd", "epoch"}
    assert [set(values) for values in seen.logged[:4]] == [set(), logged, set(), logged]
    # No value is repeated.
    assert (seen.logged[1]["odd"], seen.logged[3]["odd"], seen.logged[3]["epoch"]) == (1.0, 3.0, 0)


def test_an_open_epoch_is_completed_once(run):
    _, _, trainer = run
    epochs, loop = trainer.fit_loop.epoch_progress.current, trainer.fit_loop.epoch_loop
    before = loop._batches_that_stepped
    internals.complete_epoch(trainer)
    assert loop._batches_that_stepped == before
    epochs.processed = epochs.completed = epochs.started - 1
    internals.complete_epoch(trainer)
    internals.complete_epoch(trainer)
    assert (epochs.processed, epochs.completed) == (epochs.started, epochs.started)
    assert loop._batches_that_stepped == before + 1


def test_the_end_of_training_is_told_from_a_stop(run):
    trainer = run[2]
    assert internals.shortfall(trainer) is None
    trainer.fit_loop.epoch_loop.batch_progress.is_last_batch = False
    assert internals.shortfall(trainer) == f"a callback ended it after step {trainer.global_step}"
    assert internals.shortfall(trainer, fitted=False) is None
    trainer.fit_loop.epoch_loop.batch_progress.is_last_batch = True
    for name, whole in internals.WHOLE.items():
        assert getattr(trainer, name) == whole


def test_slurm_jobs_are_not_requeued_by_lightning(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "run")
    for key in ("PROCID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{key}", "0")
    trainer = pl.Trainer(accelerator="cpu", devices=1, strategy="ddp", logger=False)
    assert trainer.strategy.cluster_environment.auto_requeue
    internals.leave_requeueing(trainer)
    assert not trainer.strategy.cluster_environment.auto_requeue


def test_the_watch_over_children_ends():
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(143)"]) as child:
        child.wait()
        watch = internals._ChildProcessObserver([child], os.getpid(), sleep_period=0.1)
        watch._terminate_all = lambda: pytest.fail("killed")
        watch.start()
        internals.let_children_end()
        watch.join(10)
    assert watch._finished


def test_nothing_else_touches_them():
    files = [p for d in ("shared", "methods", "benchmarks") for p in (ROOT / d).rglob("*.py")]
    touching = {p.relative_to(ROOT).as_posix() for p in files if PRIVATE.search(p.read_text())}
    assert touching == {"shared/training/lightning_internals.py"}
