"""Pre-activation Wide ResNet of the semi-supervised literature (Zagoruyko & Komodakis, 2016).

Details follow CoMatch's `WideResNet.py`: leaky ReLU of slope 0.1, no dropout, and only the first
block of the first stage takes its shortcut from the activated input.

Shapes: N images, H x W pixels, w = width multiplier.
"""

from math import sqrt

from torch import Tensor, nn
from torch.nn import functional as F

LEAKY_SLOPE = 0.1


class PreActivationBlock(nn.Module):
    """BN-LReLU-conv, BN-LReLU-conv, plus a shortcut of the input, activated or not."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, activate_shortcut: bool, momentum: float
    ):
        super().__init__()
        self.activate_shortcut = activate_shortcut
        self.bn1 = nn.BatchNorm2d(inputs, momentum=momentum)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, momentum=momentum)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.downsample: nn.Module | None = None
        if inputs != outputs or stride != 1:
            self.downsample = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.leaky_relu(self.bn1(x), LEAKY_SLOPE, inplace=True)
        residual = self.conv1(activated)
        residual = self.conv2(F.leaky_relu(self.bn2(residual), LEAKY_SLOPE, inplace=True))
        shortcut = activated if self.activate_shortcut else x
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        return residual.add_(shortcut)  # in place: no backward reads the convolution's output


class WideResNet(nn.Module):
    """WRN-depth-width, depth 6n + 4: (N, in_channels, H, W) -> (N, 64 * width) pooled features. The
    official BatchNorm momentum needs tens of thousands of iterations; short runs set 0.1."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(
        self, depth: int = 28, width: int = 2, in_channels: int = 3, bn_momentum: float = 0.001
    ):
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"WideResNet depth must be 6n + 4 (10, 16, 22, 28, ...), got {depth}")
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        channels = 16
        for stage, stride in enumerate((1, 2, 2), start=1):
            planes, stack = 16 * width * 2 ** (stage - 1), nn.Sequential()
            for block in range((depth - 4) // 6):
                stack.append(
                    PreActivationBlock(
                        *(channels, planes, stride if block == 0 else 1),
                        activate_shortcut=stage == 1 and block == 0,
                        momentum=bn_momentum,
                    )
                )
                channels = planes
            self.add_module(f"layer{stage}", stack)
        self.num_features = channels
        self.bn_last = nn.BatchNorm2d(channels, momentum=bn_momentum)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
                nn.init.normal_(module.weight, std=sqrt(2 / fan_in))

    def feature_maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps after stage 2, (N, 32w, H/2, W/2), and after stage 3, last BN and activation,
        (N, 64w, H/4, W/4)."""
        stage2 = self.layer2(self.layer1(self.conv1(x)))
        last = F.leaky_relu(self.bn_last(self.layer3(stage2)), LEAKY_SLOPE, inplace=True)
        return stage2, last

    def forward(self, x: Tensor) -> Tensor:
        return self.feature_maps(x)[1].mean(dim=(2, 3))
