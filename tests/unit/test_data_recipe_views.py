"""RecipeViews: each operation against torchvision or by hand, order, draws, test view, errors."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from torchvision.transforms import v2

from shared.data.views import randaugment, recipes
from shared.data.views.recipes import (
    RecipeViews,
    affine,
    blur,
    flip,
    grayscale,
    ground,
    random_resized_crop,
)
from shared.randomness import key_generator, sample_keys

RANDOM = np.random.default_rng(1)
IMAGES = RANDOM.integers(0, 256, (6, 16, 16, 3), np.uint8)
PICTURE = Image.fromarray(IMAGES[0])
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]


def views(recipe: list[dict[str, Any]], size: int = 16, **changes: Any) -> RecipeViews:
    values: dict[str, Any] = {"mean": MEAN, "std": STD, "size": size, "test_resize": None}
    return RecipeViews(**values | changes, recipes={"a": recipe, "b": recipe})


def keys(view: str = "a", epoch: int = 0) -> np.ndarray:
    return sample_keys(0, epoch, np.arange(len(IMAGES)), view)


def generator(number: int = 0) -> np.random.Generator:
    return key_generator(number)


def normalised(images: np.ndarray) -> np.ndarray:
    return ((images / 255 - MEAN) / STD).transpose(0, 3, 1, 2)


RECIPE = [
    {"op": "random_resized_crop", "scale": [0.2, 1]},
    {"op": "jitter", "p": 0.8},
    {"op": "grayscale", "p": 0.2},
    {"op": "blur", "p": 0.5},
    {"op": "flip"},
]


def test_an_empty_recipe_and_the_test_view_only_normalise() -> None:
    for found in (views([])(IMAGES, "a", keys()), views([])(IMAGES, "test")):
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found, normalised(IMAGES), atol=1e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_test_view_resizes_and_crops_as_torchvision_does(interpolation: str) -> None:
    photo = RANDOM.integers(0, 256, (40, 60, 3), np.uint8)
    transform = views([], size=20, test_resize=24, interpolation=interpolation)
    photos = [photo, photo[:30]]
    for image, source in zip(transform(photos, "test"), photos, strict=True):
        steps = v2.Compose([v2.Resize(24, v2.InterpolationMode(interpolation)), v2.CenterCrop(20)])
        expected = np.asarray(steps(Image.fromarray(source)))
        np.testing.assert_allclose(image, normalised(expected[None])[0], atol=1e-5)


def test_views_are_independent_draws_and_rows_depend_on_their_key_only() -> None:
    transform = views(RECIPE)
    first = transform(IMAGES, "a", keys())
    assert torch.equal(first, transform(IMAGES, "a", keys()))
    assert not torch.equal(first, transform(IMAGES, "b", keys("b")))
    assert not torch.equal(first, transform(IMAGES, "a", keys(epoch=1)))
    assert torch.equal(first[2:4], transform(list(IMAGES[2:4]), "a", keys()[2:4]))


def test_operations_are_applied_in_the_order_written() -> None:
    """A crop's black border is blurred only by a blur that follows it."""
    crop, soften = {"op": "random_crop", "padding": 8}, {"op": "blur", "sigma": [2, 2], "p": 1.0}
    white = np.full((1, 16, 16, 3), 255, np.uint8)
    key = next(k for k in keys() if key_generator(k).integers(0, 17) not in (8, 16))
    edges, soft = (
        views(steps, mean=[0, 0, 0], std=[1, 1, 1])(white, "a", np.array([key]))
        for steps in ([soften, crop], [crop, soften])
    )
    assert set(edges.unique().tolist()) == {0.0, 1.0}
    assert len(soft.unique()) > 2


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1))
def test_probabilities_of_one_and_zero(number: int, between: float) -> None:
    for kind in (flip, grayscale, recipes.jitter, blur):
        never = kind(PICTURE, generator(number), 16, p=0.0)
        assert np.array_equal(np.asarray(never), IMAGES[0])
        kind(PICTURE, generator(number), 16, p=between)
    mirrored = np.asarray(flip(PICTURE, generator(number), 16, p=1.0))
    assert np.array_equal(mirrored, IMAGES[0][:, ::-1])
    grey = np.asarray(grayscale(PICTURE, generator(number), 16, p=1.0))
    assert (grey == np.asarray(PICTURE.convert("L"))[..., None]).all()


