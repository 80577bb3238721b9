"""ResNet and ResNeXt with a width multiplier and a choice of stems (blocks from torchvision).

Differs from `torchvision.models.resnet` where CoMatch's, MoPro's and SimCLR's networks do: the
multiplier widens every stage, outputs included, but not the stem. State-dict keys and the
distribution of the initial weights equal torchvision's.
"""

from collections.abc import Sequence
from math import sqrt
from typing import Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(nn.Module):
    """(N, in_channels, H, W) -> (N, num_features) globally pooled features.

    The stride sits in the 3x3 convolution of a bottleneck ("v1.5"). ResNet-50 is the default;
    ResNet-18 is `block="basic", layers=(2, 2, 2, 2)`, ResNeXt-50 32x4d the default with
    `groups=32, width_per_group=4`.

    Args:
        layers: blocks of each stage; as many stages as entries.
        width, base_width: stage s has base_width * width * 2^s * expansion output channels, with
            an expansion of 1 ("basic") or 4 ("bottleneck").
        stem: "imagenet", a 7x7 convolution of stride 2 and a 3x3 max-pool of stride 2, or "small",
            a 3x3 convolution of stride 1 for pictures of 32 pixels or so.
        strides: of the first block of each stage; null is 1, 2, 2, ...
    """

    def __init__(
        self,
        block: str = "bottleneck",
        layers: Sequence[int] = (3, 4, 6, 3),
        width: int = 1,
        base_width: int = 64,
        in_channels: int = 3,
        stem: Literal["imagenet", "small"] = "imagenet",
        stem_channels: int = 64,
        strides: Sequence[int] | None = None,
        groups: int = 1,
        width_per_group: int = 64,
    ):
        super().__init__()
        if block not in BLOCKS:
            raise ValueError(f"ResNet block must be one of {sorted(BLOCKS)}, got {block!r}")
        if stem not in ("imagenet", "small"):
            raise ValueError(f'ResNet stem must be "imagenet" or "small", got {stem!r}')
        strides = strides or [1, *[2] * (len(layers) - 1)]
        if len(strides) != len(layers):
            raise ValueError(f"ResNet has {len(layers)} stages but {len(strides)} strides")
        block_class = BLOCKS[block]
        self.stages = len(layers)
        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = nn.Conv2d(
            in_channels, stem_channels, kernel, stride, padding=kernel // 2, bias=False
        )
        self.bn1 = nn.BatchNorm2d(stem_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity()
        channels = stem_channels
        for stage, depth in enumerate(layers):
            planes = base_width * width * 2**stage
            out_channels = planes * block_class.expansion
            blocks = []
            for index in range(depth):
                stride = strides[stage] if index == 0 else 1
                downsample = None
                if stride != 1 or channels != out_channels:
                    downsample = nn.Sequential(
                        nn.Conv2d(channels, out_channels, 1, stride, bias=False),
                        nn.BatchNorm2d(out_channels),
                    )
                blocks.append(
                    block_class(channels, planes, stride, downsample, groups, width_per_group)
                )
                channels = out_channels
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.num_features = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
                nn.init.normal_(module.weight, std=sqrt(2 / fan_out))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return x.mean(dim=(2, 3))
