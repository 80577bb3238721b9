"""The RandAugment operations against the official code's recorded results, and their contract."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from shared.data.views import randaugment
from shared.data.views.per_image import CIFAR10_MEAN, CIFAR10_STD, normalise
from shared.randomness import key_generator

CASE = Path(__file__).parents[1] / "golden" / "comatch" / "augment_ops"


def augment_ops(
    config: Mapping[str, Any], inputs: Mapping[str, np.ndarray], names: list[str]
) -> dict[str, np.ndarray]:
    """Recompute the outputs `names` of the golden case; depends on no dimension or level."""
    image = inputs["image"].astype(np.uint8)
    height, width = image.shape[:2]
    crop_height = config["crop"][0]
    row, column = (int(v) for v in inputs["crop_offsets"])
    crop = randaugment.pad_crop(image, crop_height // 8, row, column)
    assert crop.shape[:2] == (height, width)
    results: dict[str, np.ndarray] = {
        "weak_crop": crop,
        "weak_crop_flip_normalized": normalise(
            randaugment.flip(crop), CIFAR10_MEAN, CIFAR10_STD
        ).numpy(),
    }
    for name in names:
        if name.startswith("L"):
            level, operation, *sign = name.split(".")
            results[name] = randaugment.apply(
                operation, image, float(level[1:]), negative=sign == ["neg"]
            )
        elif name.startswith("Cutout."):
            u1, u2 = inputs["cutout_draws"][int(name.split(".")[1])]
            results[name] = randaugment.cutout(image, float(u1), float(u2), size=16)
    return results


def test_golden_case() -> None:
    case = json.loads((CASE / "case.json").read_text())
    expected = load_file(CASE / "outputs.safetensors")
    found = augment_ops(case["config"], load_file(CASE / "inputs.safetensors"), list(expected))
    assert set(found) == set(expected)
    wrong = {
        name: float(np.abs(found[name] - value).max())
        for name, value in expected.items()
        if not np.allclose(found[name], value, atol=case["atol"], rtol=case["rtol"])
    }
    assert not wrong


def photo(size: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 255, (size, size, 3), np.uint8)


def test_the_adapter_reads_sizes_and_levels_from_the_files() -> None:
    inputs = {
        "image": photo(24).astype(np.float32),
        "crop_offsets": np.array([1, 2]),
        "cutout_draws": np.array([[0.5, 0.5]]),
    }
    names = ["L7.Solarize", "L3.ShearX.neg", "Cutout.0"]
    found = augment_ops({"levels": [7, 3], "crop": [24, 24]}, inputs, names)
    assert all(found[name].shape == (24, 24, 3) for name in [*names, "weak_crop"])
    assert (found["Cutout.0"] == 128).all(-1).sum() >= 16 * 16


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
