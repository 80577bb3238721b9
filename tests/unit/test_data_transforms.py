"""Per-image views of CIFAR, STL-10 and ImageNet."""

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import seed_everything

from shared.data.views.interface import normalise, planes
from shared.data.views.per_image import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    ImageNetViews,
    SmallImageViews,
    jitter_and_grey,
    random_resized_crop,
)
from shared.randomness import key_generator, sample_keys

KEYS = sample_keys(0, 0, np.arange(6), "any")


def photos(count: int = 6, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def raw(batch: torch.Tensor) -> np.ndarray:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (CIFAR10_MEAN, CIFAR10_STD))
    return ((batch * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("view", ["weak", "strong0", "strong1"])
@pytest.mark.parametrize("views", [SmallImageViews(), ImageNetViews(size=24, test_resize=28)])
def test_views_are_pure(views: SmallImageViews, view: str) -> None:
    images = photos()
    seed_everything(0)
    first = views(images, view, KEYS)
    seed_everything(1)
    assert torch.equal(first, views(list(images), view, KEYS))
    assert torch.equal(first[2:4], views(images[2:4], view, KEYS[2:4]))
    assert first.dtype == torch.float32
    assert (first != views(images, view, KEYS[::-1].copy())).any()


def test_weak_never_uses_the_ninth_offset() -> None:
    image = np.zeros((100, 32, 32, 3), np.uint8)
    image[:, 16, 16] = 255
    keys = sample_keys(0, 0, np.arange(100), "weak")
    found = raw(SmallImageViews(flip_probability=0.0)(image, "weak", keys))[..., 0]
    rows, columns = np.nonzero(found)[1:]
    assert set(rows) == set(columns) == set(range(13, 21))  # 16 + 4 - offset, offset in 0..7


def test_flip_probability() -> None:
    image = np.zeros((100, 32, 32, 3), np.uint8)
    image[:, :, :8] = 255
    keys = sample_keys(0, 0, np.arange(100), "weak")
    flipped = [
        raw(SmallImageViews(flip_probability=p, padding=1)(image, "weak", keys))[:, 5, 0, 0] == 0
        for p in (0.0, 0.5, 1.0)
    ]
    assert flipped[0].sum() == 0
    assert 35 < flipped[1].sum() < 65
    assert flipped[2].sum() == 100


def test_strong0_always_cuts_out() -> None:
    white = np.full((20, 32, 32, 3), 255, np.uint8)
    keys = sample_keys(0, 0, np.arange(20), "strong0")
    found = raw(SmallImageViews()(white, "strong0", keys))
    grey = (found == 128).all(-1).sum((1, 2))
    assert (grey >= 64).all()
    plain = raw(SmallImageViews(operations=0)(white, "strong0", keys))
    assert set(np.unique(plain)) == {128, 255}


def test_test_views() -> None:
    images = photos()
    np.testing.assert_array_equal(raw(SmallImageViews()(images, "test")), images)
    grey = [np.zeros((40, 50), np.uint8)]
    assert SmallImageViews()(grey, "test").shape == (1, 3, 32, 32)
    views = ImageNetViews(size=16, test_resize=32, mean=CIFAR10_MEAN, std=CIFAR10_STD)
    np.testing.assert_array_equal(raw(views(images, "test")), images[:, 8:24, 8:24])
    with pytest.raises(ValueError, match="views: weak, strong0, strong1, test"):
        SmallImageViews()(images, "strong2", KEYS)


def test_normalise() -> None:
    images = photos(2)
    found = normalise(planes(images), CIFAR10_MEAN, CIFAR10_STD).permute(0, 2, 3, 1)
    np.testing.assert_allclose(found, (images / 255 - CIFAR10_MEAN) / CIFAR10_STD, atol=1e-5)


def test_random_resized_crop() -> None:
    ramp = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
    picture = Image.fromarray(np.stack([ramp, ramp.T, ramp], -1))
    widths = []
    for key in sample_keys(0, 0, np.arange(200), "c"):
        crop = np.asarray(random_resized_crop(picture, key_generator(key), 32, (0.2, 1.0))).astype(
            int
        )
        assert crop.shape == (32, 32, 3)
        width, height = np.ptp(crop[16, :, 0]), np.ptp(crop[:, 16, 1])
        widths.append(width * height / 64**2)
    assert 0.15 < min(widths) < 0.3
    assert max(widths) > 0.8
    # No large part of a very long image has an allowed aspect ratio: the centre is taken.
    long = Image.fromarray(np.zeros((4, 400, 3), np.uint8))
    assert random_resized_crop(long, key_generator(0), 8, (0.9, 1.0)).size == (8, 8)


def test_jitter_and_grey_probabilities() -> None:
    picture = Image.fromarray(photos(1)[0])
    original = np.asarray(picture)
    untouched = grey = 0
    for key in sample_keys(0, 0, np.arange(150), "j"):
        found = np.asarray(jitter_and_grey(picture, key_generator(key)))
        is_grey = (np.ptp(found, axis=2) == 0).all()
        grey += is_grey
        untouched += (found == original).all()
    assert 15 < grey < 45  # 30 expected, standard deviation 4.9
    assert 9 < untouched < 39  # 0.2 * 0.8 * 150 = 24 expected, standard deviation 4.5
