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
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import functional as tvf

from shared.data.images import Pixels
from shared.data.views import randaugment
from shared.data.views.interface import PictureViews
from shared.data.views.per_image import jitter_and_grey, random_resized_crop
from shared.data.views.randaugment import MAX_LEVEL

Picture = Image.Image
RAND_AUGMENT = {
    "captions": randaugment.FOR_CAPTIONS,
    "clips": randaugment.FOR_CLIPS,
    "stills": randaugment.FOR_STILLS,
}

# --- operations; what follows the view's side `size` are the arguments of a step of a recipe ---


def resize(
    picture: Picture,
    generator: Generator,
    size: int,
    interpolation: str = "bilinear",
    side: int | None = None,
) -> Picture:
    """The whole picture, squashed to a square of that side, or of the view's size."""
    return tvf.resize(picture, [side or size] * 2, tvf.InterpolationMode(interpolation))


def random_crop(picture: Picture, generator: Generator, size: int, padding: int = 4) -> Picture:
    """A crop of the view's size after `padding` with black pixels on each side."""
    padded = ImageOps.expand(picture, padding)
    if min(padded.size) < size:
        raise ValueError(f"random_crop: {padded.size} px with padding, smaller than size={size}")
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
    """Brightness, contrast, saturation and hue by up to +- `strength` each, in random order."""
    return jitter_and_grey(picture, generator, strength, p, grey_probability=0)


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
    return picture.filter(ImageFilter.GaussianBlur(generator.uniform(sigma[0], sigma[1])))


def rand_augment(
    picture: Picture,
    generator: Generator,
    size: int,
    operations: int = 2,
    magnitude: float = 7,
    p: float = 0.5,
    official: bool = False,
    among: str = "captions",
    distinct: bool = False,
) -> Picture:
    """RandAugment: `operations` are drawn, if `distinct` different ones, each applied with
    probability `p` at `magnitude` of ten. They are `among` ALBEF's for pictures with captions
    (`official`: with the official code's oddities), or ALPRO's for clips or stills. The frames of a
    clip, which share their generator's key and their size, are changed alike."""
    pixels = np.asarray(picture.convert("RGB"))
    known = randaugment.OFFICIAL_FOR_CAPTIONS if official else RAND_AUGMENT[among]
    changed = randaugment.random_operations(
        pixels, generator, operations, magnitude, p, known, distinct
    )
    return Image.fromarray(np.ascontiguousarray(changed)).convert(picture.mode)


def ground(
    picture: Picture,
    generator: Generator,
    size: int,
    low: float = 0.5,
    high: float = 1.0,
    least: float = 1.0,
) -> Picture:
    """A transparent picture on one colour, uniform in [`low`, `high`]^3; before all others. With
    `least` below 1 it is drawn at down to that share of its size, anywhere."""
    colour = generator.uniform(low, high, 3)
    if picture.mode == "RGBA" and least < 1:
        share = generator.uniform(least, 1)
        small = picture.resize([max(1, round(share * side)) for side in picture.size])
        room = [whole - part for whole, part in zip(picture.size, small.size, strict=True)]
        picture = Image.new("RGBA", picture.size)
        left, top = (int(generator.integers(free + 1)) for free in room)
        picture.paste(small, (left, top))
    return _lay_on(picture, colour)


def affine(
    picture: Picture,
    generator: Generator,
    size: int,
    zoom: Sequence[float] = (0.8, 1.2),
    degrees: float = 10.0,
    shear: float = 5.0,
    interpolation: str = "bilinear",
) -> Picture:
    """The picture, squashed to a square of `zoom` times the view's side, drawn in that range, at a
    random place: all of it is seen if it is smaller, else a part. Then it is turned, and sheared
    both ways, by up to so many degrees. Around it is the colour of its first pixel, which after
    `ground` is that of the ground."""
    kind = tvf.InterpolationMode(interpolation)
    side = max(1, round(size * generator.uniform(zoom[0], zoom[1])))
    left, top = (round((size - side) * generator.random()) for _ in range(2))
    first: Any = picture.getpixel((0, 0))
    page = Image.new(picture.mode, (size, size), first)
    page.paste(tvf.resize(picture, [side, side], kind), (left, top))
    angle, *slant = generator.uniform(-1, 1, 3) * (degrees, shear, shear)
    fill = list(first) if isinstance(first, tuple) else first
    return tvf.affine(page, angle, [0, 0], 1.0, slant, kind, fill)


OPERATIONS: dict[str, Callable[..., Picture]] = {
    operation.__name__: operation
    for operation in (
        *(random_resized_crop, random_crop, resize, flip, grayscale),
        *(jitter, blur, rand_augment, ground, affine),
    )
}
# What a value of an argument must be, and how to say it.
LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "p": (lambda p: 0 <= p <= 1, "a probability"),
    "padding": (lambda n: n >= 0, "no negative number"),
    "side": (lambda n: n is None or 0 < n <= 1 << 12, "px, up to 4096"),
    "among": (lambda name: name in RAND_AUGMENT, f"one of {', '.join(RAND_AUGMENT)}"),
    "interpolation": (lambda kind: kind in ("bilinear", "bicubic"), "bilinear or bicubic"),
    "operations": (lambda n: n >= 1, "at least one"),
    "magnitude": (lambda level: 0 <= level <= MAX_LEVEL, f"a level in 0..{MAX_LEVEL}"),
    "scale": (
        lambda pair: len(pair) == 2 and 0 < pair[0] <= pair[1] <= 1,
        "[smallest, largest], shares of the picture",
    ),
    "ratio": (lambda pair: len(pair) == 2 and 0 < pair[0] <= pair[1], "[smallest, largest] > 0"),
    "zoom": (lambda pair: len(pair) == 2 and 0 < pair[0] <= pair[1] <= 4, "[from, to], up to 4"),
    "least": (lambda share: 0 < share <= 1, "a share in 0..1"),
    "degrees": (lambda angle: 0 <= angle <= 180, "degrees in 0..180"),
    "shear": (lambda angle: 0 <= angle <= 45, "degrees in 0..45"),
    "sigma": (lambda pair: len(pair) == 2 and 0 < pair[0] <= pair[1], "[smallest, largest] > 0"),
    "strength": (
        lambda s: len(s) == 4 and min(s) >= 0 and max(s) <= 1 and s[3] <= 0.5,
        "brightness, contrast and saturation in 0..1 and hue in 0..0.5",
    ),
}


