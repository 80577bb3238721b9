"""Views of single images with numpy, OpenCV and PIL (docs/papers/comatch.md, sections 6.2 to 6.4).

Randomness comes from one numpy generator per (seed, epoch, sample, view); no global generator is
touched, so worker processes need no seeding. Images are (H, W, 3) uint8 RGB.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as tvf

from shared.data.images import Pictures
from shared.data.views.randaugment import flip, pad_crop, rand_augment
from shared.randomness import key_generator
from shared.data.views.interface import Views

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


class _PerImageViews(Views):
    """Applies `_one(image, view, generator)` to each image; see `shared.data.views.interface.Views`."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(
        self, images: Pictures, view: str, keys: NDArray[np.uint64] | None = None
    ) -> Tensor:
        if view == "test":
            return torch.stack([self._normalise(self._test(image)) for image in images])
        if view not in ("weak", "strong0", "strong1") or keys is None:
            raise ValueError(
                f"no recipe (or no random keys) for view {view!r}; "
                "views: weak, strong0, strong1, test"
            )
        pairs = zip(images, keys, strict=True)
        return torch.stack(
            [self._normalise(self._one(image, view, key_generator(key))) for image, key in pairs]
        )

    def _normalise(self, image: NDArray[np.uint8]) -> Tensor:
        return normalise(image, self.mean, self.std)

    def _test(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        raise NotImplementedError

    def _one(
        self, image: NDArray[np.uint8], view: str, generator: np.random.Generator
    ) -> NDArray[np.uint8]:
        raise NotImplementedError


class SmallImageViews(_PerImageViews):
    """The views of CIFAR (size 32, padding 4), STL-10 (96, 12) and SVHN.

    weak: reflect-padded crop, flip. strong0: the same, RandAugment, cutout. strong1: random resized
    crop, flip, colour jitter, grey.

    Args:
        size: side in pixels. padding: of the crop. flip_probability: 0 where mirroring changes the
            class (digits). operations, level, cutout: of RandAugment, see `rand_augment`.
    """

    def __init__(
        self,
        mean: Sequence[float] = CIFAR10_MEAN,
        std: Sequence[float] = CIFAR10_STD,
        size: int = 32,
        padding: int = 4,
        flip_probability: float = 0.5,
        operations: int = 2,
        level: float = 10,
        cutout: int = 16,
    ) -> None:
        super().__init__(mean, std)
        self.size, self.padding, self.flip_probability = size, padding, flip_probability
        self.operations, self.level, self.cutout = operations, level, cutout

    def _test(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return _resize(image, self.size)

    def _one(
        self, image: NDArray[np.uint8], view: str, generator: np.random.Generator
    ) -> NDArray[np.uint8]:
        image = _resize(image, self.size)
        if view == "strong1":
            picture = random_resized_crop(Image.fromarray(image), self.size, generator)
            if generator.random() < self.flip_probability:
                picture = tvf.hflip(picture)
            return np.asarray(jitter_and_grey(picture, generator))
        # The official offsets stop at 2 * padding - 1: one position of nine is never used.
        row, column = generator.integers(0, 2 * self.padding, 2)
        image = pad_crop(image, self.padding, row, column)
        if generator.random() < self.flip_probability:
            image = flip(image)
        if view == "strong0":
            image = rand_augment(
                np.ascontiguousarray(image),
                generator,
                self.operations,
                self.level,
                cutout_size=self.cutout,
            )
        return image


class ImageNetViews(_PerImageViews):
    """The views of ImageNet: strong0 and strong1 are two draws of one recipe.

    weak: random resized crop, flip. strong: random resized crop, colour jitter, grey, flip. test:
    shorter side to `test_resize`, centre crop of `size`.
    """

    def __init__(
        self,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        size: int = 224,
        test_resize: int = 256,
    ) -> None:
        super().__init__(mean, std)
        self.size, self.test_resize = size, test_resize

    def _test(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        picture = tvf.resize(Image.fromarray(image), [self.test_resize])
        return np.asarray(tvf.center_crop(picture, [self.size, self.size]))

    def _one(
        self, image: NDArray[np.uint8], view: str, generator: np.random.Generator
    ) -> NDArray[np.uint8]:
        picture = random_resized_crop(Image.fromarray(image), self.size, generator)
        if view != "weak":
            picture = jitter_and_grey(picture, generator)
        if generator.random() < 0.5:
            picture = tvf.hflip(picture)
        return np.asarray(picture)


def normalise(image: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(H, W, C) uint8 -> (C, H, W) float32, (x / 255 - mean) / std."""
    values = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(255)
    return values.sub_(torch.tensor(mean).view(-1, 1, 1)).div_(torch.tensor(std).view(-1, 1, 1))


def random_resized_crop(
    picture: Image.Image,
    size: int,
    generator: np.random.Generator,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: tvf.InterpolationMode = tvf.InterpolationMode.BILINEAR,
) -> Image.Image:
    """Resize a random part of `scale` of the area and of log-uniform aspect `ratio` to a square.

    The distribution of torchvision's RandomResizedCrop: ten attempts, then the largest centre crop
    whose aspect ratio is allowed.
    """
    width, height = picture.size
    for _ in range(10):
        area = width * height * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(generator.integers(0, height - h + 1))
            left = int(generator.integers(0, width - w + 1))
            break
    else:
        w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
        top, left = (height - h) // 2, (width - w) // 2
    return tvf.resized_crop(picture, top, left, h, w, [size, size], interpolation)


def jitter_and_grey(
    picture: Image.Image,
    generator: np.random.Generator,
    strength: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1),
    jitter_probability: float = 0.8,
    grey_probability: float = 0.2,
) -> Image.Image:
    """Change brightness, contrast, saturation and hue in random order, then perhaps to grey."""
    if generator.random() < jitter_probability:
        changes = (tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation)
        factors = [generator.uniform(1 - s, 1 + s) for s in strength[:3]]
        hue = generator.uniform(-strength[3], strength[3])
        for number in generator.permutation(4):
            if number == 3:
                picture = tvf.adjust_hue(picture, hue)
            else:
                picture = changes[number](picture, factors[number])
    if generator.random() < grey_probability:
        picture = tvf.to_grayscale(picture, num_output_channels=3)
    return picture


def _resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
