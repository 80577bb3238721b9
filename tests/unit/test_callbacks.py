"""Resuming from any checkpoint equals never having stopped; guards; throughput."""

import math
import random
import shutil

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from benchmarks.chaos import first_difference
from shared.checkpoints.reading import load_checkpoint
from shared.checkpoints.writing import AtomicCheckpointIO
from shared.data.loading.loader import EvaluationLoader, ResumableLoader
from shared.data.loading.streams import Permutations, StreamBatches
from shared.training import callbacks
from shared.training.callbacks import (
    FiniteGradients,
    PlainProgress,
    ResumeCheckpoint,
    Throughput,
    moving_average,
    peak_memory_mb,
)
from shared.training.loggers import CsvLogger, read_metrics
from tests.hostile.damages import every

BATCHES, SIZE = 6, 24
GENERATOR = torch.Generator().manual_seed(0)
X, Y = (torch.randn(SIZE, width, generator=GENERATOR) for width in (3, 1))


class Points:
    """Batches of the points at the places that a loader asks for."""

    def __getitems__(self, plan):
        places = plan[0].positions if isinstance(plan, tuple) else plan
        return {"x": X[places], "y": Y[places]}


class Tiny(pl.LightningModule):
    """Dropout and three global generators, so that a lost generator state shows."""

    def __init__(self, lr=0.01):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.out = nn.Linear(8, 1)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def training_step(self, batch, batch_idx):
        noise = random.random() + np.random.rand()  # noqa: NPY002
        loss = (self.out(self.net(batch["x"])) - batch["y"]).square().mean() * (1 + noise)
        self.seen += len(batch["x"])
        if batch_idx in (1, 4):
            self.log("train/rare", loss)
        self.log_dict({"train/loss": loss, "train/noise": noise})
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/sum", self.out(self.net(batch["x"])).sum())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.99**step)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Keep(ResumeCheckpoint):
    """Also keeps a copy of the whole folder as it is at the moment of every save."""

    state_key = "ResumeCheckpoint"

    def _save(self, trainer):
        super()._save(trainer)
        folder = self.path.parent
        count = len(list(folder.parent.glob("at_*")))
        shutil.copytree(folder, folder.parent / f"at_{count:02d}_step{trainer.global_step}")


def fit(folder, checkpoint_class=ResumeCheckpoint, module=None, more=(), **arguments):
    pl.seed_everything(0, verbose=False)
    module = module or Tiny()
    last = folder / "last.ckpt"
    arguments = {"max_epochs": 3, "log_every_n_steps": 1, "every_n_steps": 2, **arguments}
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=CsvLogger(folder / "metrics.csv"),
        callbacks=[checkpoint_class(folder, arguments.pop("every_n_steps")), *more],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=arguments.pop("enable_progress_bar", False),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **arguments,
    )
    batches = ResumableLoader(Points(), StreamBatches([Permutations(100, SIZE)], [4]))
    validation = EvaluationLoader(Points(), SIZE, 8)
    trainer.fit(module, batches, validation, ckpt_path=last if last.exists() else None)


def comparable(checkpoint):
    """What of a final checkpoint must be the same; Lightning's own bookkeeping is not."""
    return {k: checkpoint[k] for k in ("state_dict", "optimizer_states", "lr_schedulers")} | {
        "step": checkpoint["global_step"],
        "epoch": checkpoint["epoch"],
        "generators": next(v for v in checkpoint["callbacks"].values() if "generators" in v),
    }


@pytest.mark.parametrize(
    "schedule",
    every(4, [
        {"max_epochs": 3},
        {"max_steps": 15, "max_epochs": -1},
        {"max_steps": 15, "max_epochs": -1, "check_val_every_n_epoch": 2},
        {"max_epochs": 3, "val_check_interval": 0.5},
        {"max_steps": 12, "max_epochs": -1, "every_n_steps": 1},
        {"max_epochs": 3, "check_val_every_n_epoch": 2},
        {"max_epochs": 2, "every_n_steps": 1},
    ]),
    ids=str,
)  # fmt: skip
def test_every_checkpoint_continues_exactly(tmp_path, schedule):
    whole = tmp_path / "run"
    fit(whole, Keep, **schedule)
    expected = comparable(load_checkpoint(whole / "last.ckpt"))
    rows = read_metrics(whole / "metrics.csv")
    keys = [(row["step"], row["metric"]) for row in rows]
    assert len(keys) == len(set(keys))
    rare = [int(step) % BATCHES for step, metric in keys if metric == "train/rare"]
    assert set(rare) == {1, 4}  # not repeated in the steps that did not log it
    stops = sorted(tmp_path.glob("at_*"))
    assert len(stops) >= 6
    for folder in stops:
        # What a killed run wrote after its checkpoint, and half a line.
        with open(folder / "metrics.csv", "a") as file:
            file.write("9000,9,train/loss,1.0\n9001,9,tra")
        fit(folder, **schedule)
        found = comparable(load_checkpoint(folder / "last.ckpt"))
        assert first_difference(found, expected, folder.name) is None
        assert read_metrics(folder / "metrics.csv") == rows, folder.name


