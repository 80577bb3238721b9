"""The layers of a detector whose classes are texts: ResNet-C4 and the head that embeds regions.

Both are those of the Caffe models that Detectron starts from: the stride of a stage is that of its
first 1x1 convolution, and BatchNorm is an affine map whose statistics have the epsilon within.
Source: docs/papers/pb_ovd.md, section 4; maskrcnn-benchmark's `ResNet`.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from methods.pb_ovd.losses import text_logits

FrozenNorm = partial(FrozenBatchNorm2d, eps=0.0)
EXPANSION = Bottleneck.expansion


class Stage(nn.Sequential):
    """Bottlenecks of a ResNet: (B, inputs, H, W) to (B, outputs, H / stride, W / stride).

    Args:
        width: channels within a bottleneck.
    """

    def __init__(self, inputs: int, outputs: int, width: int, blocks: int, stride: int):
        planes = outputs // EXPANSION
        # Whose own width is base_width / 64 of its planes.
        shape = {"base_width": 64 * width // planes, "norm_layer": FrozenNorm}
        shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), FrozenNorm(outputs)
        )
        changed = stride > 1 or inputs != outputs
        first = Bottleneck(inputs, planes, stride, shortcut if changed else None, **shape)
        first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
        rest = [Bottleneck(outputs, planes, **shape) for _ in range(blocks - 1)]
        super().__init__(first, *rest)
        start(self)


class ResNetC4(nn.Module):
    """Stem and first three stages of a ResNet: images (B, 3, H, W) to one map of stride 16, of
    four times the channels of the first stage.

    Args:
        stem: channels of the first convolution.
        outputs, width: channels of the first stage and of its bottlenecks; each stage doubles both.
        blocks: of each stage.
        frozen_stages: the stem and as many stages less one that do not learn; 0: all learn.
    """

    strides = (16,)
    pooled_levels = 1

    def __init__(
        self,
        stem: int = 64,
        outputs: int = 256,
        width: int = 64,
        blocks: Sequence[int] = (3, 4, 6),
        frozen_stages: int = 2,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = FrozenNorm(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        first, second, third = blocks
        self.layer1 = Stage(stem, outputs, width, first, stride=1)
        self.layer2 = Stage(outputs, 2 * outputs, 2 * width, second, stride=2)
        self.layer3 = Stage(2 * outputs, 4 * outputs, 4 * width, third, stride=2)
        self.out_channels = 4 * outputs
        start(self)
        parts = [self.conv1, self.layer1, self.layer2, self.layer3]
        for part in parts[:frozen_stages]:
            part.requires_grad_(False)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return OrderedDict([("0", self.layer3(self.layer2(self.layer1(maps))))])


class RegionEmbedder(nn.Module):
    """Embeds regions where texts are embedded, and places them: (M, C, R, R) to (M, dim) and to
    deltas (M, 1, 4).

    Args:
        channels: C.
        outputs, width, blocks, stride: of a `Stage` that runs on each region, ResNet's fourth.
        dim: of the texts' embeddings.
        delta_stds: of the deltas, see `Geometry`.
        positive_iou: with an object, from which a region is trained to be one.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        width: int,
        blocks: int,
        stride: int,
        dim: int,
        delta_stds: Sequence[float],
        positive_iou: float,
    ):
        super().__init__()
        self.trunk = Stage(channels, outputs, width, blocks, stride)
        self.emb_pred = nn.Linear(outputs, dim)
        # Of background and object, as the official files have it; the former's is not used.
        self.bbox_pred = nn.Linear(outputs, 2 * 4)
        self.delta_stds, self.positive_iou = tuple(delta_stds), positive_iou
        for layer, std in ((self.emb_pred, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.predict(self.trunk(features))

    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings and deltas of what the trunk makes of regions, (M, outputs, R, R)."""
        pooled = features.mean(dim=(2, 3))
        return self.emb_pred(pooled).float(), self.deltas(pooled)[:, 1:]

    def deltas(self, pooled: Tensor) -> Tensor:
        """(M, 2, 4) of background and of an object."""
        return self.bbox_pred(pooled).float().unflatten(1, (2, 4))


class NamedRegions(RegionEmbedder):
    """A `RegionEmbedder` that says logits (M, K + 1) of K named classes instead of embeddings, for
    methods that know nothing of texts.

    Args:
        num_classes: K.
        dim: of the texts' embeddings.
        embedder: what else a `RegionEmbedder` takes.
    """

    texts: Tensor

    def __init__(self, num_classes: int, dim: int, **embedder: Any):
        super().__init__(dim=dim, **embedder)
        self.register_buffer("texts", torch.zeros(num_classes + 1, dim))

    def take_texts(self, texts: Tensor) -> None:
        """Classify by these embedded names (K + 1, D) from now on; ValueError of another shape."""
        if texts.shape != self.texts.shape:
            told = f"embedded names of shape {tuple(texts.shape)}, background first"
            raise ValueError(f"{told}, not {tuple(self.texts.shape)} as the box head expects")
        self.texts.copy_(texts)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        embedded, deltas = super().forward(features)
        return text_logits(embedded, self.texts), deltas


def start(module: nn.Module) -> None:
    """Draw the weights of convolutions as maskrcnn-benchmark does."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_uniform_(layer.weight, a=1)
