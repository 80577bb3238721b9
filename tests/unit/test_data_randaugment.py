"""The contract of the RandAugment operations, beyond their golden vectors."""

import numpy as np
import pytest

from shared.data.views import randaugment
from shared.randomness import key_generator


def photo(size: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 255, (size, size, 3), np.uint8)


def test_operations_are_pure_and_bounded() -> None:
    image = photo()
    kept = image.copy()
    for name in randaugment.OPERATIONS:
        for level in (0, 3.5, 10):
            for negative in (False, True):
                out = randaugment.apply(name, image, level, negative)
                assert out.shape == image.shape
                assert out.dtype == np.uint8
    np.testing.assert_array_equal(image, kept)
    with pytest.raises(KeyError):
        randaugment.apply("Invert", image, 10)


def test_geometry_has_the_documented_direction() -> None:
    image = photo()
    np.testing.assert_array_equal(randaugment.translate_x(image, 3)[:, :-3], image[:, 3:])
    assert (randaugment.translate_x(image, 3)[:, -3:] == 128).all()
    np.testing.assert_array_equal(randaugment.translate_y(image, -2)[2:], image[:-2])
    # A quarter turn counter-clockwise about (W/2, H/2): one row is lost to that centre.
    turned = randaugment.rotate(image, 90)
    np.testing.assert_array_equal(turned[1:], np.rot90(image)[:-1])


def test_table_operations() -> None:
    image = photo()
    np.testing.assert_array_equal(randaugment.solarize(image, 256), image)
    np.testing.assert_array_equal(randaugment.solarize(image, 0), 255 - image)
    assert set(np.unique(randaugment.posterize(image, 4) % 16)) == {0}
    np.testing.assert_array_equal(randaugment.brightness(image, 1), image)
    flat = np.full((8, 8, 3), 9, np.uint8)
    np.testing.assert_array_equal(randaugment.equalize(flat), flat)
    np.testing.assert_array_equal(randaugment.auto_contrast(flat), flat)
    assert (randaugment.auto_contrast(image) == 255).all()  # the official oddity
    image[0, 0] = 0
    stretched = randaugment.auto_contrast(image)
    assert (stretched.min(), stretched.max()) == (0, 255)


def test_rand_augment_applies_each_operation_with_probability_one_half() -> None:
    image = photo()
    untouched = 0
    for key in range(400):
        out = randaugment.rand_augment(image, key_generator(key), cutout_size=0)
        untouched += np.array_equal(out, image)
    # Neither of two applied: 1/4; identity and the level-10 solarize leave the image as it is.
    expected = (0.5 + 0.5 * 2 / 14) ** 2 * 400
    assert abs(untouched - expected) < 40