@pytest.mark.parametrize("kind", [flip, grayscale])
def test_a_probability_is_met_on_average(kind: Any) -> None:
    draw = generator()
    seen = [np.asarray(kind(PICTURE, draw, 16, p=0.3)) for _ in range(500)]
    changed = [not np.array_equal(picture, IMAGES[0]) for picture in seen]
    assert 0.218 < np.mean(changed) < 0.382  # four standard deviations


def test_blur_is_pils_with_a_radius_in_the_range() -> None:
    found = np.asarray(blur(PICTURE, generator(), 16, (0.7, 0.7), p=1.0))
    expected = PICTURE.filter(ImageFilter.GaussianBlur(0.7))
    assert np.array_equal(found, np.asarray(expected))


def test_random_crop_pads_with_black_and_reaches_every_offset() -> None:
    marked = np.zeros((5, 5, 3), np.uint8)
    marked[2, 2] = 255
    seen = set()
    draw = generator()
    for _ in range(400):
        crop = np.asarray(recipes.random_crop(Image.fromarray(marked), draw, 5, padding=1))
        assert crop.shape == (5, 5, 3)
        ((row, column),) = np.argwhere(crop[..., 0] == 255)
        seen.add((int(row), int(column)))
    assert seen == {(r, c) for r in (1, 2, 3) for c in (1, 2, 3)}
    with pytest.raises(ValueError, match="smaller than size=9"):
        recipes.random_crop(Image.fromarray(marked), draw, 9, padding=1)


def test_affine_moves_the_drawing_and_keeps_its_ground() -> None:
    drawing = Image.new("RGB", (32, 32), (10, 200, 30))
    drawing.paste((250, 0, 0), (8, 8, 24, 24))
    seen = set()
    for number in range(40):
        found = np.asarray(affine(drawing, generator(number), 16, zoom=[0.5, 0.5], shear=0.0))
        assert tuple(found[0, 0]) == (10, 200, 30) == tuple(found[-1, -1])
        red = np.argwhere(found[..., 0] > 200)
        assert 9 <= len(red) <= 18  # a quarter of a square of 8 px
        seen.add(tuple(red.mean(axis=0).round().astype(int)))
    rows, columns = zip(*seen, strict=True)
    assert min(rows) <= 5
    assert max(rows) >= 10
    assert min(columns) <= 5
    assert max(columns) >= 10


def test_affine_without_change_is_a_resize_and_a_large_zoom_a_crop() -> None:
    still = {"degrees": 0.0, "shear": 0.0}
    same = affine(PICTURE, generator(), 16, zoom=[1.0, 1.0], **still)
    np.testing.assert_array_equal(np.asarray(same), np.asarray(PICTURE))
    part = np.asarray(affine(PICTURE, generator(), 8, zoom=[2.0, 2.0], **still))
    windows = np.lib.stride_tricks.sliding_window_view(IMAGES[0], (8, 8, 3)).reshape(-1, 8, 8, 3)
    assert (windows == part).all(axis=(1, 2, 3)).any()
    turned = {affine(PICTURE, generator(n), 16, zoom=[1.0, 1.0]).tobytes() for n in range(8)}
    assert len(turned) == 8


def test_random_resized_crop_keeps_the_asked_share_of_the_area() -> None:
    """A ramp from 0 to 255 tells which part of the picture was cut out."""
    ramp = np.tile(np.linspace(0, 255, 200).astype(np.uint8)[None, :, None], (200, 1, 3))
    shares = []
    draw = generator()
    for _ in range(200):
        crop = random_resized_crop(Image.fromarray(ramp), draw, 50, (0.25, 0.25), (1, 1))
        values = np.asarray(crop)[0, :, 0].astype(int)
        shares.append((values.max() - values.min()) / 255)
    np.testing.assert_allclose(shares, 0.5, atol=0.03)


