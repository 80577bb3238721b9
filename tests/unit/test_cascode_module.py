"""What a training of CasCode asks of Lightning."""

from types import SimpleNamespace

import pytest
import torch

from methods.cascode.module import Fast

TEXT = {
    "vocab_size": 20,
    "hidden_size": 12,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 24,
    "max_positions": 12,
}


class Steps:
    """Of a trainer that must not be asked before it has restored a checkpoint."""

    asked = 0

    @property
    def estimated_stepping_batches(self) -> int:
        self.asked += 1
        return 4


def test_the_rate_falls_to_zero_and_the_loaders_are_left_alone() -> None:
    """Lightning builds the loaders to count steps; built before a checkpoint is restored, they
    would not get the positions in it, and a resumed run would begin its epoch anew."""
    module, trainer = Fast(text=TEXT, lr=0.5), Steps()
    module._trainer = trainer  # type: ignore[assignment]
    (optimizer,), (entry,) = module.configure_optimizers()
    assert trainer.asked == 0
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        entry["scheduler"].step()
    assert rates == pytest.approx([0.5, 0.375, 0.25, 0.125])
    assert optimizer.param_groups[0]["lr"] == 0
    assert entry["interval"] == "step"


def test_frozen_parameters_are_not_optimised() -> None:
    module = Fast(text=TEXT, frozen_layers=1)
    module._trainer = SimpleNamespace()  # type: ignore[assignment]
    (optimizer,), _ = module.configure_optimizers()
    (group,) = optimizer.param_groups
    expected = {id(p) for p in module.encoder.text.layers[1].parameters()}
    assert {id(p) for p in group["params"]} == expected
    assert all(isinstance(p, torch.nn.Parameter) for p in group["params"])
