"""Our side: `methods.pcl.module.MoCo` with the method's own config.

Variants: see `OurSide`.
"""

from typing import Any

import torch

from benchmarks.speed.serving import serve
from benchmarks.speed.stepping import OurSide


class OurMoCo(OurSide):
    def __init__(self, settings: dict[str, Any]):
        super().__init__(
            settings,
            [
                "method=pcl_moco",
                "backbone@method.backbone=resnet18_small",
                "name=speed",
                "trainer.max_epochs=1",
                f"method.projection={{hidden:null,dim:{settings['dim']},negative_slope:0.0}}",
                f"method.queue_size={settings['queue_size']}",
                f"method.key_momentum={settings['key_momentum']}",
                f"method.temperature={settings['temperature']}",
                f"method.lr={settings['lr']}",
                f"seed={settings['seed']}",
            ],
        )
        rows = settings["batch_size"]
        self.batch = {
            "query": torch.randn(rows, 3, 32, 32),
            "key": torch.randn(rows, 3, 32, 32),
            "labels": torch.zeros(rows, dtype=torch.long),
            "indices": torch.arange(rows),
        }


if __name__ == "__main__":
    serve(OurMoCo)
