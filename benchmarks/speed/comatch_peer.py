"""The peer's side, in the peer's environment: `semilearn`'s CoMatch as its trainer steps it.

Nothing of ours is imported but the serving loop. `semilearn` is written for GPUs and imports its
audio and logging extras at once: empty modules stand in for those, and `.cuda` does nothing. Its
mixed precision is CUDA's; the bf16 variants give it the CPU's autocast in the same place.
"""

import pickle
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.speed.serving import Workload

STAND_INS = ("torchaudio", "wandb", "aim")
STEPS = 1_000_000


class Peer(Workload):
    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        for name in STAND_INS:
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)
            sys.modules[name] = module
        torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]

        import torchvision

        torchvision.datasets.CIFAR10 = partial(GeneratedCifar10, settings["data"])
        self.batch = next(iter(self._algorithm("float32")[1]))
        self.rows = sum(len(v) for v in self.batch.values() if v.ndim == 4)

    def parameters(self) -> Iterable[Tensor]:
        return self._algorithm("float32")[0].model.parameters()

    def step(self, precision: str, what: str) -> Callable[[], float]:
        algorithm, loaded = self._algorithm(precision)
        batches = loaded if what == "loading" else iter(lambda: self.batch, None)

        def step() -> float:
            """What `AlgorithmBase.train` does with a batch, less timers, logging and evaluation."""
            data = algorithm.process_batch(**next(batches))
            algorithm.out_dict, algorithm.log_dict = algorithm.train_step(**data)
            algorithm.call_hook("after_train_step", "ParamUpdateHook")
            algorithm.call_hook("after_train_step", "EMAHook")
            algorithm.it += 1
            return algorithm.log_dict["train/total_loss"]

        return step

    def _algorithm(self, precision: str) -> tuple[Any, Iterator[dict[str, Tensor]]]:
        from semilearn import get_algorithm, get_config, get_net_builder

        settings = self.settings
        # The rest is the published configuration of CoMatch on CIFAR-10.
        chosen = {"num_labels": settings["num_labels"], "batch_size": settings["batch_size"]}
        chosen |= {"uratio": settings["mu"], "seed": settings["seed"], "num_train_iter": STEPS}
        config = get_config(settings["semilearn"] | chosen)
        config.distributed, config.rank, config.world_size = False, 0, 1
        config.lb_dest_len = config.ulb_dest_len = None
        algorithm = get_algorithm(config, get_net_builder("wrn_28_2", False), None, None)
        algorithm.epoch, algorithm.it = 1, 6  # memory smoothing is on, as in mid-run
        algorithm.model.train()
        algorithm.call_hook("before_run", "EMAHook")
        if precision == "bf16":
            algorithm.amp_cm = partial(torch.autocast, "cpu", torch.bfloat16)
        return algorithm, self._loaded(**algorithm.loader_dict)

    @staticmethod
    def _loaded(train_lb: Any, train_ulb: Any, **_: Any) -> Iterator[dict[str, Tensor]]:
        for labelled, unlabelled in zip(train_lb, train_ulb, strict=False):
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
