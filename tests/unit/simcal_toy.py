"""Scenes of coloured rectangles, and the modules of SimCal at a size for them."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from methods.simcal.joint import JointDetector
from methods.simcal.module import SimCal

SIDE, CLASSES = 48, 4
COLOURS = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1]])
SCHEDULE = {"every": "step", "cosine": None, "warm_up": 0, "milestones": [], "gamma": 0.1}

JOINT: dict[str, Any] = {
    "anchors": {
        "count": 32, "positive_fraction": 0.5, "negative_iou_low": 0.0,
        "positive": 0.6, "negative": 0.3, "best": 0.2, "beta": 1 / 9,
    },
    "regions": {
        "count": 16, "positive_fraction": 0.25, "negative_iou_low": 0.0, "beta": 1.0,
    },
    "stage_weights": [1.0],
}  # fmt: skip


def detector(masks: bool = True, stages: int = 1, **more: Any) -> dict[str, Any]:
    settings = {
        "backbone": {
            "_target_": "shared.nn.detection.backbones.SmallBackbone",
            "channels": [8, 12, 12, 12],
        },
        "num_classes": CLASSES,
        "legacy": True,
        "anchors": {"sizes": [14], "ratios": [1.0]},
        "proposals": {
            "train": {"before_nms": 60, "kept": 24},
            "test": {"before_nms": 60, "kept": 20},
            "nms": 0.7,
        },
        "box_head": {
            "resolution": 5, "hidden": 24, "delta_stds": [[0.1, 0.1, 0.2, 0.2]] * stages,
            "positive_iou": [0.5, 0.6, 0.7][:stages],
        },
        "mask_head": {"resolution": 6, "width": 8} if masks else None,
        "class_agnostic": True,
    }  # fmt: skip
    return settings | more


def common(**more: Any) -> dict[str, Any]:
    selection = {"threshold": 0.02, "nms": 0.5, "limit": 8}
    evaluation = {"edges": [10, 100], "most": None, "masks": False, "proposals": 0}
    return {
        "detector": detector(), "selection": selection, "evaluation": evaluation,
        "channels_last": False, "seed": 3,
    } | more  # fmt: skip


def joint(**more: Any) -> JointDetector:
    stages = len(more.get("detector", detector())["box_head"]["positive_iou"])
    settings = common(
        training={**JOINT, "stage_weights": [1.0, 0.5, 0.25][:stages]},
        classification={"kind": "softmax"}, optimizer="adamw", lr=3e-3, momentum=0.9,
        weight_decay=1e-4, schedule=SCHEDULE, ema_decay=None, oracle=False,
    )  # fmt: skip
    torch.manual_seed(0)
    return JointDetector(**(settings | more))


def calibration(kind: type = SimCal, **more: Any) -> Any:
    settings = common(
        head="3fc_ft", tau=1.0, threshold=20, combination="dual",
        regions={"count": 16, "positive_fraction": 0.5, "negative_iou_low": 0.1},
        lr=0.05, momentum=0.0, drops=[7, 10], gamma=0.1,
    )  # fmt: skip
    torch.manual_seed(1)
    return kind(**(settings | more))


def scenes(count: int, seed: int = 0) -> dict[str, Any]:
    """A batch of images with one to three rectangles each; a class has a colour."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    images = 0.1 * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    targets: list[dict[str, Tensor]] = []
    for image in images:
        boxes, labels, masks = [], [], []
        for corner in range(1 + draw(0, 3)):  # each in a quarter of its own
            side, k = draw(10, 18), draw(0, CLASSES)
            x, y = 24 * (corner % 2) + draw(0, 5), 24 * (corner // 2) + draw(0, 5)
            image[:, y : y + side, x : x + side] = COLOURS[k][:, None, None]
            mask = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
            mask[y : y + side, x : x + side] = 1
            boxes.append([x, y, x + side - 1.0, y + side - 1.0])
            labels.append(k + 1)
            masks.append(mask)
        target = {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels)}
        targets.append(target | {"masks": torch.stack(masks), "crowd_boxes": torch.zeros(0, 4)})
    sizes = torch.tensor([[SIDE, SIDE]] * count)
    drawn_for = torch.stack([target["labels"][0] for target in targets])
    return {
        "images": images, "sizes": sizes, "original_sizes": sizes, "targets": targets,
        "image_ids": torch.arange(count), "indices": torch.arange(count),
        "sampled_classes": drawn_for,
    }  # fmt: skip


def calibrated(**more: Any) -> SimCal:
    """A `SimCal` that starts from `trained`."""
    module = calibration(**more)
    module.load_state_dict(trained().state_dict(), strict=False)
    module.start_heads()
    return module.eval()


@cache
def trained(steps: int = 60) -> JointDetector:
    """A joint detector after so many steps, the same one in every call."""
    module = joint()
    module.instances.copy_(torch.tensor([100, 50, 19, 5]))
    optimizer = torch.optim.AdamW(module.parameters(), 3e-3)
    for step in range(steps):
        loss = module.training_step(scenes(6, step), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.eval()