def test_grey_images_keep_one_channel_and_colour_networks_get_three() -> None:
    grey = IMAGES[..., 0]
    one = RecipeViews([0.0], [1.0], 16, None, {"a": RECIPE})
    assert one(grey, "a", keys()).shape == one(IMAGES, "test").shape == (6, 1, 16, 16)
    np.testing.assert_allclose(one(grey, "test")[:, 0], grey / 255, atol=1e-6)
    assert views(RECIPE)(grey, "a", keys()).shape == (6, 3, 16, 16)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"op": "gray_scale"}], r"'a': no operation 'gray_scale' \(did you mean 'grayscale'"),
        ([{}], "no operation 'None'"),
        ([{"op": "flip", "P": 1}], "flip has no argument 'P'"),
        ([{"op": "flip", "p": 1.5}], r"flip\.p=1\.5: expected a probability"),
        ([{"op": "blur", "sigma": [2, 0.1]}], "smallest, largest"),
        ([{"op": "random_resized_crop", "scale": [0.2, 1.1]}], "shares of the picture"),
        ([{"op": "random_resized_crop", "ratio": [1]}], "smallest, largest"),
        ([{"op": "jitter", "strength": [0.4, 0.4, 0.4]}], "hue in 0..0.5"),
        ([{"op": "jitter", "strength": [0.4, 0.4, 0.4, 0.6]}], "hue in 0..0.5"),
        ([{"op": "random_crop", "padding": -1}], "no negative number"),
        ([{"op": "resize", "interpolation": "lanczos"}], r"lanczos: expected bilinear or bicubic"),
        ([{"op": "resize", "sizes": 3}], r"no argument 'sizes'.*; known: interpolation, side"),
        ([{"op": "resize", "side": 0}], "side=0: expected px"),
        ([{"op": "rand_augment", "among": "all"}], "one of captions, clips, stills"),
        (
            [{"op": "rand_augment", "among": "clips", "distinct": True, "operations": 11}],
            "only 10 distinct operations",
        ),
        ([{"op": "flip"}, {"op": "ground"}], "recipe 'a': ground must come first"),
        ([{"op": "ground", "low": 0.8, "high": 0.5}], "0 <= low <= high <= 1"),
        ([{"op": "ground", "high": 255}], "0 <= low <= high <= 1"),
        ([{"op": "rand_augment", "operations": 0}], "operations=0: expected at least one"),
        ([{"op": "rand_augment", "magnitude": 11}], r"expected a level in 0\.\.10"),
    ],
)
def test_bad_steps_are_refused_when_built(steps: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        views(steps)


def test_bad_calls_are_refused() -> None:
    transform = views([])
    with pytest.raises(ValueError, match="views: a, b, test"):
        transform(IMAGES, "c", keys())
    with pytest.raises(ValueError, match="no random keys"):
        transform(IMAGES, "a")
    with pytest.raises(ValueError, match="begin it with a crop or resize"):
        views([], size=8)(IMAGES, "a", keys())
    with pytest.raises(ValueError, match="test_resize=8 is smaller than size=16"):
        views([], test_resize=8)
    with pytest.raises(ValueError, match="interpolation=nearest: expected bilinear or bicubic"):
        views([], interpolation="nearest")


# --- interpolation, transparency, RandAugment ---------------------------------------------------


PHOTO = RANDOM.integers(0, 256, (40, 60, 3), np.uint8)
CLEAR = np.concatenate([IMAGES[:1], np.zeros((1, 16, 16, 1), np.uint8)], axis=3)  # all transparent


def plain(recipe: list[dict[str, Any]], **changes: Any) -> RecipeViews:
    return views(recipe, mean=[0, 0, 0], std=[1, 1, 1], **changes)


def resized(image: np.ndarray, size: int, resample: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((size, size), resample))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_test_view_and_resize_squash_with_the_interpolation(interpolation: str) -> None:
    expected = normalised(resized(PHOTO, 20, Image.Resampling[interpolation.upper()])[None])
    transform = views([{"op": "resize"}], size=20, interpolation=interpolation)
    np.testing.assert_allclose(transform([PHOTO], "test"), expected, atol=1e-5)
    np.testing.assert_allclose(transform([PHOTO], "a", keys()[:1]), expected, atol=1e-5)


def test_a_crop_takes_the_interpolation_of_its_step_or_of_all() -> None:
    whole = {"op": "random_resized_crop", "scale": [1, 1], "ratio": [1.5, 1.5]}
    draws = keys()[:1]
    soft, sharp = (
        normalised(resized(PHOTO, 20, kind)[None])
        for kind in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    )
    assert np.abs(soft - sharp).max() > 0.05
    for transform, expected in [
        (views([whole], size=20), soft),
        (views([whole], size=20, interpolation="bicubic"), sharp),
        (views([whole | {"interpolation": "bicubic"}], size=20), sharp),
        (views([whole | {"interpolation": "bilinear"}], size=20, interpolation="bicubic"), soft),
    ]:
        np.testing.assert_allclose(transform([PHOTO], "a", draws), expected, atol=1e-5)


def test_transparent_pictures_are_laid_on_white() -> None:
    half = CLEAR.copy()
    half[..., 3] = 128
    transform = plain([{"op": "flip", "p": 0}])
    for image in (transform(CLEAR, "test"), transform(CLEAR, "a", keys()[:1])):
        assert (image == 1).all()
    blended = transform(half, "test").numpy().transpose(0, 2, 3, 1)
    expected = (IMAGES[:1] * 128.0 + 255 * 127.0) / 255**2
    np.testing.assert_allclose(blended, expected, atol=1 / 254)
    grey = RecipeViews([0.0], [1.0], 16, None, {"a": []})
    assert (grey(CLEAR, "test") == 1).all()


def test_ground_is_one_colour_in_the_range_and_keeps_the_drawing() -> None:
    drawing = CLEAR.copy()
    drawing[:, 4:8, 4:8, 3] = 255
    transform = plain([{"op": "ground", "low": 0.5, "high": 0.75}])
    draws = sample_keys(0, 0, np.arange(200), "a")
    found = transform(np.repeat(drawing, 200, axis=0), "a", draws).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found[:, 4:8, 4:8], np.repeat(IMAGES[:1, 4:8, 4:8] / 255, 200, 0))
    colours = found[:, 0, 0]
    np.testing.assert_array_equal(found[:, 15, 15], colours)
    assert colours.min() >= 0.5 - 1 / 510
    assert colours.max() <= 0.75 + 1 / 510
    assert (np.ptp(colours, axis=0) > 0.2).all()  # each channel on its own, over the whole range
    assert (np.abs(np.diff(colours, axis=1)).max(axis=1) > 0.02).mean() > 0.9
    same = transform(IMAGES, "a", keys())
    np.testing.assert_allclose(same, IMAGES.transpose(0, 3, 1, 2) / 255, atol=1e-6)
    # It comes before the crop and gives grey networks grey.
    steps = [{"op": "ground", "low": 1.0, "high": 1.0}, {"op": "random_crop", "padding": 0}]
    assert (plain(steps)(CLEAR, "a", keys()[:1]) == 1).all()
    grey = RecipeViews([0.0], [1.0], 16, None, {"a": steps})
    assert grey(CLEAR, "a", keys()[:1]).shape == (1, 1, 16, 16)


