"""Our side: the CIFAR-10 experiment's own config, module and data, stepped by hand or by Lightning.

Variants: a precision, "float32" or "bf16", and where the batches come from: nothing (one batch,
used again and again), "loading" (the data module) or "trainer" (one batch, in Lightning's loop).
"""

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.speed.serving import serve, timed
from shared.training.allocator import keep_freed_memory
from shared.training.callbacks import FiniteGradients, Throughput

CONF = Path(__file__).resolve().parents[2] / "conf"


class OurCoMatch:
    """Builds each variant when it is first asked for."""

    def __init__(self, settings: dict[str, Any]):
        torch.set_num_threads(settings["threads"])
        keep_freed_memory()
        pl.seed_everything(settings["seed"], verbose=False)
        overrides = [
            "experiment=comatch/cifar10_40",
            "trainer=cpu",
            "output_dir=.",
            "data.num_workers=0",
            f"data.dataset.root={settings['data']}",
            f"data.batch_size={settings['batch_size']}",
            f"data.mu={settings['mu']}",
            f"data.num_labels={settings['num_labels']}",
        ]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            self.config = compose("config", overrides)
        self.data = self._instantiate("data")
        self.data.setup("fit")
        self.batch = next(iter(self.data.train_dataloader()))
        self.steps: dict[str, Callable[[], float]] = {}
        self.trained: dict[str, pl.LightningModule] = {}

    def describe(self) -> dict[str, Any]:
        module = self._instantiate("method")
        return {
            "parameters": sum(p.numel() for p in module.encoder.parameters()),
            "images_per_step": sum(len(v) for v in self.batch.values() if v.ndim == 4),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def run(self, variant: str, steps: int) -> tuple[list[float], list[float]]:
        precision, _, source = variant.partition(" ")
        if source == "trainer":
            if variant not in self.trained:
                self.trained[variant] = self._module()
            return self._fit(self.trained[variant], precision, steps)
        if variant not in self.steps:
            batches = self._loaded() if source == "loading" else iter(lambda: self.batch, None)
            self.steps[variant] = self._step(batches, mixed=precision == "bf16")
        return timed(self.steps[variant], steps)

    def _module(self) -> Any:
        module = self._instantiate("method").train()
        module.bank.written.fill_(len(module.bank) + 1)  # memory smoothing is on, as in mid-run
        return module

    def _step(self, batches: Iterator[dict[str, Tensor]], mixed: bool) -> Callable[[], float]:
        """All that Lightning does to train on a batch, through the module's own hooks."""
        module = self._module()
        (optimizer,), (schedule,) = module.configure_optimizers()

        def step() -> float:
            batch = next(batches)

            def closure() -> Tensor:
                with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                    loss = module.training_step(batch, 0)
                optimizer.zero_grad()
                loss.backward()
                return loss

            losses: list[Tensor] = []
            module.optimizer_step(0, 0, optimizer, lambda: losses.append(closure()))
            schedule["scheduler"].step()
            return float(losses[0])

        return step

    def _fit(
        self, module: pl.LightningModule, precision: str, steps: int
    ) -> tuple[list[float], list[float]]:
        """The steps between the ends of `steps` + 1 batches in Lightning's loop."""
        clock = Clock()
        trainer = instantiate(
            self.config.trainer,
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

    def _loaded(self) -> Iterator[dict[str, Tensor]]:
        while True:
            yield from self.data.train_dataloader()

    def _instantiate(self, key: str) -> Any:
        config = OmegaConf.to_container(self.config[key], resolve=True)
        return instantiate(config, _recursive_=False, _convert_="all")


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


if __name__ == "__main__":
    serve(OurCoMatch)
