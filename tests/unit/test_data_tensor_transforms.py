"""Batched views against plain per-image computations."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tvf

from shared.data.views.tensors import (
    Recipe,
    TensorViews,
    affine_matrices,
    cutout_mask,
    pixels,
    warp,
)
from shared.randomness import key_uniforms, sample_keys

RECIPES = {
    "weak": {"shift": 0.14, "flip": 0.5},
    "strong0": {"rotation": 30, "shear": 0.3, "shift": 0.2, "cutout": 12}
    | {"contrast": 0.6, "brightness": 0.6},
    "strong1": {"zoom": 0.5, "shift": 0.14, "flip": 0.5, "contrast": 0.6, "brightness": 0.6},
}
KEYS = sample_keys(0, 0, np.arange(16), "any")


def grey(size: int = 28, count: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (count, size, size), np.uint8)


def views(**changes: object) -> TensorViews:
    return TensorViews([0.25], [0.5], RECIPES, **({"size": 28} | changes))


def raw(batch: torch.Tensor) -> np.ndarray:
    """Undo the normalisation."""
    return (batch * 0.5 + 0.25).numpy()


def bilinear(image: np.ndarray, x: float, y: float) -> float:
    """Value at pixel position (x, y), zero outside."""
    total = 0.0
    for row in (int(np.floor(y)), int(np.floor(y)) + 1):
        for column in (int(np.floor(x)), int(np.floor(x)) + 1):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                total += image[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def test_weak_is_an_integer_shift_and_a_flip() -> None:
    images = grey()
    found = raw(views()(images, "weak", KEYS))[:, 0]
    seen = set()
    for image, result in zip(images, found, strict=True):
        padded = np.pad(image, 4) / 255
        candidates = {
            (dy, dx, flip): padded[dy : dy + 28, dx : dx + 28][:, :: -1 if flip else 1]
            for dy in range(9)
            for dx in range(9)
            for flip in (False, True)
        }
        matches = [k for k, v in candidates.items() if np.abs(v - result).max() < 1e-6]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 8
    assert {flip for _, _, flip in seen} == {False, True}


def test_all_shifts_are_reached() -> None:
    image = np.zeros((400, 28, 28), np.uint8)
    image[:, 14, 14] = 255
    keys = sample_keys(0, 0, np.arange(400), "weak")
    found = raw(TensorViews([0.25], [0.5], {"weak": {"shift": 4}}, 28)(image, "weak", keys))
    rows, columns = np.nonzero(found[:, 0] > 0.5)[1:]
    assert set(rows) == set(columns) == set(range(10, 19))


@pytest.mark.parametrize("size", [(28, 28), (20, 26)])
def test_warp_is_bilinear_sampling_at_the_matrix(size: tuple[int, int]) -> None:
    height, width = size
    image = np.random.default_rng(0).random((3, height, width)).astype(np.float32)
    recipe = Recipe(rotation=30, shear=0.3, shift=0.2, zoom=0.5, flip=0.5)
    matrices = affine_matrices(recipe, key_uniforms(KEYS[:3], 12), size)
    found = warp(torch.from_numpy(image)[:, None], matrices).numpy()[:, 0]
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    for n in range(3):
        for row in range(0, height, 4):
            for column in range(0, width, 4):
                position = np.array([column - centre_x, row - centre_y, 1])
                x, y = matrices[n].double().numpy() @ position
                expected = bilinear(image[n], x + centre_x, y + centre_y)
                assert found[n, row, column] == pytest.approx(expected, abs=1e-4)


def test_rotation_and_zoom_agree_with_torchvision() -> None:
    image = torch.from_numpy(np.random.default_rng(0).random((1, 1, 28, 28)).astype(np.float32))
    draws = np.full((1, 12), 0.5)
    draws[0, 3] = 5 / 6  # angle: 2/3 of 30 degrees
    matrix = affine_matrices(Recipe(rotation=30), draws, (28, 28))
    expected = tvf.rotate(image, 20, tvf.InterpolationMode.BILINEAR)
    assert (warp(image, matrix) - expected)[..., 6:-6, 6:-6].abs().max() < 1e-4
    draws[0, 5] = 0.0  # the smallest crop: half the side, from the centre
    zoomed = warp(image, affine_matrices(Recipe(zoom=0.5), draws, (28, 28)))
    reference = tvf.resized_crop(image, 7, 7, 14, 14, [28, 28], antialias=False)
    assert (zoomed - reference)[..., 2:-2, 2:-2].abs().max() < 1e-4


def test_colour_is_contrast_about_the_mean_then_brightness_then_clamp() -> None:
    images = grey()
    recipe = {"contrast": 0.6, "brightness": 0.6}
    found = raw(TensorViews([0.25], [0.5], {"v": recipe}, 28)(images, "v", KEYS))[:, 0]
    draws = key_uniforms(KEYS, 12)
    for image, result, u in zip(images / 255, found, draws, strict=True):
        contrast, bright = 1 + 0.6 * (2 * u[8] - 1), 1 + 0.6 * (2 * u[9] - 1)
        expected = (bright * (image.mean() + contrast * (image - image.mean()))).clip(0, 1)
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_cutout_is_a_clipped_square() -> None:
    draws = key_uniforms(sample_keys(0, 0, np.arange(500), "c"), 12)
    mask = cutout_mask(draws, 12, (28, 28))[:, 0].numpy()
    for hole in 1 - mask:
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole.sum() == len(rows) * len(columns)
        assert 6 <= len(rows) <= 12
        assert 6 <= len(columns) <= 12
    corners = mask[:, 0, 0] == 0
    assert 0 < corners.mean() < 0.2
    images = np.full((16, 28, 28), 255, np.uint8)
    found = raw(TensorViews([0.25], [0.5], {"v": {"cutout": 0.5}}, 28)(images, "v", KEYS))
    assert set(np.unique(found.round(4))) == {0.5, 1.0}


@pytest.mark.parametrize("view", ["weak", "strong0", "strong1"])
def test_rgb_equals_grey_and_a_row_depends_on_its_image_and_key_only(view: str) -> None:
    images = grey()
    stacked = np.repeat(images[..., None], 3, axis=3)
    for fill in (0.0, 0.5):
        one = views(fill=fill)(images, view, KEYS)
        three = TensorViews([0.25] * 3, [0.5] * 3, RECIPES, 28, fill=fill)(stacked, view, KEYS)
        assert three.shape == (16, 3, 28, 28)
        torch.testing.assert_close(three, one.expand(-1, 3, -1, -1), atol=1e-5, rtol=0)
    whole = views()(images, view, KEYS)
    part = views()(images[5:9], view, KEYS[5:9])
    torch.testing.assert_close(part, whole[5:9], atol=1e-6, rtol=0)
    assert whole.dtype == torch.float32
    assert whole.is_contiguous()
    assert (views()(images, view, KEYS[::-1]) - whole).abs().amax((1, 2, 3)).min() > 0


def test_switching_one_change_off_moves_no_other() -> None:
    images = grey()
    without = TensorViews([0.25], [0.5], {"v": RECIPES["strong0"] | {"cutout": 0}}, 28)
    kept = cutout_mask(key_uniforms(KEYS, 12), 12, (28, 28)).bool()
    full = views()(images, "strong0", KEYS)
    torch.testing.assert_close(full[kept], without(images, "v", KEYS)[kept])


def test_test_view_single_images_and_unknown_ones() -> None:
    images = grey()
    np.testing.assert_allclose(raw(views()(images, "test"))[:, 0], images / 255, atol=1e-6)
    large = [np.asarray(Image.fromarray(images[0]).resize((40, 50)).convert("RGB"))]
    assert views()(large, "test").shape == (1, 1, 28, 28)
    with pytest.raises(ValueError, match="weak, strong0, strong1, test"):
        views()(grey(), "strong2", KEYS)
    with pytest.raises(TypeError, match="zoomm"):
        TensorViews([0.25], [0.5], {"weak": {"zoomm": 1}}, 28)
    assert [pixels(3, 28), pixels(0.25, 28)] == [3, 7]
