"""The peer's side, in the peer's environment: `semilearn`'s CoMatch as its trainer steps it.

Nothing of ours is imported but the serving loop. `semilearn` is written for GPUs and imports its
audio and logging extras at once: empty modules stand in for those, and `.cuda` does nothing. Its
mixed precision is CUDA's; the bf16 variants give it the CPU's autocast in the same place.

Variants: "float32", "bf16", "float32 loading", "bf16 loading", as on our side.
"""

import pickle
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.speed.serving import serve, timed

STAND_INS = ("torchaudio", "wandb", "aim")
STEPS = 1_000_000


class PeerCoMatch:
    """Builds each variant when it is first asked for."""

    def __init__(self, settings: dict[str, Any]):
        torch.set_num_threads(settings["threads"])
        for name in STAND_INS:
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)
            sys.modules[name] = module
        torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]

        import torchvision

        torchvision.datasets.CIFAR10 = partial(GeneratedCifar10, settings["data"])
        self.settings = settings
        self.batch = next(iter(self._algorithm("float32")[1]))
        self.steps: dict[str, Callable[[], float]] = {}

    def describe(self) -> dict[str, Any]:
        algorithm, _ = self._algorithm("float32")
        return {
            "parameters": sum(p.numel() for p in algorithm.model.parameters()),
            "images_per_step": sum(len(v) for v in self.batch.values() if v.ndim == 4),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def run(self, variant: str, steps: int) -> tuple[list[float], list[float]]:
        precision, _, source = variant.partition(" ")
        if variant not in self.steps:
            algorithm, loaded = self._algorithm(precision)
            batches = loaded if source == "loading" else iter(lambda: self.batch, None)
            self.steps[variant] = partial(self._step, algorithm, batches)
        return timed(self.steps[variant], steps)

    @staticmethod
    def _step(algorithm: Any, batches: Iterator[dict[str, Tensor]]) -> float:
        """What `AlgorithmBase.train` does with a batch, less timers, logging and evaluation."""
        data = algorithm.process_batch(**next(batches))
        algorithm.out_dict, algorithm.log_dict = algorithm.train_step(**data)
        algorithm.call_hook("after_train_step", "ParamUpdateHook")
        algorithm.call_hook("after_train_step", "EMAHook")
        algorithm.it += 1
        return algorithm.log_dict["train/total_loss"]

    def _algorithm(self, precision: str) -> tuple[Any, Iterator[dict[str, Tensor]]]:
        from semilearn import get_algorithm, get_config, get_net_builder

        # Published configuration of CoMatch on CIFAR-10, as far as the step depends on it.
        config = get_config(
            {
                "algorithm": "comatch",
                "net": "wrn_28_2",
                "dataset": "cifar10",
                "num_classes": 10,
                "num_labels": self.settings["num_labels"],
                "batch_size": self.settings["batch_size"],
                "uratio": self.settings["mu"],
                "epoch": 1,
                "num_train_iter": STEPS,
                "proj_size": 64,
                "queue_batch": 5,
                "T": 0.2,
                "p_cutoff": 0.95,
                "contrast_p_cutoff": 0.8,
                "smoothing_alpha": 0.9,
                "da_len": 32,
                "hard_label": False,
                "num_workers": 0,
                "seed": self.settings["seed"],
            }
        )
        config.distributed, config.rank, config.world_size = False, 0, 1
        config.lb_dest_len = config.ulb_dest_len = None
        algorithm = get_algorithm(config, get_net_builder("wrn_28_2", False), None, None)
        algorithm.epoch, algorithm.it = 1, 6  # memory smoothing is on, as in mid-run
        algorithm.model.train()
        algorithm.call_hook("before_run", "EMAHook")
        if precision == "bf16":
            algorithm.amp_cm = partial(torch.autocast, "cpu", torch.bfloat16)
        return algorithm, self._loaded(algorithm.loader_dict)

    @staticmethod
    def _loaded(loaders: dict[str, Any]) -> Iterator[dict[str, Tensor]]:
        for labelled, unlabelled in zip(loaders["train_lb"], loaders["train_ulb"], strict=False):
            yield {**labelled, **unlabelled}


class GeneratedCifar10:
    """Stands in for torchvision's CIFAR10, whose checksums refuse generated images."""

    def __init__(self, root: str, _folder: str, train: bool, download: bool):
        names = [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]
        folder = Path(root) / "cifar-10-batches-py"
        parts = [pickle.loads((folder / name).read_bytes()) for name in names]
        pixels = np.concatenate([part["data"] for part in parts])
        self.data = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        self.targets = [label for part in parts for label in part["labels"]]


if __name__ == "__main__":
    serve(PeerCoMatch)
