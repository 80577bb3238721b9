"""RandAugment on uint8 images (H, W, 3): CoMatch's (docs/papers/comatch.md, 6.2), ALBEF's, ALPRO's.

Two operations are drawn with replacement, each applied with probability 0.5 at a fixed level of
ten; CoMatch's are fourteen, and then always a cutout. Reference: salesforce/CoMatch@08b4cce
datasets/randaugment.py, reproduced to the grey level, three oddities included, because the paper's
networks were trained with them:

- `auto_contrast` turns every channel that has no zero white (an unsigned minimum is negated);
- `sharpness` wraps around instead of clipping (-1 becomes 255);
- `color` and `contrast` apply the luma weights of a BGR image to an RGB one.

The warps follow OpenCV 4's fixed-point arithmetic (positions in 1/32 pixel), written out here since
OpenCV 5 computes them in another way.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]

FILL = 128
MAX_LEVEL = 10
_LUMA = np.array([0.114, 0.587, 0.299])
_LANES = (0, 21, 42)


def _to_uint8(values: NDArray) -> Picture:
    """Clip and cut off the fraction, as the official code's casts do."""
    return values.clip(0, 255).astype(np.uint8)


def per_channel(image: Picture, table: Callable[[Picture], NDArray | None]) -> Picture:
    """Look up the values of each channel in what `table` makes of it; None leaves it as it is."""
    out = image.copy()
    for channel in range(image.shape[2]):
        mapping = table(image[..., channel])
        if mapping is not None:
            out[..., channel] = mapping[image[..., channel]]
    return out


