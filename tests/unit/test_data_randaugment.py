"""The RandAugment operations against the official code's recorded results, and their contract."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from shared.data import randaugment
from shared.data.transforms import CIFAR10_MEAN, CIFAR10_STD, normalise

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
