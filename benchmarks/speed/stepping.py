"""Our training step, taken by hand or in Lightning's loop: what the comparisons time here."""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.speed.serving import Workload
from shared.nn.building import build
from shared.run import build_trainer
from shared.training.allocator import keep_freed_memory
from shared.training.callbacks import FiniteGradients, Throughput

CONF = Path(__file__).resolve().parents[2] / "conf"


class OurSide(Workload):
    """Our workload, from overrides of conf/config.yaml; the module is built from `method`. The
    variant's second word says where the batches come from: nothing (one batch, again and again),
    "trainer" (the same in Lightning's loop), or what `batches` knows."""

    batch: dict[str, Tensor]

    def __init__(self, settings: dict[str, Any], overrides: list[str]):
        super().__init__(settings)
        keep_freed_memory()
        pl.seed_everything(settings["seed"], verbose=False)
        given = [*overrides, "trainer=cpu", "output_dir=.", "name=speed"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            self.config = compose("config", [*given, f"seed={settings['seed']}"])
        self.trained: dict[str, pl.LightningModule] = {}

    def module(self) -> Any:
        """The module in the state in which it is timed."""
        return build(self.config.method, pl.LightningModule).train()

    def batches(self, source: str) -> Iterator[dict[str, Tensor]]:
        """The batches of a variant."""
        if source:
            raise ValueError(f"no batches called {source!r}")
        return iter(lambda: self.batch, None)

    def parameters(self) -> Iterable[Tensor]:
        return [p for p in self.module().parameters() if p.requires_grad]

    def step(self, precision: str, what: str) -> Callable[[], float]:
        return by_hand(self.module(), self.batches(what), mixed=precision == "bf16")

    def run(self, variant: str, steps: int) -> tuple[list[float], list[float]]:
        precision, _, source = variant.partition(" ")
        if source != "trainer":
            return super().run(variant, steps)
        if variant not in self.trained:
            self.trained[variant] = self.module()
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
        trainer.fit(self.trained[variant], DataLoader(batches, batch_size=None))
        return [after - before for before, after in pairwise(clock.ends)], clock.losses[1:]


def by_hand(module: Any, batches: Iterator[dict[str, Tensor]], mixed: bool) -> Callable[[], float]:
    """All that Lightning does to train on a batch, by the module's own hooks; returns the loss."""
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

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))
        self.ends.append(time.perf_counter())
