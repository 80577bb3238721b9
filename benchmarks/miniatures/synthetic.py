"""A tiny artificial data set in Fashion-MNIST's format, for tests and smoke runs.

Each class is a grating of its own direction and wavelength, with random phase and noise, so that a
network can learn it in a few steps. Proves nothing about images.
"""

import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.files import replacing

CLASSES = 10


def fashion_mnist(
    root: str | Path, train: int = 200, test: int = 80, image_size: int = 28, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Write the four IDX files into `root`, unless they are there, and return their provenance.
    `train` and `test` are numbers of images, spread evenly over the ten classes."""
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    files = {}
    for prefix, count in (("train", train), ("t10k", test)):
        labels = generator.permutation(np.arange(count) % CLASSES).astype(np.uint8)
        images = gratings(labels, image_size, generator)
        for name, values in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            content = idx_bytes(values)
            path = root / f"{prefix}-{name}"
            if not path.exists() or path.read_bytes() != content:
                with replacing(path) as file:
                    file.write(content)
            files[path.name] = hashlib.sha256(content).hexdigest()
    return {"synthetic-fashion-mnist": {"files": files, "licence": "CC0-1.0"}}


def gratings(
    labels: NDArray[np.uint8], size: int, generator: np.random.Generator
) -> NDArray[np.uint8]:
    """Return (N, size, size) uint8: class c at angle c * 36 degrees, two wavelengths, noisy."""
    angles = np.deg2rad(labels * 36.0)
    frequency = 2 * np.pi * np.where(labels % 2, 2.0, 4.0) / size
    y, x = np.mgrid[:size, :size]
    across = np.cos(angles)[:, None, None] * x + np.sin(angles)[:, None, None] * y
    phase = generator.uniform(0, 2 * np.pi, (len(labels), 1, 1))
    wave = np.sin(frequency[:, None, None] * across + phase)
    noise = generator.normal(0, 20, wave.shape)
    return (127 + 100 * wave + noise).clip(0, 255).astype(np.uint8)


def idx_bytes(values: NDArray[np.uint8]) -> bytes:
    """Encode as an IDX file of unsigned bytes."""
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return header + values.tobytes()
