"""ResNet for ImageNet-like pictures with a width multiplier (blocks from torchvision).

Differs from `torchvision.models.resnet` where CoMatch's and SimCLR's networks do: the multiplier
widens every stage, outputs included, but not the stem. State-dict keys equal torchvision's.
"""

from collections.abc import Sequence
from math import sqrt

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(nn.Module):
    """(N, in_channels, H, W) -> (N, 8 * base_width * width * expansion) globally pooled features.

    The stride sits in the 3x3 convolution of a bottleneck ("v1.5"). ResNet-50 is the default;
    ResNet-18 is `block="basic", layers=(2, 2, 2, 2)`.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        block: str = "bottleneck",
        layers: Sequence[int] = (3, 4, 6, 3),
        width: int = 1,
        base_width: int = 64,
        in_channels: int = 3,
    ):
        super().__init__()
        if block not in BLOCKS:
            raise ValueError(f"ResNet block must be one of {sorted(BLOCKS)}, got {block!r}")
        block_class = BLOCKS[block]
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = 64
        for stage, depth in enumerate(layers):
            planes = base_width * width * 2**stage
            out_channels = planes * block_class.expansion
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                downsample = None
                if stride != 1 or channels != out_channels:
                    downsample = nn.Sequential(
                        nn.Conv2d(channels, out_channels, 1, stride, bias=False),
                        nn.BatchNorm2d(out_channels),
                    )
                blocks.append(block_class(channels, planes, stride, downsample))
                channels = out_channels
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.num_features = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
                nn.init.normal_(module.weight, std=sqrt(2 / fan_out))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean(dim=(2, 3))
