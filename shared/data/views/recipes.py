"""Views of single pictures by recipes: lists of operations in the order of the paper's transform.

recipes:
  weak: [{op: random_resized_crop, scale: [0.2, 1]}, {op: flip}]
  strong:
    - {op: random_resized_crop, scale: [0.2, 1]}
    - {op: grayscale, p: 0.2}
    - {op: jitter, strength: [0.4, 0.4, 0.4, 0.4]}
    - {op: flip}
"""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms import functional as tvf

from shared.data.images import Pictures
from shared.data.views import caption_augment, per_image
from shared.data.views.interface import Views
from shared.data.views.randaugment import MAX_LEVEL
from shared.randomness import key_generator

INTERPOLATIONS = {
    "bilinear": tvf.InterpolationMode.BILINEAR,
    "bicubic": tvf.InterpolationMode.BICUBIC,
}
Picture = Image.Image
Operation = Callable[[Picture, Generator, int], Picture]
"""Changes a picture; the last argument is the side of the view in pixels."""


# --- operations; what follows `size` are the arguments of a recipe's step ---


def random_resized_crop(
    picture: Picture,
    generator: Generator,
    size: int,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
    interpolation: str = "bilinear",
) -> Picture:
    """A random part of `scale` of the area and aspect `ratio`, resized to the view's size."""
    limits = (scale[0], scale[1]), (ratio[0], ratio[1])
    kind = INTERPOLATIONS[interpolation]
    return per_image.random_resized_crop(picture, size, generator, *limits, kind)


def resize(
    picture: Picture, generator: Generator, size: int, interpolation: str = "bilinear"
) -> Picture:
    """The whole picture, squashed to the view's size."""
    return squash(picture, size, interpolation)


def random_crop(picture: Picture, generator: Generator, size: int, padding: int = 4) -> Picture:
    """A crop of the view's size after `padding` with black pixels on each side."""
    padded = ImageOps.expand(picture, padding)
    if min(padded.size) < size:
        raise ValueError(
            f"random_crop: a picture of {picture.size} px with padding={padding} is smaller than "
            f"size={size}"
        )
    left, top = (int(generator.integers(0, side - size + 1)) for side in padded.size)
    return padded.crop((left, top, left + size, top + size))


def flip(picture: Picture, generator: Generator, size: int, p: float = 0.5) -> Picture:
    """A horizontal flip with probability `p`."""
    return ImageOps.mirror(picture) if generator.random() < p else picture


def grayscale(picture: Picture, generator: Generator, size: int, p: float = 0.2) -> Picture:
    """All channels equal, with probability `p`."""
    grey = generator.random() < p
    return picture.convert("L").convert(picture.mode) if grey else picture


def jitter(
    picture: Picture,
    generator: Generator,
    size: int,
    strength: Sequence[float] = (0.4, 0.4, 0.4, 0.1),
    p: float = 1.0,
) -> Picture:
    """Brightness, contrast, saturation and hue, each within 1 +- (hue: +-) its `strength`.

    In random order, with probability `p`.
    """
    b, c, s, h = strength
    return per_image.jitter_and_grey(picture, generator, (b, c, s, h), p, grey_probability=0)


def blur(
    picture: Picture,
    generator: Generator,
    size: int,
    sigma: Sequence[float] = (0.1, 2.0),
    p: float = 0.5,
) -> Picture:
    """A Gaussian blur of radius uniform in `sigma`, in pixels, with probability `p`."""
    if generator.random() >= p:
        return picture
    low, high = sigma
    return picture.filter(ImageFilter.GaussianBlur(generator.uniform(low, high)))


def rand_augment(
    picture: Picture,
    generator: Generator,
    size: int,
    operations: int = 2,
    magnitude: float = caption_augment.LEVEL,
    p: float = 0.5,
    official: bool = False,
) -> Picture:
    """ALBEF's RandAugment: see `shared.data.views.caption_augment`.

    `operations` are drawn, each is applied with probability `p` at `magnitude` of ten; `official`:
    with the official code's oddities.
    """
    pixels = np.asarray(picture.convert("RGB"))
    changed = caption_augment.rand_augment(pixels, generator, operations, magnitude, p, official)
    return Image.fromarray(changed).convert(picture.mode)


