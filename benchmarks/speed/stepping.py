"""Our training step, taken by hand or in Lightning's loop: what the comparisons time here."""

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.speed.serving import timed
from shared.nn.building import build
from shared.run import build_trainer
from shared.training.allocator import keep_freed_memory
from shared.training.callbacks import FiniteGradients, Throughput

CONF = Path(__file__).resolve().parents[2] / "conf"


class OurSide:
    """Our workload, from a config; builds each variant when it is first asked for.

    A variant is a precision, "float32" or "bf16", and where the batches come from: nothing (one
    batch, used again and again), "trainer" (the same in Lightning's loop), or what `batches` knows.

    Args:
        settings: of the worker; `threads` and `seed` are used here.
        overrides: of conf/config.yaml; the module is built from `method`.
    """

    config: DictConfig
    batch: dict[str, Tensor]

    def __init__(self, settings: dict[str, Any], overrides: list[str]):
        torch.set_num_threads(settings["threads"])
        keep_freed_memory()
        pl.seed_everything(settings["seed"], verbose=False)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            self.config = compose("config", [*overrides, "trainer=cpu", "output_dir=."])
        self.steps: dict[str, Callable[[], float]] = {}
        self.trained: dict[str, pl.LightningModule] = {}

    def module(self) -> Any:
        """The module in the state in which it is timed."""
        return self.instantiate("method").train()

    def batches(self, source: str) -> Iterator[dict[str, Tensor]]:
        """The batches of a variant."""
        if source:
            raise ValueError(f"no batches called {source!r}")
        return iter(lambda: self.batch, None)

    def describe(self) -> dict[str, Any]:
        trained = [p for p in self.module().parameters() if p.requires_grad]
        return {
            "parameters": sum(p.numel() for p in trained),
            "images_per_step": sum(len(v) for v in self.batch.values() if v.ndim == 4),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def run(self, variant: str, steps: int) -> tuple[list[float], list[float]]:
        precision, _, source = variant.partition(" ")
        if source == "trainer":
            if variant not in self.trained:
                self.trained[variant] = self.module()
            return self.fit(self.trained[variant], precision, steps)
        if variant not in self.steps:
            step = by_hand(self.module(), self.batches(source), mixed=precision == "bf16")
            self.steps[variant] = step
        return timed(self.steps[variant], steps)

    def fit(
        self, module: pl.LightningModule, precision: str, steps: int
    ) -> tuple[list[float], list[float]]:
        """The steps between the ends of `steps` + 1 batches in Lightning's loop."""
        clock = Clock()
        trainer = build_trainer(
            self.config.trainer,
            max_epochs=-1,
            max_steps=steps + 1,
            precision={"float32": "32-true", "bf16": "bf16-mixed"}[precision],
            callbacks=[FiniteGradients(), Throughput(), clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            limit_val_batches=0,
        )
        # Without `batch_size` the loader hands on what the list holds.
        batches: Any = [self.batch] * (steps + 1)
        trainer.fit(module, DataLoader(batches, batch_size=None))
        return [after - before for before, after in pairwise(clock.ends)], clock.losses[1:]

    def instantiate(self, key: str) -> Any:
        bases: dict[str, type] = {"method": pl.LightningModule, "data": pl.LightningDataModule}
        return build(self.config[key], bases[key])


def by_hand(module: Any, batches: Iterator[dict[str, Tensor]], mixed: bool) -> Callable[[], float]:
    """All that Lightning does to train on a batch, through the module's own hooks; the loss.

    Args:
        mixed: bf16 autocast.
    """
    configured = module.configure_optimizers()
    if isinstance(configured, torch.optim.Optimizer):  # the module sets its rate itself
        optimizer, schedule = configured, None
    else:
        (optimizer,), (schedule,) = configured

    def step() -> float:
        batch = next(batches)

        def closure() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                loss = module.training_step(batch, 0)
            optimizer.zero_grad()
            loss.backward()
            return loss.detach()

        losses: list[Tensor] = []
        module.optimizer_step(0, 0, optimizer, lambda: losses.append(closure()))
        if schedule and schedule["interval"] == "step":
            schedule["scheduler"].step()
        return float(losses[0])

    return step


class Clock(pl.Callback):
    """When each batch was over, and its loss."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(float(outputs["loss"]))
        self.ends.append(time.perf_counter())
