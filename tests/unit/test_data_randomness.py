"""Counter-based draws: pure, independent of grouping, uniform."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.randomness import key_generator, key_uniforms, sample_keys, torch_generator, uniforms

seeds = st.integers(-(2**40), 2**70)
coordinates = st.integers(0, 2**40)


@settings(max_examples=25, deadline=None)
@given(seeds, st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=8))
def test_a_row_depends_on_its_own_coordinates_only(seed: int, pairs: list) -> None:
    epochs, indices = np.array(pairs).T
    together = uniforms(seed, epochs, indices, "weak", 5)
    alone = [uniforms(seed, e, [i], "weak", 3)[0] for e, i in pairs]
    assert (together[:, :3] == alone).all()
    assert ((together >= 0) & (together < 1)).all()


def test_every_coordinate_matters() -> None:
    base = uniforms(1, 2, [3], "weak", 4)
    others = [(2, 2, [3], "weak"), (1, 3, [3], "weak"), (1, 2, [4], "weak"), (1, 3, [2], "weak")]
    for other in [*others, (1, 2, [3], "strong0")]:
        assert (base != uniforms(*other, 4)).all()


def test_known_values() -> None:
    """A change of the hash would change every published result: it must be deliberate.

    The first is the published first output of SplitMix64 from state 0.
    """
    assert key_uniforms(np.zeros(1, np.uint64), 1)[0, 0] == (0xE220A8397B1DCDAF >> 11) / 2**53
    expected = [0.005110777315282533, 0.2072458538972486]
    np.testing.assert_array_equal(uniforms(0, 0, [0], "weak", 2)[0], expected)


def test_uniform_and_uncorrelated() -> None:
    draws = uniforms(0, 0, np.arange(50_000), "weak", 4)
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    chi_square = ((counts - 10_000) ** 2 / 10_000).sum()
    assert chi_square < 50  # 19 degrees of freedom: 50 is beyond the 99.98th percentile
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.02
    assert abs(np.corrcoef(draws[1:, 0], draws[:-1, 0])[0, 1]) < 0.02


def test_key_generator_is_pure() -> None:
    keys = sample_keys(0, 0, [1, 2], "weak")
    first = [key_generator(k).random(3) for k in keys]
    again = [key_generator(k).random(3) for k in keys]
    np.testing.assert_array_equal(first, again)
    assert (first[0] != first[1]).all()
    assert key_uniforms(keys, 0).shape == (2, 0)


def test_torch_generator_depends_on_seed_step_and_purpose() -> None:
    def drawn(seed: int, step: int, purpose: str) -> tuple:
        return tuple(torch.rand(4, generator=torch_generator(seed, step, purpose)).tolist())

    assert drawn(1, 2, "shuffle") == drawn(1, 2, "shuffle")
    others = [(1, 2, "shuffle"), (2, 2, "shuffle"), (1, 3, "shuffle"), (2, 1, "shuffle")]
    assert len({drawn(*other) for other in [*others, (1, 2, "negatives")]}) == 5
