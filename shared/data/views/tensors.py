"""Views of whole batches of small images by tensor operations (docs/papers/comatch.md, section 12).

The transforms of `shared.data.views.per_image` would cost a small network more time than its
training step. Here one bilinear warp per batch does zoom, rotation, shear and shift, and a view of
shifts and flips only is a gather of windows. Legend: N images, H x W pixels, C channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from shared.data.images import Pictures, Pixels
from shared.data.views.interface import Keys, Views, planes
from shared.randomness import key_uniforms

# One column per random quantity, the same in every recipe: switching one off moves no other draw.
_DX, _DY, _FLIP, _ANGLE, _SHEAR, _ZOOM, _CROP_X, _CROP_Y = range(8)
_CONTRAST, _BRIGHT, _CUT_X, _CUT_Y = range(8, 12)


@dataclass(frozen=True)
class Recipe:
    """The random changes of one view; zero or None switches one off. See `pixels` for sizes."""

    shift: float = 0.0  # largest to either side
    flip: float = 0.0  # probability of a horizontal flip
    rotation: float = 0.0  # largest angle to either side, degrees
    shear: float = 0.0  # largest horizontal shear factor to either side
    zoom: float | None = None  # smallest side of the square crop that is enlarged, as a fraction
    contrast: float = 0.0  # factor about the image's mean, uniform in 1 +- contrast
    brightness: float = 0.0  # factor, uniform in 1 +- brightness
    cutout: float = 0.0  # side of the blanked square


class TensorViews(Views):
    """Views by the tensor operations of a `Recipe`, whose fields `recipes` gives by a view's name;
    "test" changes nothing. Single images (for prediction) are resized to `size`. `fill` is the
    value in 0..1 outside the image, `cutout_fill` that of the blanked square."""

    recipes: dict[str, Recipe]

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        recipes: Mapping[str, Mapping[str, Any]],
        size: int,
        fill: float = 0.0,
        cutout_fill: float = 0.5,
    ) -> None:
        super().__init__(mean, std, size)
        self.recipes = {name: Recipe(**fields) for name, fields in recipes.items()}
        self.fill, self.cutout_fill = fill, cutout_fill

    def _values(self, images: Pictures, view: str, keys: Keys | None) -> Tensor:
        if not isinstance(images, np.ndarray):
            mode, size = "L" if len(self.mean) == 1 else "RGB", (self.size, self.size)
            pictures = (Image.fromarray(image).convert(mode) for image in images)
            resized = (p.resize(size, Image.Resampling.BILINEAR) for p in pictures)
            images = np.stack([np.asarray(picture) for picture in resized])
        if keys is None:
            return planes(images)
        recipe, draws = self.recipes[view], key_uniforms(keys, 12)
        if recipe.rotation or recipe.shear or recipe.zoom is not None:
            values = planes(images)
            values = warp(values, affine_matrices(recipe, draws, values.shape[-2:]), self.fill)
        else:
            values = planes(shift_and_flip(images, recipe, draws, round(self.fill * 255)))
        if recipe.contrast or recipe.brightness:
            u = torch.from_numpy(draws).float().view(*draws.shape, 1, 1, 1)
            contrast = 1 + recipe.contrast * (2 * u[:, _CONTRAST] - 1)
            bright = 1 + recipe.brightness * (2 * u[:, _BRIGHT] - 1)
            average = values.mean((1, 2, 3), keepdim=True)
            # bright * (average + contrast * (x - average)), as one scale and one offset per image
            values = torch.addcmul(bright * average * (1 - contrast), values, bright * contrast)
            values = values.clamp_(0, 1)
        if recipe.cutout:
            keep = cutout_mask(draws, recipe.cutout, values.shape[-2:])
            values = values.sub_(self.cutout_fill).mul_(keep).add_(self.cutout_fill)
        return values


def shift_and_flip(images: Pixels, recipe: Recipe, draws: NDArray[np.float64], fill: int) -> Pixels:
    """Shift by whole pixels, each of the 2k + 1 offsets equally likely, then flip horizontally."""
    n, height, width = images.shape[:3]
    ky, kx = pixels(recipe.shift, height), pixels(recipe.shift, width)
    padded = np.full((n, height + 2 * ky, width + 2 * kx, *images.shape[3:]), fill, np.uint8)
    padded[:, ky : ky + height, kx : kx + width] = images
    dy = (draws[:, _DY] * (2 * ky + 1)).astype(np.int64)
    dx = (draws[:, _DX] * (2 * kx + 1)).astype(np.int64)
    windows = sliding_window_view(padded, (height, width), axis=(1, 2))
    moved = windows[np.arange(n), dy, dx]
    if images.ndim == 4:
        moved = moved.transpose(0, 2, 3, 1)  # the window axes come last
    flipped = draws[:, _FLIP] < recipe.flip
    moved[flipped] = moved[flipped][:, :, ::-1]
    return moved


def affine_matrices(recipe: Recipe, draws: NDArray[np.float64], size: Sequence[int]) -> Tensor:
    """Return (N, 2, 3): source position = matrix @ (x, y, 1) of the target, from the centre."""
    height, width = size
    signed = 2 * draws - 1
    angle = np.deg2rad(recipe.rotation) * signed[:, _ANGLE]
    smallest = 1.0 if recipe.zoom is None else recipe.zoom
    side = smallest + (1 - smallest) * draws[:, _ZOOM]
    cos, sin, shear = np.cos(angle), np.sin(angle), recipe.shear * signed[:, _SHEAR]
    mirror = np.where(draws[:, _FLIP] < recipe.flip, -1.0, 1.0)
    matrix = np.empty((len(draws), 2, 3))
    matrix[:, 0, 0] = side * mirror * cos
    matrix[:, 0, 1] = side * (shear * cos - sin)
    matrix[:, 1, 0] = side * mirror * sin
    matrix[:, 1, 1] = side * (shear * sin + cos)
    # The crop lies anywhere within the image; the shift may then move it beyond the border.
    room_x, room_y = (1 - side) * width / 2, (1 - side) * height / 2
    matrix[:, 0, 2] = room_x * signed[:, _CROP_X] + pixels(recipe.shift, width) * signed[:, _DX]
    matrix[:, 1, 2] = room_y * signed[:, _CROP_Y] + pixels(recipe.shift, height) * signed[:, _DY]
    return torch.from_numpy(matrix).float()


def warp(values: Tensor, matrices: Tensor, fill: float = 0.0) -> Tensor:
    """Resample (N, C, H, W) bilinearly at `matrices` (see `affine_matrices`); `fill` outside."""
    n, _, height, width = values.shape
    x = (torch.arange(width) - (width - 1) / 2).float()
    y = (torch.arange(height) - (height - 1) / 2).float()
    grid = torch.empty(n, height, width, 2)  # F.affine_grid takes five times as long on a CPU
    for axis, length in ((0, width), (1, height)):
        row = matrices[:, axis] * (2 / length)  # grid_sample's unit: half a side
        in_x = row[:, 0, None] * x
        in_y = torch.addcmul(row[:, 2, None], row[:, 1, None], y)
        torch.add(in_x[:, None, :], in_y[:, :, None], out=grid[..., axis])
    if fill:
        values = values - fill  # grid_sample only knows zero outside
    moved = F.grid_sample(values, grid, mode="bilinear", align_corners=False)
    return moved.add_(fill) if fill else moved


def cutout_mask(draws: NDArray[np.float64], side: float, size: Sequence[int]) -> Tensor:
    """Return (N, 1, H, W): 0 in a square with its centre anywhere in the image, 1 elsewhere."""
    inside = []
    for column, length in ((_CUT_Y, size[0]), (_CUT_X, size[1])):
        pixel_side = pixels(side, length)
        first = (draws[:, column] * length).astype(np.int64) - pixel_side // 2
        offset = np.arange(length) - first[:, None]
        inside.append(torch.from_numpy(((offset >= 0) & (offset < pixel_side)).astype(np.float32)))
    rows, columns = inside
    return 1 - rows[:, None, :, None] * columns[:, None, None, :]


def pixels(amount: float, length: int) -> int:
    """Return `amount` in pixels: integers are pixels already, floats a fraction of `length`."""
    return amount if isinstance(amount, int) else round(amount * length)
