"""Drawing, laying on a ground, scaling and comparing, against slow oracles."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.miniatures.emoji.render import (
    SIZE,
    area_resize,
    comparison_crops,
    draw,
    draw_all,
    is_drawn,
    near_pairs,
    on_ground,
    svg,
)

SQUARE = '<path fill="#f00" d="M0 0h8v8H0z"/>'


def slow_area(row: np.ndarray, size: int) -> list[int]:
    """Mean over the covered interval of a row, in exact fractions, rounded half up."""
    scale = Fraction(len(row), size)
    out = []
    for i in range(size):
        low, high = i * scale, (i + 1) * scale
        total = sum(
            (max(Fraction(0), min(high, j + 1) - max(low, j)) * int(v) for j, v in enumerate(row)),
            Fraction(0),
        )
        out.append(int(total / scale + Fraction(1, 2)))
    return out


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=20), st.integers(1, 12))
def test_area_resize_is_the_exact_mean(values: list[int], size: int) -> None:
    row = np.array(values, np.uint8)
    side = len(row)
    image = np.broadcast_to(row[None, None, :, None], (1, side, side, 1))
    expected = np.broadcast_to(slow_area(row, size), (size, size))
    np.testing.assert_array_equal(area_resize(image, size)[0, ..., 0], expected)
    turned = image.transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(area_resize(turned, size)[0, ..., 0], expected.T)


def test_area_resize_by_a_whole_factor_keeps_channels_apart() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 72, 72, 3)).astype(np.uint8)
    blocks = images.reshape(2, 36, 2, 36, 2, 3).astype(int).sum((2, 4))
    np.testing.assert_array_equal(area_resize(images, 36), (blocks + 2) // 4)


@pytest.mark.parametrize(("alpha", "expected"), [(0, 200), (255, 40), (128, 120)])
def test_ground_shows_through(alpha: int, expected: int) -> None:
    picture = np.array([[[[40, 40, 40, alpha]]]], np.uint8)
    assert on_ground(picture, 200)[0, 0, 0].tolist() == [expected] * 3


def test_icon_size_goes_before_the_sets() -> None:
    icons: dict[str, Any] = {
        "width": 16,
        "height": 16,
        "icons": {"whole": {"body": SQUARE, "width": 8, "height": 8}, "part": {"body": SQUARE}},
    }
    whole, part = draw(svg(icons, "whole")), draw(svg(icons, "part"))
    assert whole.shape == (SIZE, SIZE, 4)
    assert (whole == [255, 0, 0, 255]).all()
    assert (part[: SIZE // 2, : SIZE // 2] == [255, 0, 0, 255]).all()
    assert (part[SIZE // 2 :, :, 3] == 0).all()
    moved = {**icons, "left": 8, "top": 8}
    assert (draw(svg(moved, "part"))[..., 3] == 0).all(), "left and top shift the view"


def test_absent_and_tiny_icons() -> None:
    icons = {
        "icons": {
            "big": {"body": SQUARE, "width": 8, "height": 8},
            "dot": {"body": SQUARE, "width": 100, "height": 100},
        }
    }
    drawn = draw_all(["big", None, "dot"], icons)
    assert is_drawn(drawn).tolist() == [True, False, False]


def test_comparison_ignores_place_and_size() -> None:
    small, large = (np.zeros((72, 72, 4), np.uint8) for _ in range(2))
    small[10:22, 40:52] = [9, 90, 200, 255]
    large[:48, :48] = [9, 90, 200, 255]
    wide = np.zeros((72, 72, 4), np.uint8)
    wide[:24, :48] = [9, 90, 200, 255]
    crops = comparison_crops(np.stack([small, large, wide, np.zeros_like(small)]))
    np.testing.assert_array_equal(crops[0], crops[1])
    assert crops[2].reshape(24, 24, 3)[0].tolist() == [[255] * 3] * 24, "squared on white"
    assert (crops[3] == 255).all(), "nothing drawn"


def test_near_pairs() -> None:
    crops = np.array([[0.0, 0.0], [3.0, 3.0], [20.0, 20.0]], np.float32)
    assert near_pairs(crops, 4.0) == [(0, 1)]
    assert near_pairs(crops, 3.0) == []
