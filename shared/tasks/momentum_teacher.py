"""Momentum distillation: the moving average of a network softens what the network learns from.

Source: docs/papers/albef.md, sections 3.1 (items 4 to 6) and 3.4.
"""

from torch import nn

from shared.nn.momentum import MomentumEncoder
from shared.training.lightning_internals import trainer_of
from shared.training.method import Method


class MomentumTeacher(MomentumEncoder):
    """A momentum copy, `module`, and the weight alpha of its predictions; 0 trains without them.
    With `ramp` alpha rises linearly from 0 in the course of epoch 0, or of so many epochs."""

    def __init__(self, network: nn.Module, momentum: float, alpha: float, ramp: bool | int):
        super().__init__(network, buffers="keep")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha} is no weight between 0 and 1")
        self.momentum, self.alpha, self.ramp = momentum, alpha, ramp

    def follow(self, network: nn.Module) -> None:
        """Take the moving average, within the forward pass, before the optimiser's step."""
        self.update(network, self.momentum)

    def weight(self, method: Method, batch_idx: int) -> float:
        """alpha in this step of `method`; outside a Trainer there is no ramp."""
        if trainer_of(method) is None or not self.ramp or method.current_epoch >= self.ramp:
            return self.alpha
        epochs = method.current_epoch + batch_idx / method.trainer.num_training_batches
        return self.alpha * min(1.0, epochs / self.ramp)
