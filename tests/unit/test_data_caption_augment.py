"""ALBEF's RandAugment: the official results, the two corrections, draws."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from shared.data.views import randaugment
from shared.data.views.randaugment import FOR_CAPTIONS as OPERATIONS
from shared.data.views.randaugment import OFFICIAL_FOR_CAPTIONS as OFFICIAL
from shared.data.views.randaugment import random_operations
from shared.randomness import key_generator

CASE = Path(__file__).parents[1] / "golden" / "albef" / "randaugment_ops"
auto_contrast = OPERATIONS["AutoContrast"][0]


def photo(size: int = 20, low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, (size, size, 3), np.uint8)


def test_golden_case() -> None:
    """Every operation as recorded, with the corrected two where they agree with the official."""
    image = load_file(CASE / "inputs.safetensors")["image"].astype(np.uint8)
    expected = load_file(CASE / "outputs.safetensors")
    seen = set()
    for recorded, value in expected.items():
        name, _, sign = recorded.partition("_")
        tables = [OFFICIAL] if name == "AutoContrast" else [OFFICIAL, OPERATIONS]
        for table in tables:
            found = randaugment.apply(name, image, 7, sign == "neg", table)
            assert np.abs(found.astype(int) - value).max() <= 1, recorded
        seen.add(name)
    assert seen | {"Identity"} == set(OPERATIONS)
    # A channel that has a zero is stretched in the same way.
    channel = int(np.flatnonzero(image.min(axis=(0, 1)) == 0)[0])
    found = auto_contrast(image)[..., channel].astype(int)
    assert np.abs(found - expected["AutoContrast"][..., channel]).max() <= 1


def test_magnitudes_are_those_of_the_configuration() -> None:
    config = json.loads((CASE / "case.json").read_text())["config"]
    image, level = photo(), config["M"]
    wanted = {
        "Brightness": randaugment.brightness(image, config["brightness_sharpness_factor"]),
        "ShearX": randaugment.shear_x(image, config["shear"]),
        "ShearY": randaugment.shear_y(image, config["shear"]),
        "TranslateX": randaugment.translate_x(image, config["translate_pixels"]),
        "TranslateY": randaugment.translate_y(image, config["translate_pixels"]),
        "Rotate": randaugment.rotate(image, config["rotate_degrees"]),
    }
    for name, expected in wanted.items():
        found = randaugment.apply(name, image, level, operations=OPERATIONS)
        np.testing.assert_array_equal(found, expected, err_msg=name)
    assert (level, config["fill"]) == (7, [randaugment.FILL] * 3)


def test_auto_contrast_stretches_each_channel() -> None:
    image = photo(low=40, high=200)
    image[..., 1] //= 4
    found = auto_contrast(image).astype(float)
    low, high = image.min(axis=(0, 1)), image.max(axis=(0, 1))
    np.testing.assert_allclose(found, (image - low) * 255.0 / (high - low), atol=1)
    assert (found.min(axis=(0, 1)) == 0).all()
    assert (found.max(axis=(0, 1)) == 255).all()
    assert (randaugment.auto_contrast(image) == 255).all()  # what the official code makes of it
    flat = np.full((4, 4, 3), 9, np.uint8)
    np.testing.assert_array_equal(auto_contrast(flat), flat)


def test_sharpness_clips() -> None:
    image = np.full((5, 5, 3), 250, np.uint8)
    image[2, 2] = 255  # sharpened beyond 255
    image[:, 4] = 0
    clipped = randaugment.apply("Sharpness", image, 10, operations=OPERATIONS)
    wrapped = randaugment.apply("Sharpness", image, 10, operations=OFFICIAL)
    assert (clipped[2, 2] == 255).all()
    assert (wrapped[2, 2] < 20).all()
    np.testing.assert_array_equal(clipped[0], image[0])  # the border stays


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 30), st.integers(3, 30), st.floats(0, 10), st.integers(0, 999), st.booleans())
def test_pure_and_bounded(height: int, width: int, level: float, key: int, official: bool) -> None:
    image = np.random.default_rng(key).integers(0, 256, (height, width, 3), np.uint8)
    kept = image.copy()
    known = OFFICIAL if official else OPERATIONS
    first = random_operations(image, key_generator(key), 3, level, 1.0, known)
    second = random_operations(image, key_generator(key), 3, level, 1.0, known)
    assert first.shape == image.shape
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(image, kept)


def test_draws_with_replacement_each_with_its_probability() -> None:
    """One key draws one operation in ten twice; a picture stays as it is if neither applies."""
    image = photo(16, 40, 200)
    unchanged = sum(
        np.array_equal(random_operations(image, key_generator(key), 2, 7, 0.5, OPERATIONS), image)
        for key in range(600)
    )
    expected = 600 * (0.5 + 0.5 / 10) ** 2  # not applied, or the identity; twice
    assert abs(unchanged - expected) < 4 * np.sqrt(expected)
    same = random_operations(image, key_generator(0), 2, 7, 0.0, OPERATIONS)
    np.testing.assert_array_equal(same, image)


def test_every_operation_and_both_signs_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    original = randaugment.apply

    def watched(name, image, level, negative, operations):
        signed = operations[name][2]
        seen.add((name, negative if signed else None))
        return original(name, image, level, negative, operations)

    monkeypatch.setattr(randaugment, "apply", watched)
    image = photo(8)
    for key in range(300):
        random_operations(image, key_generator(key), 2, 7, 0.5, OPERATIONS)
    signed = {name for name, entry in OPERATIONS.items() if entry[2]}
    expected = {(name, sign) for name in signed for sign in (True, False)}
    assert seen == expected | {(name, None) for name in OPERATIONS.keys() - signed}
    assert signed == {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"}
