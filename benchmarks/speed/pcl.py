"""Our MoCo, PCL's first half: `methods.pcl.module.MoCo` with the method's own config."""

from typing import Any

import torch

from benchmarks.speed.stepping import OurSide


class Ours(OurSide):
    def __init__(self, settings: dict[str, Any]):
        names = ("queue_size", "key_momentum", "temperature", "lr")
        projection = f"{{hidden:null,dim:{settings['dim']},negative_slope:0.0}}"
        network = ["backbone@method.backbone=resnet18_small", f"method.projection={projection}"]
        overrides = [f"method.{name}={settings[name]}" for name in names]
        super().__init__(
            settings, ["method=pcl_moco", "trainer.max_epochs=1", *network, *overrides]
        )
        rows = settings["batch_size"]
        self.batch = {
            "query": torch.randn(rows, 3, 32, 32),
            "key": torch.randn(rows, 3, 32, 32),
            "labels": torch.zeros(rows, dtype=torch.long),
            "indices": torch.arange(rows),
        }
        self.rows = 2 * rows
