"""Pictures and their objects as a detector is handed them: resized, mirrored and padded."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from shared.data.detection.batch import DetectionBatch, Target
from shared.data.detection.sampling import Plan
from shared.data.errors import DataCorruptError, DataNotFoundError
from shared.data.images import Pixels, read_image
from shared.data.readers.files import not_found, one_line
from shared.data.readers.instances import Instances
from shared.data.readers.outlines import mask_tools
from shared.randomness import key_uniforms, sample_keys

Pixel = tuple[float, float, float]


@dataclass(frozen=True)
class Resizing:
    """The shorter side becomes one of `short` px, drawn anew for each image, unless the longer one
    would exceed `long` px; with `between` any whole number from `short[0]` to `short[1]`. Sides are
    rounded as mmcv rounds, with `detectron` as maskrcnn-benchmark's `Resize`."""

    short: Sequence[int]
    long: int
    between: bool = False
    detectron: bool = False

    def __post_init__(self) -> None:
        if not self.short or min(self.short) < 1 or self.long < 1:
            raise ValueError(f"resizing to sides of {list(self.short)} and {self.long} px: give px")
        if self.between and (len(self.short) != 2 or self.short[0] > self.short[1]):
            raise ValueError(
                f"short={list(self.short)}: between two numbers, the smaller one first"
            )

    def size(self, height: int, width: int, draw: float) -> tuple[int, int]:
        """The new height and width, given a random number in [0, 1)."""
        choices = range(self.short[0], self.short[1] + 1) if self.between else self.short
        short = choices[int(draw * len(choices))]
        if self.detectron:
            least, most = min(height, width), max(height, width)
            if most / least * short > self.long:
                short = round(self.long * least / most)
            sides = (short if side == least else short * side // least for side in (height, width))
            new_height, new_width = (max(1, int(side)) for side in sides)
            return new_height, new_width
        scale = min(self.long / max(height, width), short / min(height, width))
        # As mmcv rounds; never to nothing, where a side is a thousandth of the other.
        new_height, new_width = (max(1, int(side * scale + 0.5)) for side in (height, width))
        return new_height, new_width


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes an input.

    Attributes:
        mean, std: of the three channels, for values from 0 to 1.
        size_divisor: the padded sides of a batch are multiples of it.
        inclusive_corners: a box that ends with pixel x has x2 = x, as in detectors of before 2020,
            and not x2 = x + 1.
        detectron: pictures are blue first, as `mean` and `std` then are, and resized by Pillow,
            whose filter spans all pixels that become one; boxes are not clipped again thereafter.
        masks: whether targets have `masks`.
        cache: keep every decoded picture in memory, in each process those that it reads.
    """

    mean: Pixel
    std: Pixel
    size_divisor: int = 32
    inclusive_corners: bool = False
    masks: bool = False
    cache: bool = False
    detectron: bool = False


class DetectionSamples:
    """Batches of a set's `members` (sorted places of images), from plans or from mere positions.

    A plan's draws choose the random numbers of an image, so that an image drawn twice is resized
    and mirrored in two ways; positions are neither.
    """

    def __init__(
        self,
        instances: Instances,
        members: NDArray[np.int64],
        resizing: Resizing,
        preparation: Preparation,
        flip: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.instances, self.members = instances, members
        self.resizing, self.preparation = resizing, preparation
        self.flip, self.seed = flip, seed
        self._cache: dict[int, Pixels] = {}

    def __len__(self) -> int:
        return len(self.members)

    def __getitems__(self, plan: Plan | NDArray[np.int64]) -> DetectionBatch:
        if isinstance(plan, Plan):
            images = self.members[plan.draws.positions]
            keys = sample_keys(self.seed, plan.draws.passes, images, "detection")
            mirrored, draws = key_uniforms(keys, 2).T
            classes = None if plan.classes is None else torch.from_numpy(plan.classes)
        else:
            images, classes = self.members[plan], None
            mirrored, draws = np.ones(len(images)), np.zeros(len(images))
        rows = [
            self._sample(int(image), mirror < self.flip, draw)
            for image, mirror, draw in zip(images, mirrored, draws, strict=True)
        ]
        pictures = [picture for picture, _ in rows]
        return DetectionBatch(
            images=padded(pictures, self.preparation.size_divisor),
            sizes=torch.tensor([picture.shape[1:] for picture in pictures]),
            original_sizes=torch.from_numpy(self.instances.sizes[images]),
            image_ids=torch.from_numpy(self.instances.image_ids[images]),
            indices=torch.from_numpy(images),
            targets=[target for _, target in rows],
            sampled_classes=classes,
        )

    def _sample(self, image: int, mirror: bool, draw: float) -> tuple[Tensor, Target]:
        """The (3, h, w) picture, normalised, and what it shows."""
        size = self.resizing.size(*self.instances.size(image), draw)
        picture = as_input(self._pixels(image), size, self.preparation)
        target = self._target(image, size)
        return (picture.flip(2), self._mirrored(target, size[1])) if mirror else (picture, target)

    def _pixels(self, image: int) -> Pixels:
        if image in self._cache:
            return self._cache[image]
        path = os.fsdecode(self.instances.paths[image])
        try:
            pixels = read_image(path)
        except FileNotFoundError:
            raise DataNotFoundError(not_found(Path(path))) from None
        except (OSError, DataCorruptError) as error:
            raise DataCorruptError(f"{path}: unreadable image ({one_line(error)})") from error
        if pixels.shape[:2] != self.instances.size(image):
            named = f"{self.instances.origin} says {self.instances.size(image)}"
            raise DataCorruptError(f"{path}: height and width {pixels.shape[:2]}, but {named}")
        if self.preparation.cache:
            self._cache[image] = pixels
        return pixels

    def _target(self, image: int, size: tuple[int, int]) -> Target:
        found, of_image = self.instances, self.instances.of_image(image)
        height, width = size
        before = found.size(image)
        scale = np.array([width / before[1], height / before[0]] * 2)
        last = int(self.preparation.inclusive_corners)
        corners = (found.corners[of_image] - [0, 0, last, last]) * scale
        if not self.preparation.detectron:
            corners = corners.clip(0, np.array([width, height] * 2) - last)
        boxes = torch.from_numpy(corners.astype(np.float32))
        usable = found.usable[of_image]
        crowd = found.crowd[of_image]
        target = {
            "boxes": boxes[usable],
            "labels": torch.from_numpy(found.labels[of_image][usable]),
            "crowd_boxes": boxes[crowd],
        }
        if self.preparation.masks:
            target["masks"] = self._masks(np.arange(of_image.start, of_image.stop)[usable], image)
            if size != before:
                nearest = F.interpolate(target["masks"][None], size, mode="nearest")
                target["masks"] = nearest[0]
        return target

    def _masks(self, numbers: NDArray[np.int64], image: int) -> Tensor:
        """(N, H, W) uint8 masks of annotations, before resizing."""
        size, outlines = self.instances.size(image), self.instances.masks
        assert outlines is not None, "read_instances(..., masks=True)"
        found = []
        for number in numbers:
            if (mask := outlines.compressed(int(number), size)) is None:
                named = f"annotation {self.instances.ids[number]} has no segmentation"
                raise DataCorruptError(f"{self.instances.origin}: {named}, but masks are asked for")
            found.append(mask)
        decoded = mask_tools().decode(found) if found else np.zeros((*size, 0), np.uint8)
        return torch.from_numpy(np.ascontiguousarray(decoded.transpose(2, 0, 1)))

    def _mirrored(self, target: Target, width: int) -> Target:
        last = width - int(self.preparation.inclusive_corners)
        flipped = dict(target)
        for name in ("boxes", "crowd_boxes"):
            x1, y1, x2, y2 = target[name].unbind(1)
            flipped[name] = torch.stack([last - x2, y1, last - x1, y2], dim=1)
        if "masks" in target:
            flipped["masks"] = target["masks"].flip(2)
        return flipped


def as_input(pixels: Pixels, size: tuple[int, int], preparation: Preparation) -> Tensor:
    """A picture (H, W, 3) as a detector sees it, (3, h, w): at `size`, normalised."""
    if preparation.detectron:
        resized = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR)
        pixels = np.asarray(resized)[:, :, ::-1].copy()
    picture = torch.tensor(pixels).permute(2, 0, 1).float() / 255
    if picture.shape[1:] != size:
        picture = F.interpolate(picture[None], size, mode="bilinear")[0]
    statistics = preparation.mean, preparation.std
    mean, std = (torch.tensor(values)[:, None, None] for values in statistics)
    return (picture - mean) / std


def padded(pictures: Sequence[Tensor], divisor: int) -> Tensor:
    """Pictures (3, h, w) of several sizes as one batch (B, 3, H, W), zero below and to the right;
    H and W are multiples of `divisor`."""
    sides = (max(picture.shape[axis] for picture in pictures) for axis in (1, 2))
    height, width = (math.ceil(side / divisor) * divisor for side in sides)
    batch = pictures[0].new_zeros(len(pictures), 3, height, width)
    for row, picture in zip(batch, pictures, strict=True):
        row[:, : picture.shape[1], : picture.shape[2]] = picture
    return batch
