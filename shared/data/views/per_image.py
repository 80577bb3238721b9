"""Views of single (H, W, 3) uint8 images by numpy and PIL (docs/papers/comatch.md, 6.2 to 6.4)."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.random import Generator
from PIL import Image
from torchvision.transforms import functional as tvf

from shared.data.images import Pixels
from shared.data.views.interface import PictureViews
from shared.data.views.randaugment import flip, pad_crop, rand_augment

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
SCALE = (0.2, 1.0)  # of the random resized crops


class SmallImageViews(PictureViews):
    """The views of CIFAR (size 32, padding 4), STL-10 (96, 12) and SVHN.

    weak: crop after reflecting `padding`, flip. strong0: the same, RandAugment, cutout. strong1:
    random resized crop, flip, colour jitter, grey. `flip_probability` is 0 where mirroring changes
    the class (digits).
    """

    recipes = ("weak", "strong0", "strong1")

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
        super().__init__(mean, std, size)
        self.padding, self.flip_probability = padding, flip_probability
        self.operations, self.level, self.cutout = operations, level, cutout

    def _test(self, image: Pixels) -> Pixels:
        if image.ndim == 2:
            image = np.repeat(image[..., None], 3, axis=2)
        size = (self.size, self.size)
        if image.shape[:2] == size:
            return image
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))

    def _one(self, image: Pixels, view: str, generator: Generator) -> Pixels:
        image = self._test(image)
        if view == "strong1":
            picture = random_resized_crop(Image.fromarray(image), generator, self.size, SCALE)
            if generator.random() < self.flip_probability:
                picture = tvf.hflip(picture)
            return np.asarray(jitter_and_grey(picture, generator))
        # The official offsets stop at 2 * padding - 1: one position of nine is never used.
        row, column = generator.integers(0, 2 * self.padding, 2)
        image = pad_crop(image, self.padding, row, column)
        if generator.random() < self.flip_probability:
            image = flip(image)
        if view == "strong0":
            image = np.ascontiguousarray(image)
            count, level = self.operations, self.level
            image = rand_augment(image, generator, count, level, cutout_size=self.cutout)
        return image


class ImageNetViews(PictureViews):
    """The views of ImageNet: strong0 and strong1 are two draws of one recipe.

    weak: random resized crop, flip. strong: random resized crop, colour jitter, grey, flip. test:
    shorter side to `test_resize`, centre crop of `size`.
    """

    recipes = ("weak", "strong0", "strong1")

    def __init__(
        self,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        size: int = 224,
        test_resize: int = 256,
    ) -> None:
        super().__init__(mean, std, size)
        self.test_resize = test_resize

    def _test(self, image: Pixels) -> Pixels:
        picture = tvf.resize(Image.fromarray(image), [self.test_resize])
        return np.asarray(tvf.center_crop(picture, [self.size, self.size]))

    def _one(self, image: Pixels, view: str, generator: Generator) -> Pixels:
        picture = random_resized_crop(Image.fromarray(image), generator, self.size, SCALE)
        if view != "weak":
            picture = jitter_and_grey(picture, generator)
        if generator.random() < 0.5:
            picture = tvf.hflip(picture)
        return np.asarray(picture)


def random_resized_crop(
    picture: Image.Image,
    generator: Generator,
    size: int,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
    interpolation: str = "bilinear",
) -> Image.Image:
    """Resize a random part of `scale` of the area and of log-uniform aspect `ratio` to a square, as
    torchvision's RandomResizedCrop: ten attempts, then the largest centre crop that is allowed."""
    width, height = picture.size
    for _ in range(10):
        area = width * height * generator.uniform(scale[0], scale[1])
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(generator.integers(0, height - h + 1))
            left = int(generator.integers(0, width - w + 1))
            break
    else:
        w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
        top, left = (height - h) // 2, (width - w) // 2
    kind = tvf.InterpolationMode(interpolation)
    return tvf.resized_crop(picture, top, left, h, w, [size, size], kind)


def jitter_and_grey(
    picture: Image.Image,
    generator: Generator,
    strength: Sequence[float] = (0.4, 0.4, 0.4, 0.1),
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
