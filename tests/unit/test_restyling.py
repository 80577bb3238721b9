"""Drawings in other styles: what changes, and what stays."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.miniatures.emoji.render import draw
from benchmarks.zoo.restyling import COLOUR, leave_out, recolour, restyle

HEAD = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" width="72" height="72">'
PARTS = [
    '<path fill="#bdbdbd" d="M2 2h28v28H2z"/>',
    '<circle cx="16" cy="16" r="9" fill="#f00"/>',
    '<rect x="6" y="6" width="8" height="8" fill="#00f"/>',
    '<rect x="18" y="18" width="8" height="8" fill="#bdbdbd"/>',
]
DOCUMENT = f"{HEAD}{''.join(PARTS)}</svg>"


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(st.integers(0, 2**32 - 1))
def test_any_style_can_be_drawn_and_has_its_first_part(seed: int) -> None:
    styled = restyle(DOCUMENT, generator(seed))
    assert 'd="M2 2h28v28H2z"' in styled
    assert (draw(styled)[..., 3] > 0).any()


def test_a_style_is_a_function_of_the_generator() -> None:
    assert restyle(DOCUMENT, generator(3)) == restyle(DOCUMENT, generator(3))
    assert restyle(DOCUMENT, generator(3)) != restyle(DOCUMENT, generator(4))


def test_equal_colours_stay_equal_and_shapes_stay() -> None:
    moved = recolour(DOCUMENT, generator())
    grey, red, blue, again = COLOUR.findall(moved)
    assert grey == again
    assert len({grey, red, blue}) == 3
    assert COLOUR.sub("", moved) == COLOUR.sub("", DOCUMENT)


@pytest.mark.parametrize(("share", "left"), [(0.0, 4), (1.0, 1)])
def test_parts_are_left_out_but_the_first(share: float, left: int) -> None:
    body = leave_out(DOCUMENT.split(">", 1)[1], share, generator())
    assert len(re.findall("<(?:path|circle|rect)", body)) == left
    assert body.endswith("</svg>")


def test_parts_that_stand_for_others_stay() -> None:
    shared = DOCUMENT.replace(PARTS[0], f'<defs>{PARTS[0]}</defs><use href="#a"/>')
    for seed in range(30):
        assert restyle(shared, generator(seed)).count("<rect") == 2


def test_some_styles_are_outlined_by_the_size_of_the_drawing() -> None:
    styled = [restyle(DOCUMENT, generator(seed)) for seed in range(200)]
    widths = [float(w) for s in styled for w in re.findall(r'stroke-width="([^"]+)"', s)]
    assert 0.15 < len(widths) / len(styled) < 0.35
    assert min(widths) > 0.25  # of a side of 32
    assert max(widths) < 0.97