def test_ground_makes_a_drawing_smaller_and_keeps_all_of_it() -> None:
    drawing = Image.new("RGBA", (32, 32), (250, 0, 0, 255))
    places, sides = set(), set()
    for number in range(30):
        found = np.asarray(ground(drawing, generator(number), 32, low=0.0, high=0.5, least=0.4))
        red = np.argwhere(found[..., 0] > 200)
        first, last = red.min(axis=0), red.max(axis=0) + 1
        assert len(red) == (last - first).prod()  # a whole square
        sides |= set((last - first).tolist())
        places |= {tuple(first)}
    assert 12 <= min(sides) <= 16
    assert 28 <= max(sides) <= 32
    assert len(places) > 15
    # Without it the draws are as ever, and what is not transparent stays as it is.
    whole = ground(drawing, generator(3), 32)
    assert whole.tobytes() == ground(drawing, generator(3), 32, least=1.0).tobytes()
    opaque = drawing.convert("RGB")
    assert ground(opaque, generator(3), 32, least=0.4).tobytes() == opaque.tobytes()


def test_rand_augment_is_that_of_its_module() -> None:
    step = {"op": "rand_augment", "operations": 3, "magnitude": 5, "p": 0.9}
    for official in (False, True):
        found = plain([step | {"official": official}])(IMAGES, "a", keys())
        known = randaugment.OFFICIAL_FOR_CAPTIONS if official else randaugment.FOR_CAPTIONS
        expected = [
            randaugment.random_operations(image, key_generator(key), 3, 5, 0.9, known)
            for image, key in zip(IMAGES, keys(), strict=True)
        ]
        np.testing.assert_allclose(found, np.stack(expected).transpose(0, 3, 1, 2) / 255, atol=1e-6)
    by_default = {"operations": 2, "magnitude": 7, "p": 0.5, "official": False}
    plainly, spelt = (plain([{"op": "rand_augment", **own}]) for own in ({}, by_default))
    assert torch.equal(plainly(IMAGES, "a", keys()), spelt(IMAGES, "a", keys()))
    grey = RecipeViews([0.0], [1.0], 16, None, {"a": [step]})
    assert grey(IMAGES[..., 0], "a", keys()).shape == (6, 1, 16, 16)
