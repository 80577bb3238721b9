"""The peer's side, in the peer's environment: MoCo from `lightly`'s public components.

Nothing of ours is imported but the serving loop. Variants: "float32", "bf16".
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.serving import serve, timed


class PeerMoCo:
    """Builds each variant when it is first asked for."""

    def __init__(self, settings: dict[str, Any]):
        torch.set_num_threads(settings["threads"])
        torch.manual_seed(settings["seed"])
        self.settings = settings
        rows = settings["batch_size"]
        self.query, self.key = torch.randn(rows, 3, 32, 32), torch.randn(rows, 3, 32, 32)
        self.steps: dict[str, Callable[[], float]] = {}

    def describe(self) -> dict[str, Any]:
        return {
            "parameters": sum(p.numel() for p in self._network().parameters()),
            "images_per_step": len(self.query) + len(self.key),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def run(self, variant: str, steps: int) -> tuple[list[float], list[float]]:
        if variant not in self.steps:
            self.steps[variant] = self._step(mixed=variant == "bf16")
        return timed(self.steps[variant], steps)

    def _network(self) -> nn.Module:
        from lightly.models import ResNetGenerator
        from lightly.models.modules import MoCoProjectionHead

        backbone = ResNetGenerator("resnet-18")
        width = backbone.linear.in_features
        backbone.linear = nn.Identity()
        return nn.Sequential(backbone, MoCoProjectionHead(width, width, self.settings["dim"]))

    def _step(self, mixed: bool) -> Callable[[], float]:
        from lightly.loss import NTXentLoss
        from lightly.models.utils import deactivate_requires_grad, update_momentum

        settings = self.settings
        network = self._network().train()
        momentum_network = deepcopy(network)
        deactivate_requires_grad(momentum_network)
        criterion = NTXentLoss(
            temperature=settings["temperature"],
            memory_bank_size=(settings["queue_size"], settings["dim"]),
        )
        optimizer = torch.optim.SGD(
            network.parameters(), lr=settings["lr"], momentum=0.9, weight_decay=1e-4
        )

        def training_step() -> Tensor:
            update_momentum(network, momentum_network, m=settings["key_momentum"])
            query = network(self.query)
            with torch.no_grad():
                key = momentum_network(self.key)
            return criterion(query, key)

        def step() -> float:
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                loss = training_step()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return step


if __name__ == "__main__":
    serve(PeerMoCo)
