"""ResNet for 32-pixel pictures (He et al., 2016, section 4.2), as the long-tail literature uses it.

Its shortcuts have no parameters ("option A"): where a stage narrows the map, the shortcut takes
every second pixel and fills the new channels with zeros.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock


class PaddedSubsampling(nn.Module):
    """(N, C, H, W) -> (N, out_channels, H/2, W/2): every second pixel, zeros on both sides of C."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.padding = (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))


class CifarResNet(nn.Module):
    """(N, in_channels, H, W) -> (N, 64); `depth` 6n + 2 in stages of 16, 32 and 64 channels."""

    def __init__(self, depth: int = 32, in_channels: int = 3):
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"CifarResNet depth must be 6n + 2 (8, 14, 20, 32, ...), got {depth}")
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        channels = 16
        for stage, planes in enumerate((16, 32, 64), start=1):
            blocks: list[nn.Module] = []
            for _ in range((depth - 2) // 6):
                shortcut = PaddedSubsampling(channels, planes) if channels != planes else None
                blocks.append(BasicBlock(channels, planes, 2 if shortcut else 1, shortcut))
                channels = planes
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.num_features = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.bn1(self.conv1(x)))
        for stage in (1, 2, 3):
            x = self.get_submodule(f"layer{stage}")(x)
        return x.mean(dim=(2, 3))
