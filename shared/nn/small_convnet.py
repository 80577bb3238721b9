"""A small strided network for miniatures on a CPU."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


class SmallConvNet(nn.Module):
    """Blocks of strided 3x3 conv, BN, leaky ReLU: (N, in_channels, H, W) -> (N, channels[-1])."""

    def __init__(self, channels: Sequence[int] = (32, 64, 128), in_channels=1, bn_momentum=0.1):
        super().__init__()
        widths = [in_channels, *channels]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
            for before, after in pairwise(widths)
        )
        # The attribute says "bn" because weight decay is switched off by name, as in the papers.
        self.bns = nn.ModuleList(nn.BatchNorm2d(c, momentum=bn_momentum) for c in channels)
        self.num_features = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        for conv, bn in zip(self.convs, self.bns, strict=True):
            x = F.leaky_relu(bn(conv(x)), 0.1, inplace=True)
        return x.mean(dim=(2, 3))