class Averaged(Tiny):
    def configure_callbacks(self):
        return [moving_average(0.75)]


@pytest.mark.parametrize(
    "schedule", [{"max_epochs": 2}, {"max_epochs": 2, "val_check_interval": 0.5}]
)
def test_an_average_of_the_weights_is_saved_evaluated_and_continued(tmp_path, schedule):
    steps, seen = [], []

    class Watched(Averaged):
        def optimizer_step(self, *arguments, **named):
            super().optimizer_step(*arguments, **named)
            steps.append(self.out.weight.detach().clone())

        def on_validation_epoch_start(self):
            seen.append(self.out.weight.detach().clone())

    whole = tmp_path / "run"
    module = Watched()
    fit(whole, Keep, module, **schedule)
    average = steps[0].clone()
    for weight in steps[1:]:
        average.lerp_(weight, 0.25)
    end = load_checkpoint(whole / "last.ckpt")
    for found in (module.out.weight, seen[-1], end["state_dict"]["out.weight"]):
        torch.testing.assert_close(found, average)
    torch.testing.assert_close(end["current_model_state"]["out.weight"], steps[-1])
    assert end["state_dict"]["seen"] == 2 * SIZE  # a counter is no weight
    names = ("current_model_state", "averaging_state")
    for folder in sorted(tmp_path.glob("at_*")):
        fit(folder, module=Averaged(), **schedule)
        again = load_checkpoint(folder / "last.ckpt")
        assert first_difference(comparable(again), comparable(end), folder.name) is None
        assert first_difference([again[n] for n in names], [end[n] for n in names], "") is None
        assert read_metrics(folder / "metrics.csv") == read_metrics(whole / "metrics.csv")


@pytest.mark.parametrize("decay", [0, 1, 1.5, -0.1])
def test_a_decay_that_averages_nothing_is_refused(decay):
    with pytest.raises(ValueError, match=r"ema_decay=.*between 0 and 1"):
        moving_average(decay)


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_clean(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text("step,epoch,metric,value\n0,0,train/loss,9.0\n7,")
    fit(tmp_path / "run", max_epochs=1)
    fit(tmp_path / "other", max_epochs=1)
    first, second = (read_metrics(tmp_path / n / "metrics.csv") for n in ("run", "other"))
    assert first == second


class Spoiled(Tiny):
    """From step 4 on, the loss is finite and its gradient is not."""

    def __init__(self, gradient):
        super().__init__()
        self.gradient = gradient

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.global_step == 4:
            self.out.weight.register_hook(lambda g: torch.full_like(g, self.gradient))
        return loss


@pytest.mark.parametrize("gradient", [math.nan, math.inf])
def test_non_finite_gradient_stops_before_the_update(tmp_path, gradient):
    module = Spoiled(gradient)
    with pytest.raises(FloatingPointError, match=r"step 4: .*not finite in out\.weight"):
        fit(tmp_path, module=module, more=[FiniteGradients()])
    assert all(torch.isfinite(p).all() for p in module.parameters())
    kept = load_checkpoint(tmp_path / "last.ckpt")
    assert kept["global_step"] == 4
    # The weights of the checkpoint are those that the failed step met: no update came after.
    assert all(torch.equal(kept["state_dict"][n], p) for n, p in module.named_parameters())


def test_overflowing_gradient_norm_stops(tmp_path):
    with pytest.raises(FloatingPointError, match="norm overflows"):
        fit(tmp_path, module=Spoiled(3e38), more=[FiniteGradients()])


def test_throughput_counts_training_alone(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("shared.training.callbacks.time.perf_counter", lambda: now[0])

    class Clocked(Tiny):
        def training_step(self, batch, batch_idx):
            now[0] += 100.0 if self.global_step < 3 else 0.5
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            now[0] += 1000.0
            return super().validation_step(batch, batch_idx)

    throughput = Throughput()
    fit(tmp_path, module=Clocked(), more=[throughput], every_n_steps=100)
    assert throughput.samples_per_second == pytest.approx(4 / 0.5)
    rows = [r for r in read_metrics(tmp_path / "metrics.csv") if r["metric"].startswith("perf/")]
    assert {r["metric"] for r in rows} == {"perf/samples_per_second", "perf/peak_memory_mb"}
    assert Throughput().samples_per_second == 0.0
    assert 50 < peak_memory_mb() < 1e6


def test_rows_are_all_views_of_all_images():
    images = torch.zeros(2, 1, 4, 4)
    batch = {"labelled": images, "labels": torch.zeros(2), "weak": torch.zeros(6, 1, 4, 4)}
    assert callbacks._rows(batch) == 8
    assert callbacks._rows([torch.zeros(5), torch.zeros(5)]) == 5
    assert callbacks._rows(images) == 2


def test_progress_is_plain_lines_without_a_terminal(tmp_path, capsys):
    progress = PlainProgress(every_seconds=0.0)
    fit(tmp_path, max_epochs=1, more=[progress], enable_progress_bar=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("step 2 (epoch 0 batch 2/6) loss ")
    progress.disable()
    progress.on_train_batch_end(None, None, None, None, 0)
    assert capsys.readouterr().out == ""
