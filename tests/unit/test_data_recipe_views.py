"""RecipeViews: each operation against torchvision or by hand, order, draws, test view, errors."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from torchvision.transforms import v2

from shared.data.randomness import key_generator, sample_keys
from shared.data.recipe_views import (
    Blur,
    Flip,
    Grayscale,
    Jitter,
    RandomCrop,
    RandomResizedCrop,
    RecipeViews,
)

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


def test_test_view_resizes_and_crops_as_torchvision_does() -> None:
    photo = RANDOM.integers(0, 256, (40, 60, 3), np.uint8)
    found = views([], size=20, test_resize=24)([photo, photo[:30]], "test")
    for image, expected_of in zip(found, (photo, photo[:30]), strict=True):
        steps = v2.Compose([v2.Resize(24), v2.CenterCrop(20)])
        expected = np.asarray(steps(Image.fromarray(expected_of)))
        np.testing.assert_allclose(image, normalised(expected[None])[0], atol=1e-5)
    assert views([], size=20)([photo], "test").shape == (1, 3, 20, 20)


def test_views_are_independent_draws_and_rows_depend_on_their_key_only() -> None:
    transform = views(RECIPE)
    first = transform(IMAGES, "a", keys())
    assert torch.equal(first, transform(IMAGES, "a", keys()))
    assert not torch.equal(first, transform(IMAGES, "b", keys("b")))
    assert not torch.equal(first, transform(IMAGES, "a", keys(epoch=1)))
    assert torch.equal(first[2:4], transform(list(IMAGES[2:4]), "a", keys()[2:4]))


def test_operations_are_applied_in_the_order_written() -> None:
    """A crop's black border is blurred only by a blur that follows it."""
    crop, blur = {"op": "random_crop", "padding": 8}, {"op": "blur", "sigma": [2, 2], "p": 1.0}
    white = np.full((1, 16, 16, 3), 255, np.uint8)
    key = next(k for k in keys() if key_generator(k).integers(0, 17) not in (8, 16))
    edges, soft = (
        views(steps, mean=[0, 0, 0], std=[1, 1, 1])(white, "a", np.array([key]))
        for steps in ([blur, crop], [crop, blur])
    )
    assert set(edges.unique().tolist()) == {0.0, 1.0}
    assert len(soft.unique()) > 2


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1))
def test_probabilities_of_one_and_zero(number: int, between: float) -> None:
    for kind in (Flip, Grayscale, Jitter, Blur):
        never = kind(p=0.0)(PICTURE, generator(number), 16)  # type: ignore[call-arg]
        assert np.array_equal(np.asarray(never), IMAGES[0])
        kind(p=between)(PICTURE, generator(number), 16)  # type: ignore[call-arg]
    mirrored = np.asarray(Flip(p=1.0)(PICTURE, generator(number), 16))
    assert np.array_equal(mirrored, IMAGES[0][:, ::-1])
    grey = np.asarray(Grayscale(p=1.0)(PICTURE, generator(number), 16))
    assert (grey == np.asarray(PICTURE.convert("L"))[..., None]).all()


@pytest.mark.parametrize("kind", [Flip, Grayscale])
def test_a_probability_is_met_on_average(kind: Any) -> None:
    draw = generator()
    changed = [
        not np.array_equal(np.asarray(kind(p=0.3)(PICTURE, draw, 16)), IMAGES[0])
        for _ in range(1000)
    ]
    assert 0.24 < np.mean(changed) < 0.36  # four standard deviations


def test_blur_is_pils_with_a_radius_in_the_range() -> None:
    found = np.asarray(Blur(sigma=(0.7, 0.7), p=1.0)(PICTURE, generator(), 16))
    expected = PICTURE.filter(ImageFilter.GaussianBlur(0.7))
    assert np.array_equal(found, np.asarray(expected))
    sharp, soft = (
        np.asarray(Blur(sigma=(s, s), p=1.0)(PICTURE, generator(), 16)).std() for s in (0.1, 2.0)
    )
    assert soft < sharp


def test_random_crop_pads_with_black_and_reaches_every_offset() -> None:
    marked = np.zeros((5, 5, 3), np.uint8)
    marked[2, 2] = 255
    seen = set()
    draw = generator()
    for _ in range(400):
        crop = np.asarray(RandomCrop(padding=1)(Image.fromarray(marked), draw, 5))
        assert crop.shape == (5, 5, 3)
        ((row, column),) = np.argwhere(crop[..., 0] == 255)
        seen.add((int(row), int(column)))
    assert seen == {(r, c) for r in (1, 2, 3) for c in (1, 2, 3)}
    with pytest.raises(ValueError, match="smaller than size=9"):
        RandomCrop(padding=1)(Image.fromarray(marked), draw, 9)


def test_random_resized_crop_keeps_the_asked_share_of_the_area() -> None:
    """A ramp from 0 to 255 tells which part of the picture was cut out."""
    ramp = np.tile(np.linspace(0, 255, 200).astype(np.uint8)[None, :, None], (200, 1, 3))
    shares = []
    draw = generator()
    for _ in range(200):
        crop = RandomResizedCrop(scale=(0.25, 0.25), ratio=(1, 1))(Image.fromarray(ramp), draw, 50)
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
    ("step", "message"),
    [
        ({"op": "gray_scale"}, r"recipe 'a': no operation 'gray_scale' \(did you mean 'grayscale'"),
        ({}, "no operation 'None'"),
        ({"op": "flip", "P": 1}, "flip has no argument 'P'"),
        ({"op": "flip", "p": 1.5}, r"flip\.p=1\.5 is no probability"),
        ({"op": "blur", "sigma": [2, 0.1]}, "smallest, largest"),
        ({"op": "random_resized_crop", "scale": [0.2, 1.1]}, "larger than the picture"),
        ({"op": "random_resized_crop", "ratio": [1]}, "smallest, largest"),
        ({"op": "jitter", "strength": [0.4, 0.4, 0.4]}, "hue in 0..0.5"),
        ({"op": "jitter", "strength": [0.4, 0.4, 0.4, 0.6]}, "hue in 0..0.5"),
        ({"op": "random_crop", "padding": -1}, "negative"),
    ],
)
def test_bad_steps_are_refused_when_built(step: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        views([step])


def test_bad_calls_are_refused() -> None:
    transform = views([])
    with pytest.raises(ValueError, match="views: a, b, test"):
        transform(IMAGES, "c", keys())
    with pytest.raises(ValueError, match="no random keys"):
        transform(IMAGES, "a")
    with pytest.raises(ValueError, match="begin it with random_resized_crop"):
        views([], size=8)(IMAGES, "a", keys())
    with pytest.raises(ValueError, match="test_resize=8 is smaller than size=16"):
        views([], test_resize=8)