def auto_contrast(image: Picture, whole: bool = False) -> Picture:
    """Stretch a channel that holds a 0 (`whole`: any) to 0..255; others turn white, but constant
    ones stay."""

    def stretched(channel: Picture) -> NDArray | None:
        low, high = int(channel.min()), int(channel.max())
        if high == low:
            return None
        if whole:
            return _to_uint8((np.arange(256) - low) * 255 // (high - low))
        scale = 255 / (high - low)
        return _to_uint8(np.arange(256) * scale + (-low % 256) * scale)

    return per_channel(image, stretched)


def equalize(image: Picture) -> Picture:
    """Equalise each channel's histogram, with PIL's rounding."""

    def equalized(channel: Picture) -> NDArray | None:
        counts = np.bincount(channel.reshape(-1), minlength=256)
        step = int(counts[counts > 0][:-1].sum()) // 255
        before = np.concatenate(([0], counts.cumsum()[:-1]))
        return _to_uint8((before + step // 2) // step) if step else None

    return per_channel(image, equalized)


def rotate(image: Picture, degrees: float) -> Picture:
    """Rotate about (W/2, H/2); positive is counter-clockwise."""
    y, x = image.shape[0] / 2, image.shape[1] / 2
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = [[cos, sin, (1 - cos) * x - sin * y], [-sin, cos, sin * x + (1 - cos) * y]]
    return _warp(image, np.array(matrix))


def shear_x(image: Picture, factor: float) -> Picture:
    """Move content at (x, y) to (x + factor * y, y)."""
    return _warp(image, np.array([[1, factor, 0], [0, 1, 0]], np.float32))


def shear_y(image: Picture, factor: float) -> Picture:
    """Move content at (x, y) to (x, y + factor * x)."""
    return _warp(image, np.array([[1, 0, 0], [factor, 1, 0]], np.float32))


def translate_x(image: Picture, offset: float) -> Picture:
    """Move content by -offset pixels horizontally."""
    return _warp(image, np.array([[1, 0, -offset], [0, 1, 0]], np.float32))


def translate_y(image: Picture, offset: float) -> Picture:
    """Move content by -offset pixels vertically."""
    return _warp(image, np.array([[1, 0, 0], [0, 1, -offset]], np.float32))


def color(image: Picture, factor: float) -> Picture:
    """Blend with the grey image: 0 is grey, 1 unchanged, above 1 more saturated."""
    luma = _LUMA.astype(np.float32)[:, None]
    saturate = (np.eye(3) - _LUMA[:, None]).astype(np.float32)
    matrix = saturate * np.float32(factor) + luma
    return _to_uint8(image.astype(np.float32) @ matrix)


def contrast(image: Picture, factor: float) -> Picture:
    """Scale about the mean grey value."""
    mean = float(image.mean(axis=(0, 1)) @ _LUMA)
    return _to_uint8((np.arange(256) - mean) * factor + mean)[image]


def brightness(image: Picture, factor: float) -> Picture:
    return _to_uint8(np.arange(256, dtype=np.float32) * np.float32(factor))[image]


def sharpness(image: Picture, factor: float, clip: bool = False) -> Picture:
    """Blend with a smoothed image, all but its border; values wrap around unless `clip`."""
    whole = image.astype(np.float32)  # sums of integers are exact
    centre = whole[1:-1, 1:-1]
    rows = whole[:-2] + whole[1:-1] + whole[2:]
    smooth = np.rint((rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * centre) / np.float32(13))
    sharp = smooth + np.float32(factor) * (centre - smooth)
    out = image.copy()
    out[1:-1, 1:-1] = _to_uint8(sharp) if clip else sharp.astype(np.int32).astype(np.uint8)
    return out


def solarize(image: Picture, threshold: float) -> Picture:
    """Invert values of at least `threshold`."""
    return np.where(image < threshold, image, 255 - image).astype(np.uint8)


def posterize(image: Picture, bits: int) -> Picture:
    """Keep the top `bits` bits."""
    return image & np.uint8(255 << (8 - bits) & 255)


def cutout(image: Picture, u1: float, u2: float, size: int, fill: int = FILL) -> Picture:
    """Blank the square of side `size` about row int(u1 * H), column int(u2 * W), clipped."""
    height, width = image.shape[:2]
    row, column, half = int(u1 * height), int(u2 * width), size // 2
    out = image.copy()
    out[max(row - half, 0) : row + half, max(column - half, 0) : column + half] = fill
    return out


def enhance(level: float) -> float:
    """The factor of the enhancing operations, 0.1 to 1.9."""
    return level / MAX_LEVEL * 1.8 + 0.1


# The operation, its magnitude at a level or None, whether the magnitude may be negated.
Entry = tuple[Callable[..., Picture], Callable[[float], float] | None, bool]
OPERATIONS: dict[str, Entry] = {  # in the order of the official list
    "Identity": (lambda image: image, None, False),
    "AutoContrast": (auto_contrast, None, False),
    "Equalize": (equalize, None, False),
    "Rotate": (rotate, lambda level: level / MAX_LEVEL * 30, True),
    "Solarize": (solarize, lambda level: int(level / MAX_LEVEL * 256), False),
    "Color": (color, enhance, False),
    "Contrast": (contrast, enhance, False),
    "Brightness": (brightness, enhance, False),
    "Sharpness": (sharpness, enhance, False),
    "ShearX": (shear_x, lambda level: level / MAX_LEVEL * 0.3, True),
    "TranslateX": (translate_x, lambda level: level / MAX_LEVEL * 10, True),
    "TranslateY": (translate_y, lambda level: level / MAX_LEVEL * 10, True),
    "Posterize": (posterize, lambda level: int(level / MAX_LEVEL * 4), False),
    "ShearY": (shear_y, lambda level: level / MAX_LEVEL * 0.3, True),
}


# ALBEF's at level 7, BLIP's at 5: what is meant to change no colour, since captions name colours
# (docs/papers/albef.md, section 5.2; salesforce/ALBEF@b9727e4 dataset/randaugment.py). Two of them
# are corrected in `FOR_CAPTIONS`.
OFFICIAL_FOR_CAPTIONS: dict[str, Entry] = {
    name: OPERATIONS[name]
    for name in (
        "Identity",
        "AutoContrast",  # whitens a channel that has no zero
        *("Equalize", "Brightness"),
        "Sharpness",  # wraps around
        *("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
    )
}
FOR_CAPTIONS: dict[str, Entry] = OFFICIAL_FOR_CAPTIONS | {
    "AutoContrast": (partial(auto_contrast, whole=True), None, False),
    "Sharpness": (partial(sharpness, clip=True), enhance, False),
}


# ALPRO's (docs/papers/alpro.md, section 5; salesforce/ALPRO@4ff6163 src/datasets/randaugment.py),
# without negative magnitudes; sharpness is corrected.
FOR_CLIPS: dict[str, Entry] = {
    **{
        name: (*OPERATIONS[name][:2], False)
        for name in (
            *("Identity", "Contrast", "Brightness", "Sharpness"),
            *("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
        )
    },
    "Sharpness": (partial(sharpness, clip=True), enhance, False),
    "HorizontalFlip": (lambda image: image[:, ::-1], None, False),
}
FOR_STILLS = {
    name: FOR_CLIPS[name] for name in FOR_CLIPS if name not in ("Contrast", "HorizontalFlip")
}


def apply(
    name: str,
    image: Picture,
    level: float,
    negative: bool = False,
    operations: Mapping[str, Entry] = OPERATIONS,
) -> Picture:
    """Apply the operation `name` at `level` of ten; `negative` negates a signed magnitude."""
    operation, magnitude, signed = operations[name]
    if magnitude is None:
        return operation(image)
    value = magnitude(level)
    return operation(image, -value if signed and negative else value)


def random_operations(
    image: Picture,
    generator: np.random.Generator,
    count: int = 2,
    level: float = MAX_LEVEL,
    probability: float = 0.5,
    operations: Mapping[str, Entry] = OPERATIONS,
    distinct: bool = False,
) -> Picture:
    """Apply `count` operations, drawn with replacement unless `distinct`, each with
    `probability`."""
    names = list(operations)
    for chosen, use, sign in generator.random((count, 3)):
        place = int(chosen * len(names))
        name = names.pop(place) if distinct else names[place]
        if use < probability:
            image = apply(name, image, level, sign < 0.5, operations)
    return image


def rand_augment(
    image: Picture,
    generator: np.random.Generator,
    count: int = 2,
    level: float = MAX_LEVEL,
    probability: float = 0.5,
    cutout_size: int = 16,
) -> Picture:
    """Apply random operations, then the cutout."""
    image = random_operations(image, generator, count, level, probability)
    u1, u2 = generator.random(2)
    return cutout(image, u1, u2, cutout_size)


def pad_crop(image: Picture, padding: int, row: int, column: int) -> Picture:
    """Reflect-pad by `padding`, then cut the original size out at offset (row, column)."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
    return padded[row : row + height, column : column + width]


def flip(image: Picture) -> Picture:
    return image[:, ::-1]


def _warp(image: Picture, matrix: NDArray[np.floating]) -> Picture:
    """Move content by the (2, 3) `matrix`: bilinear, `FILL` outside, OpenCV 4's fixed point."""
    height, width = image.shape[:2]
    matrix = matrix.astype(np.float64)
    inverse = np.linalg.inv(matrix[:, :2])
    origin = -inverse @ matrix[:, 2]
    across = np.rint(inverse[:, 0, None] * np.arange(width) * 1024).astype(np.int32)
    down = np.rint((inverse[:, 1, None] * np.arange(height) + origin[:, None]) * 1024)
    position = (across[:, None, :] + down.astype(np.int32)[:, :, None] + 16) >> 5  # 1/32 pixel
    (x, y), (fx, fy) = position >> 5, (position & 31).astype(np.uint64)
    # A frame of fill stands for everything outside.
    framed = np.full((height + 2, width + 2, 3), FILL, np.uint8)
    framed[1:-1, 1:-1] = image
    # Three channels side by side in 64 bits: a weighted sum needs 18 bits, so one sum does for all.
    red, green, blue = (framed[..., c].astype(np.uint64) << _LANES[c] for c in range(3))
    pixels = red | green | blue
    x0, x1 = (np.clip(x + d, -1, width) + 1 for d in (0, 1))
    y0, y1 = (np.clip(y + d, -1, height) + 1 for d in (0, 1))
    upper = pixels[y0, x0] * (32 - fx) + pixels[y0, x1] * fx
    lower = pixels[y1, x0] * (32 - fx) + pixels[y1, x1] * fx
    total = upper * (32 - fy) + lower * fy
    channels = [(((total >> lane) + 512) >> 10).astype(np.uint8) for lane in _LANES]
    return np.stack(channels, axis=-1)
