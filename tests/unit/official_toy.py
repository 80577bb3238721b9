"""Official networks for the tests of key tables: torchvision's names, tensors of any width.

Under `torch.device("meta")` they have the sizes of the papers and take no memory.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet50

NARROW = {"_target_": "shared.nn.resnet.ResNet", "base_width": 4}  # ResNet-50 of 128 features


def linear(name: str, outputs: int, inputs: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.randn(outputs, inputs), f"{name}.bias": torch.randn(outputs)}


def resnet50_state(backbone: nn.Module, **heads: tuple[int, int]) -> dict[str, Tensor]:
    """Random tensors under torchvision's names of a ResNet-50, as wide as our `backbone`.

    Args: heads: outputs and inputs of linear layers, a dot in the name written as two underscores.
    """
    ours = backbone.state_dict()
    with torch.device("meta"):
        names = [name for name in resnet50().state_dict() if not name.startswith("fc.")]
    assert set(names) == set(ours)
    state = {name: torch.randn_like(ours[name].float()).to(ours[name]) for name in names}
    for name, sizes in heads.items():
        state |= linear(name.replace("__", "."), *sizes)
    return state


def checkpoint(state: dict[str, Tensor], **more: Any) -> dict[str, Any]:
    """What PyTorch's ImageNet example saves, and the scripts that descend from it."""
    buffers = {0: {"momentum_buffer": torch.zeros(1)}}
    optimizer = {"state": buffers, "param_groups": [{"lr": 0.03, "params": [0]}]}
    return {"epoch": 90, "arch": "resnet50", "state_dict": state, "optimizer": optimizer, **more}
