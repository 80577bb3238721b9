"""Our CoMatch: the CIFAR-10 experiment's own config, module and data, on made-up images.

The variants of "loading" take the batches from the data module.
"""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from torch import Tensor

from benchmarks.speed.stepping import OurSide
from shared.nn.building import build


class Ours(OurSide):
    """CoMatch in mid-run: memory smoothing is on."""

    def __init__(self, settings: dict[str, Any]):
        of_data = {name: settings[name] for name in ("batch_size", "mu", "num_labels")}
        of_data |= {"num_workers": 0, "dataset.root": settings["data"]}
        overrides = [f"data.{name}={value}" for name, value in of_data.items()]
        super().__init__(settings, ["experiment=comatch/cifar10_base", *overrides])
        self.data = build(self.config.data, pl.LightningDataModule)
        self.data.setup("fit")
        self.batch = next(iter(self.data.train_dataloader()))
        self.rows = sum(len(v) for v in self.batch.values() if v.ndim == 4)

    def module(self) -> Any:
        module = super().module()
        module.bank.written.fill_(len(module.bank) + 1)
        return module

    def batches(self, source: str) -> Iterator[dict[str, Tensor]]:
        if source == "loading":
            while True:
                yield from self.data.train_dataloader()
        yield from super().batches(source)


def make_data(root: Path, settings: dict[str, Any], images_per_file: int = 1000) -> None:
    """Write random images in CIFAR-10's format below `root`, for both sides."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels = random.integers(0, 256, (images_per_file, 3 * 32 * 32), dtype=np.uint8)
        labels = [i % 10 for i in range(images_per_file)]
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels}))
    names = [f"class {i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