class RecipeViews(PictureViews):
    """Views of (H, W, 3), (H, W, 4) or (H, W) uint8 images of any size.

    They become grey where `mean` has one value. Transparent ones are laid on white, unless a recipe
    begins with `ground`. The view "test" is the centre crop of `size` after resizing the shorter
    side to `test_resize`; None resizes pictures to `size`. `interpolation` ("bilinear" or
    "bicubic") is that of the test view and of all recipes.
    """

    recipes: dict[str, list[partial[Picture]]]

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        size: int,
        test_resize: int | None,
        recipes: Mapping[str, Sequence[Mapping[str, Any]]],
        interpolation: str = "bilinear",
    ) -> None:
        super().__init__(mean, std, size)
        if test_resize is not None and test_resize < size:
            raise ValueError(f"test_resize={test_resize} is smaller than size={size}")
        _check("interpolation", interpolation, "")
        self.test_resize, self.interpolation = test_resize, interpolation
        self.recipes = {
            view: [_operation(step, f"recipe {view!r}: ", interpolation) for step in steps]
            for view, steps in recipes.items()
        }
        for view, changes in self.recipes.items():
            if any(change.func is ground for change in changes[1:]):
                raise ValueError(f"recipe {view!r}: ground must come first, it needs transparency")

    def _one(self, image: Pixels, view: str, generator: Generator) -> Pixels:
        picture, changes = Image.fromarray(image), self.recipes[view]
        if changes and changes[0].func is ground:
            picture, changes = changes[0](picture, generator, self.size), changes[1:]
        picture = self._opaque(picture)
        for change in changes:
            picture = change(picture, generator, self.size)
        if picture.size != (self.size, self.size):
            made = f"made a picture of {picture.size} px, not size={self.size}"
            raise ValueError(f"recipe {view!r} {made}: begin it with a crop or resize")
        return np.asarray(picture)

    def _test(self, image: Pixels) -> Pixels:
        sides = [self.size, self.size] if self.test_resize is None else [self.test_resize]
        kind = tvf.InterpolationMode(self.interpolation)
        picture = tvf.resize(self._opaque(Image.fromarray(image)), sides, kind)
        return np.asarray(tvf.center_crop(picture, [self.size, self.size]))

    def _opaque(self, picture: Picture) -> Picture:
        """The picture on white, with as many channels as `mean`."""
        picture, mode = _lay_on(picture, np.ones(3)), "L" if len(self.mean) == 1 else "RGB"
        return picture if picture.mode == mode else picture.convert(mode)


def _lay_on(picture: Picture, colour: NDArray[np.float64]) -> Picture:
    """Lay a transparent (RGBA) picture on a plain `colour` in 0..1; others stay as they are."""
    if picture.mode != "RGBA":
        return picture
    red, green, blue = (round(255 * float(value)) for value in colour)
    laid = Image.new("RGB", picture.size, (red, green, blue))
    laid.paste(picture, mask=picture)
    return laid


def _operation(step: Mapping[str, Any], where: str, interpolation: str) -> partial[Picture]:
    """The operation that one step of a recipe describes, with the interpolation of all."""
    name = str(step.get("op"))
    if name not in OPERATIONS:
        raise ValueError(f"{where}no operation {name!r}{_nearest(name, sorted(OPERATIONS))}")
    function = OPERATIONS[name]
    arguments = {key: value for key, value in step.items() if key != "op"}
    known = list(signature(function).parameters)[3:]
    for key, value in arguments.items():
        if key not in known:
            raise ValueError(f"{where}{name} has no argument {key!r}{_nearest(key, known)}")
        _check(key, value, f"{where}{name}.")
    if "interpolation" in known:
        arguments = {"interpolation": interpolation} | arguments
    if function is rand_augment and arguments.get("distinct"):
        most = len(RAND_AUGMENT[arguments.get("among", "captions")])
        if arguments.get("operations", 2) > most:
            raise ValueError(f"{where}there are only {most} distinct operations")
    if function is ground:
        low, high = arguments.get("low", 0.5), arguments.get("high", 1.0)
        if not 0 <= low <= high <= 1:
            raise ValueError(f"{where}ground of {low}, {high}: expected 0 <= low <= high <= 1")
    return partial(function, **arguments)


def _check(key: str, value: Any, where: str) -> None:
    if key in LIMITS and not LIMITS[key][0](value):
        raise ValueError(f"{where}{key}={value}: expected {LIMITS[key][1]}")


def _nearest(name: str, known: Sequence[str]) -> str:
    match = get_close_matches(name, known, n=1)
    return (f" (did you mean {match[0]!r}?)" if match else "") + f"; known: {', '.join(known)}"
