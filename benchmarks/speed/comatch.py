"""CoMatch beside the one of USB: PyPI `semilearn`, its own train step, update and EMA hooks."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.peer_environment import PeerPackage
from benchmarks.speed.protocol import Comparison

PEER = PeerPackage(
    requirement="semilearn==0.3.2",
    dependencies=(
        "numpy",
        "pillow",
        "progress",
        "ruamel.yaml",
        "scikit-image",
        "scikit-learn",
        "scipy",
        "tensorboard",
        "timm",
        "tqdm",
        "transformers",
    ),
)
OURS_MODULE = "benchmarks.speed.comatch_ours"
PEER_MODULE = "benchmarks.speed.comatch_peer"

SETTINGS: dict[str, Any] = {"batch_size": 16, "mu": 7, "num_labels": 40, "seed": 0}
WARM_UP_STEPS = 2

HEADER = """\
CoMatch training step, WRN-28-2, B 16, mu 7: 352 images of 32 px
peer: semilearn 0.3.2, its CoMatch.train_step with its ParamUpdateHook and EMAHook
what differs:
- ours: channels-last layout, freed memory kept, on huge pages; peer: as it is
- ours writes curves of pseudo-label and graph quality; peer reads five scalars per step
- projection: leaky ReLU here, ReLU there; the peer's first convolution has a bias
- the first blocks of stages 2 and 3 convolve the activated input here, the raw input there
- strong1 (second table): crop, jitter and grey here, a second RandAugment there
- loading happens in the training process on both sides, so that no batch is made while a side \
stands still"""

STEP = (
    Comparison("float32", "float32", "float32"),
    Comparison("bf16 autocast, peer float32", "bf16", "float32"),
    Comparison("float32, in Lightning's Trainer", "float32 trainer", "float32"),
    Comparison("bf16 autocast on both sides", "bf16", "bf16"),
)
WITH_LOADING = (
    Comparison("float32", "float32 loading", "float32 loading"),
    Comparison("bf16 autocast, peer float32", "bf16 loading", "float32 loading"),
)


def make_data(root: Path, settings: dict[str, Any] = SETTINGS, images_per_file: int = 1000) -> Path:
    """Random images in CIFAR-10's format below `root`, for both sides; returns `root`."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels = random.integers(0, 256, (images_per_file, 3 * 32 * 32), dtype=np.uint8)
        labels = [i % 10 for i in range(images_per_file)]
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels}))
    names = [f"class {i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    return root
