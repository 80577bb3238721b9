"""The peer's side, in the peer's environment: MoCo from `lightly`'s public components.

Nothing of ours is imported but the serving loop.
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.serving import Workload


class Peer(Workload):
    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        self.query, self.key = torch.randn(2, settings["batch_size"], 3, 32, 32)
        self.rows = 2 * settings["batch_size"]

    def parameters(self) -> Iterable[Tensor]:
        return self.network().parameters()

    def network(self) -> nn.Module:
        from lightly.models import ResNetGenerator
        from lightly.models.modules import MoCoProjectionHead

        backbone = ResNetGenerator("resnet-18")
        width = backbone.linear.in_features
        backbone.linear = nn.Identity()
        return nn.Sequential(backbone, MoCoProjectionHead(width, width, self.settings["dim"]))

    def step(self, precision: str, what: str) -> Callable[[], float]:
        from lightly.loss import NTXentLoss
        from lightly.models.utils import deactivate_requires_grad, update_momentum

        settings = self.settings
        network = self.network().train()
        momentum_network = deepcopy(network)
        deactivate_requires_grad(momentum_network)
        criterion = NTXentLoss(
            temperature=settings["temperature"],
            memory_bank_size=(settings["queue_size"], settings["dim"]),
        )
        optimizer = torch.optim.SGD(
            network.parameters(), lr=settings["lr"], momentum=0.9, weight_decay=1e-4
        )

        def step() -> float:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                update_momentum(network, momentum_network, m=settings["key_momentum"])
                query = network(self.query)
                with torch.no_grad():
                    key = momentum_network(self.key)
                loss = criterion(query, key)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return step
