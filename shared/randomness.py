"""Counter-based random numbers: every draw is a pure function of (seed, epoch, sample index, view).

A sequential generator makes an image's augmentation depend on which images came before it, hence on
the number of workers and on where a run was interrupted. Here each sample has a 64-bit key, hashed
from its four coordinates, and its j-th number is a hash of (key, j). "Epoch" is the number of the
pass over the sample's set, of which a training epoch may have several. The hash is the finaliser of
SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), vectorised in numpy.
"""

import hashlib

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def sample_keys(seed: int, epoch: ArrayLike, indices: ArrayLike, view: str) -> NDArray[np.uint64]:
    """64-bit keys (N,) of samples; `epoch` is one number or one per sample, `view` any name."""
    index = np.atleast_1d(np.asarray(indices)).astype(np.uint64)
    passes = np.broadcast_to(np.asarray(epoch), index.shape).astype(np.uint64)
    key = _mix(np.array([seed & (2**64 - 1)], np.uint64) + _GOLDEN)
    key = _mix((key ^ _view_code(view)) + _GOLDEN)
    key = _mix((key ^ passes) + _GOLDEN)
    return _mix((key ^ index) + _GOLDEN)


def key_uniforms(keys: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    """Numbers (N, count) in [0, 1) for (N,) keys; a larger count only appends columns."""
    counters = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(keys[:, None] + counters)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniforms(
    seed: int, epoch: ArrayLike, indices: ArrayLike, view: str, count: int
) -> NDArray[np.float64]:
    """Numbers (N, count) in [0, 1): a pure function of the arguments, row by row."""
    return key_uniforms(sample_keys(seed, epoch, indices, view), count)


def key_generator(key: np.uint64 | int) -> np.random.Generator:
    """A numpy generator of its own for one sample, for draws whose number is not fixed."""
    return np.random.Generator(np.random.Philox(key=int(key)))


def torch_generator(seed: int, step: int, purpose: str) -> torch.Generator:
    """A CPU generator for what one step (or epoch) draws as a whole, e.g. a permutation. Hashed,
    because torch keeps only the low 32 bits of the number that it is seeded by."""
    key = sample_keys(seed, step, [0], purpose)[0]
    return torch.Generator().manual_seed(int(key >> np.uint64(1)))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def _view_code(view: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(view.encode(), digest_size=8).digest(), "big"))
