"""The detector of PB-OVD at a size for scenes of coloured rectangles, and files of them."""

from typing import Any

import torch
from torch import Tensor

from methods.pb_ovd.module import OpenVocabularyDetector
from tests.unit.detection_toy import content

CLASSES, DIM = 4, 6


def settings(**more: Any) -> dict[str, Any]:
    detector = {
        "backbone": {
            "_target_": "methods.pb_ovd.network.ResNetC4", "stem": 8, "outputs": 8, "width": 4,
            "blocks": [1, 1, 1],
        },
        "num_classes": CLASSES, "legacy": True, "detectron": True,
        "anchors": {"sizes": [[8, 16]], "ratios": [0.5, 1.0]},
        "proposals": {
            "train": {"before_nms": 60, "kept": 24}, "test": {"before_nms": 60, "kept": 20},
            "nms": 0.7,
        },
        "box_head": {
            "_target_": "methods.pb_ovd.network.RegionEmbedder", "resolution": 6, "outputs": 16,
            "width": 8, "blocks": 2, "stride": 2, "dim": DIM,
            "delta_stds": [0.1, 0.1, 0.2, 0.2], "positive_iou": 0.5,
        },
        "mask_head": None, "class_agnostic": True,
    }  # fmt: skip
    training = {
        "anchors": {
            "count": 32, "positive_fraction": 0.5, "negative_iou_low": 0.0, "positive": 0.6,
            "negative": 0.3, "best": 0.0, "beta": 1 / 9, "inside": True, "own_truth": True,
        },
        "regions": {
            "count": 16, "positive_fraction": 1.0, "negative_iou_low": 0.0, "beta": 1.0,
        },
        "stage_weights": [1.0],
    }  # fmt: skip
    return {
        "detector": detector, "training": training, "background_weight": 0.2,
        "freeze_embedding": False, "selection": {"threshold": 0.05, "nms": 0.5, "limit": 8},
        "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4,
        "schedule": {"warm_up": 4, "start": 0.25, "milestones": [8], "gamma": 0.1},
        "channels_last": False, "seed": 3,
    } | more  # fmt: skip


def detector(kind: type = OpenVocabularyDetector, **more: Any) -> Any:
    torch.manual_seed(0)
    module = kind(**settings(**more))
    module.texts.copy_(texts(CLASSES))
    return module


def texts(classes: int) -> Tensor:
    """(classes + 1, DIM), the background first."""
    generator = torch.Generator().manual_seed(classes)
    found = torch.randn(classes + 1, DIM, generator=generator)
    found[0] = 0
    return found


def described() -> dict[str, Any]:
    """`detection_toy.content` with embedded names: dog is novel."""
    found = content()
    cup, dog = found["categories"]
    cup |= {"embedding": {"ClipEmb": [1.0, 2.0]}, "split": "seen"}
    dog |= {"embedding": {"ClipEmb": [3.0, 4.0]}, "split": "unseen"}
    return found