def ground(
    picture: Picture, generator: Generator, size: int, low: float = 0.5, high: float = 1.0
) -> Picture:
    """A transparent picture on one colour, uniform in [`low`, `high`]^3; before all others."""
    return lay_on(picture, generator.uniform(low, high, 3))


OPERATIONS: dict[str, Callable[..., Picture]] = {
    operation.__name__: operation
    for operation in (
        *(random_resized_crop, random_crop, resize, flip, grayscale),
        *(jitter, blur, rand_augment, ground),
    )
}


class RecipeViews(Views):
    """Callable (images, view, keys) -> normalised float32 batch (N, C, H, W).

    Images are (H, W, 3), (H, W, 4) or (H, W) uint8 of any size; they become grey where `mean` has
    one value. Transparent ones are laid on white, unless a recipe begins with `ground`. Views that
    differ in name only are independent draws of the same recipe.

    Args:
        mean, std: per channel, for values in 0..1.
        size: side of every view in pixels.
        test_resize: the view "test" is the centre crop of `size` after resizing the shorter side to
            this; None takes pictures of that size as they are and resizes others to it.
        recipes: view name -> operations in order, each {op: name, its arguments}.
        interpolation: "bilinear" or "bicubic", in the test view and wherever a recipe resizes.

    Raises:
        ValueError: an operation or argument that does not exist, or a value out of its range.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        size: int,
        test_resize: int | None,
        recipes: Mapping[str, Sequence[Mapping[str, Any]]],
        interpolation: str = "bilinear",
    ) -> None:
        if test_resize is not None and test_resize < size:
            raise ValueError(f"test_resize={test_resize} is smaller than size={size}")
        self.mean, self.std, self.size = tuple(mean), tuple(std), size
        _check("interpolation", interpolation, f"interpolation={interpolation}")
        self.test_resize, self.interpolation = test_resize, interpolation
        self.recipes = {
            view: [operation(step, view, interpolation) for step in steps]
            for view, steps in recipes.items()
        }
        for view, changes in self.recipes.items():
            if any(is_ground(change) for change in changes[1:]):
                raise ValueError(
                    f"recipe {view!r}: ground must come first, others don't know transparency"
                )

    def __call__(
        self, images: Pictures, view: str, keys: NDArray[np.uint64] | None = None
    ) -> Tensor:
        """Return one view of `images`.

        Raises:
            ValueError: unknown view, no random keys, or a recipe that gives another size.
        """
        if view == "test":
            return self._batch([self._test(image) for image in images])
        if view not in self.recipes or keys is None:
            known = ", ".join(sorted([*self.recipes, "test"]))
            raise ValueError(f"no recipe (or no random keys) for view {view!r}; views: {known}")
        return self._batch([self._view(i, view, key) for i, key in zip(images, keys, strict=True)])

    def _view(self, image: NDArray[np.uint8], view: str, key: np.uint64) -> Image.Image:
        picture, generator = Image.fromarray(image), key_generator(key)
        changes = self.recipes[view]
        if changes and is_ground(changes[0]):
            picture, changes = changes[0](picture, generator, self.size), changes[1:]
        picture = self._opaque(picture)
        for change in changes:
            picture = change(picture, generator, self.size)
        if picture.size != (self.size, self.size):
            raise ValueError(
                f"recipe {view!r} made a picture of {picture.size} px, not size={self.size}: begin "
                "it with random_resized_crop, random_crop or resize"
            )
        return picture

    def _test(self, image: NDArray[np.uint8]) -> Image.Image:
        picture = self._opaque(Image.fromarray(image))
        if self.test_resize is None:
            return squash(picture, self.size, self.interpolation)
        kind = INTERPOLATIONS[self.interpolation]
        picture = tvf.resize(picture, [self.test_resize], kind)
        return tvf.center_crop(picture, [self.size, self.size])

    def _opaque(self, picture: Image.Image) -> Image.Image:
        """The picture on white, with as many channels as `mean`."""
        picture, mode = lay_on(picture, np.ones(3)), "L" if len(self.mean) == 1 else "RGB"
        return picture if picture.mode == mode else picture.convert(mode)

    def _batch(self, pictures: Sequence[Image.Image]) -> Tensor:
        pixels = np.stack([np.asarray(picture) for picture in pictures])
        planes = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
        values = torch.from_numpy(np.ascontiguousarray(planes)).float().div_(255)
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return values.sub_(mean).div_(std)


def squash(picture: Image.Image, size: int, interpolation: str) -> Image.Image:
    """Resize to size x size, whatever the aspect ratio."""
    if picture.size == (size, size):
        return picture
    return tvf.resize(picture, [size, size], INTERPOLATIONS[interpolation])


def lay_on(picture: Image.Image, colour: NDArray[np.float64]) -> Image.Image:
    """Lay a transparent (RGBA) picture on a plain `colour` in 0..1; others stay as they are."""
    if picture.mode != "RGBA":
        return picture
    red, green, blue = (round(255 * float(value)) for value in colour)
    ground = Image.new("RGB", picture.size, (red, green, blue))
    ground.paste(picture, mask=picture)
    return ground


def operation(step: Mapping[str, Any], view: str, interpolation: str = "bilinear") -> Operation:
    """Return the operation that one step of a recipe describes.

    `interpolation`: of operations that resize, unless the step says another.
    """
    name = str(step.get("op"))
    if name not in OPERATIONS:
        raise ValueError(
            f"recipe {view!r}: no operation {name!r}{_nearest(name, OPERATIONS)}; operations: "
            f"{', '.join(sorted(OPERATIONS))}"
        )
    function = OPERATIONS[name]
    arguments = {key: value for key, value in step.items() if key != "op"}
    known = list(signature(function).parameters)[3:]
    for key, value in arguments.items():
        if key not in known:
            raise ValueError(
                f"recipe {view!r}: {name} has no argument {key!r}{_nearest(key, known)}; it has "
                f"{', '.join(known)}"
            )
        _check(key, value, f"recipe {view!r}: {name}.{key}={value}")
    if "interpolation" in known:
        arguments = {"interpolation": interpolation} | arguments
    change = partial(function, **arguments)
    if function is ground:
        low, high = arguments.get("low", 0.5), arguments.get("high", 1.0)
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"recipe {view!r}: ground from low={low} to high={high}: expected "
                "0 <= low <= high <= 1"
            )
    return change


def is_ground(change: Operation) -> bool:
    return isinstance(change, partial) and change.func is ground


def _check(key: str, value: Any, what: str) -> None:
    if key == "p" and not 0 <= value <= 1:
        raise ValueError(f"{what} is no probability")
    if key == "padding" and value < 0:
        raise ValueError(f"{what} is negative")
    if key == "interpolation" and str(value) not in INTERPOLATIONS:
        raise ValueError(f"{what}: expected {' or '.join(INTERPOLATIONS)}")
    if key == "operations" and value < 1:
        raise ValueError(f"{what}: at least one")
    if key == "magnitude" and not 0 <= value <= MAX_LEVEL:
        raise ValueError(f"{what}: expected a level in 0..{MAX_LEVEL}")
    if key in ("scale", "ratio", "sigma") and not (len(value) == 2 and 0 < value[0] <= value[1]):
        raise ValueError(f"{what}: expected [smallest, largest], both positive")
    if key == "scale" and value[1] > 1:
        raise ValueError(f"{what}: the crop can't be larger than the picture")
    if key == "strength" and (
        len(value) != 4 or min(value) < 0 or max(value) > 1 or value[3] > 0.5
    ):
        raise ValueError(
            f"{what}: expected brightness, contrast and saturation in 0..1 and hue in 0..0.5"
        )


def _nearest(name: str, known: Any) -> str:
    match = get_close_matches(name, list(known), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""
