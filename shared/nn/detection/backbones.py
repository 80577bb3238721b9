"""Networks from images to feature maps of one or several levels."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from shared.nn.vision_transformer import residual_stem


def keep_statistics(network: nn.Module) -> None:
    """Let BatchNorm use the statistics that it has, also in training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


class ResNetFPN(BackboneWithFPN):
    """A ResNet of torchvision's layout and a feature pyramid: (B, 3, H, W) to five maps with 256
    channels, strides 4, 8, 16, 32 and 64, of which regions use the first four.

    BatchNorm always keeps its statistics, but its weights learn where the layer does.

    Args:
        depth: 18, 34, 50, 101 or 152.
        frozen_stages: the stem and as many stages less one that do not learn; 0: all learn.
    """

    strides = (4, 8, 16, 32, 64)
    pooled_levels = 4

    def __init__(self, depth: int = 50, frozen_stages: int = 2, width: int = 256):
        if depth not in (18, 34, 50, 101, 152):
            raise ValueError(f"ResNetFPN has depth 18, 34, 50, 101 or 152, not {depth}")
        body = getattr(resnet, f"resnet{depth}")()
        stages = [f"layer{stage}" for stage in range(1, 5)]
        for name in ["conv1", "bn1", *stages][: frozen_stages + 1] if frozen_stages else []:
            getattr(body, name).requires_grad_(False)
        channels = [body.inplanes // 2**level for level in (3, 2, 1, 0)]
        levels = {stage: str(level) for level, stage in enumerate(stages)}
        super().__init__(body, levels, channels, width, LastLevelMaxPool())

    def train(self, mode: bool = True) -> "ResNetFPN":
        super().train(mode)
        keep_statistics(self.body)
        return self


class StemBackbone(nn.Module):
    """The stem of the zoo's vision transformer, see `residual_stem`: (B, 3, H, W) to one map of
    channels[-1]. BatchNorm keeps its statistics, so that training needs weights to start from.

    Args:
        frozen: the network does not learn.
    """

    pooled_levels = 1

    def __init__(self, cell: int = 4, channels: Sequence[int] = (64, 128), frozen: bool = False):
        super().__init__()
        self.stem = residual_stem(cell, channels)
        self.stem.requires_grad_(not frozen)
        self.strides = (cell * 2 ** (len(channels) - 1),)
        self.out_channels = channels[-1]

    def train(self, mode: bool = True) -> "StemBackbone":
        super().train(mode)
        keep_statistics(self)
        return self

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict([("0", self.stem(images))])


class SmallBackbone(nn.Module):
    """Four blocks of 3x3 convolution, BatchNorm and ReLU, of which the first two halve the image:
    (B, 3, H, W) to one map (B, channels[-1], H / 4, W / 4)."""

    strides = (4,)
    pooled_levels = 1

    def __init__(self, channels: Sequence[int] = (24, 48, 48, 48)):
        super().__init__()
        blocks = []
        for place, (before, after) in enumerate(pairwise([3, *channels])):
            stride = 2 if place < 2 else 1
            convolution = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
            blocks += [convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*blocks)
        self.out_channels = channels[-1]

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict([("0", self.body(images))])
