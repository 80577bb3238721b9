"""Square-root balanced epochs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.mopro.resampling import SquareRootPass, repeat_factors

LABELS = np.repeat([0, 1, 2], [400, 100, 25])


def test_factors_by_hand() -> None:
    assert repeat_factors(LABELS).tolist() == [10, 20, 40]


def test_an_absent_class_gets_no_factor() -> None:
    assert repeat_factors(np.array([0, 0, 2])).tolist() == [10, 0, 14]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=12))
def test_factors_grow_with_rarity_and_round_down(counts: list[int]) -> None:
    factors = repeat_factors(np.repeat(np.arange(len(counts)), counts))
    order = np.argsort(counts)
    assert (np.diff(factors[order]) <= 0).all()
    exact = 10 * np.sqrt(max(counts) / np.array(counts))
    assert (factors <= exact + 1e-9).all()
    # Official rounding: what is exactly an integer may come out one lower, 10 as 9 even.
    assert (factors > exact - 1 - 1e-9).all()


def test_class_shares_follow_the_square_root() -> None:
    stream = SquareRootPass(3, LABELS)
    drawn = np.concatenate([LABELS[stream.draws(epoch).positions] for epoch in range(40)])
    share = np.bincount(drawn) / len(drawn)
    # listed 4000, 2000, 1000 of 7000
    assert share == pytest.approx([4 / 7, 2 / 7, 1 / 7], abs=0.02)


def test_epoch_is_a_function_of_seed_and_epoch() -> None:
    def positions(seed: int, epoch: int) -> list[int]:
        return SquareRootPass(seed, LABELS).draws(epoch).positions.tolist()

    assert len(SquareRootPass(0, LABELS)) == len(positions(0, 0)) == len(LABELS)
    assert positions(0, 1) == positions(0, 1)
    assert positions(0, 1) != positions(0, 2)
    assert positions(0, 1) != positions(1, 1)


def test_no_image_is_drawn_more_often_than_it_is_listed() -> None:
    counts = np.bincount(SquareRootPass(0, LABELS).draws(0).positions, minlength=len(LABELS))
    assert (counts <= repeat_factors(LABELS)[LABELS]).all()
    assert counts.max() > 1


def test_repeated_images_get_other_augmentations() -> None:
    draws = SquareRootPass(0, LABELS).draws(2)
    pairs = set(zip(draws.positions.tolist(), draws.passes.tolist(), strict=True))
    assert len(pairs) == len(LABELS)
