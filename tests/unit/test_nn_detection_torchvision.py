"""In torchvision's convention our detector is torchvision's: same losses, same detections."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from methods.simcal import official
from methods.simcal.joint import JointDetector
from shared.checkpoints.reading import CheckpointError
from shared.tasks.detection import zoom

CLASSES, SIDE = 3, 128
SIZES, RATIOS, EVERY = [16, 32, 64, 128, 256], [0.5, 1.0, 2.0], 10**6


def theirs() -> Any:
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, trainable_layers=5, norm_layer=torch.nn.BatchNorm2d
    )
    model: Any = MaskRCNN(
        backbone, CLASSES + 1, min_size=SIDE, max_size=SIDE, image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        rpn_anchor_generator=AnchorGenerator([(size,) for size in SIZES], [tuple(RATIOS)] * 5),
        rpn_pre_nms_top_n_train=200, rpn_pre_nms_top_n_test=100, rpn_post_nms_top_n_train=60,
        rpn_post_nms_top_n_test=30, rpn_batch_size_per_image=EVERY, box_batch_size_per_image=EVERY,
        box_score_thresh=0.05, box_nms_thresh=0.5, box_detections_per_img=12,
    )  # fmt: skip
    with torch.no_grad():  # enough to tell boxes and classes apart
        for name, weights in model.named_parameters():
            if "cls_logits" in name or "bbox_pred" in name or "cls_score" in name:
                weights.add_(torch.randn_like(weights) * 0.05)
    return model


def ours() -> JointDetector:
    return JointDetector(
        detector={
            "backbone": {"_target_": "shared.nn.detection.backbones.ResNetFPN", "depth": 18},
            "num_classes": CLASSES,
            "legacy": False,
            "anchors": {"sizes": SIZES, "ratios": RATIOS},
            "proposals": {
                "train": {"before_nms": 200, "kept": 60},
                "test": {"before_nms": 100, "kept": 30},
                "nms": 0.7,
            },
            "box_head": {
                "resolution": 7, "hidden": 1024, "delta_stds": [[0.1, 0.1, 0.2, 0.2]],
                "positive_iou": [0.5],
            },
            "mask_head": {"resolution": 14, "width": 256},
            "class_agnostic": False,
        },
        selection={"threshold": 0.05, "nms": 0.5, "limit": 12},
        training={
            "anchors": {
                "count": EVERY, "positive_fraction": 0.5, "negative_iou_low": 0.0,
                "positive": 0.7, "negative": 0.3, "best": 0.01, "beta": 1 / 9,
            },
            "regions": {
                "count": EVERY, "positive_fraction": 0.25, "negative_iou_low": 0.0, "beta": 1 / 9,
            },
            "stage_weights": [1.0],
        },
        evaluation={"edges": [10], "most": None, "masks": False, "proposals": 0}, oracle=False,
        ema_decay=None,
        classification={"kind": "softmax"}, optimizer="sgd", lr=0.01, momentum=0.9,
        weight_decay=0.0, channels_last=False, seed=0,
        schedule={"every": "epoch", "cosine": None, "warm_up": 0, "milestones": [], "gamma": 0.1},
    )  # fmt: skip


@pytest.fixture(scope="module")
def pair() -> tuple[Any, JointDetector]:
    model, module = theirs(), ours()
    report = official.load(module, model.state_dict())
    assert list(report.fresh) == ["instances"]
    # BatchNorm keeps its statistics in our training, and dropout there is none.
    model.backbone.body.eval()
    return model, module


def scene() -> tuple[Tensor, list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(2, 3, SIDE, SIDE, generator=generator)
    boxes = [[[10.0, 12.0, 45.0, 50.0], [70.0, 60.0, 120.0, 125.0]], [[30.0, 20.0, 90.0, 64.0]]]
    targets = []
    for image, rows in enumerate(boxes):
        masks = torch.zeros(len(rows), SIDE, SIDE, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, rows, strict=True):
            mask[int(y1) : int(y2), int(x1) + 5 : int(x2)] = 1
        labels = torch.arange(len(rows)) % CLASSES + 1 + image
        targets.append({"boxes": torch.tensor(rows), "labels": labels, "masks": masks})
    return images, targets


def batch(images: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Any]:
    sizes = torch.tensor([[SIDE, SIDE]] * len(images))
    common = {"original_sizes": sizes, "indices": torch.arange(len(images))}
    return {"images": images, "sizes": sizes, "targets": targets, **common}


def test_losses_are_those_of_torchvision(pair: tuple[Any, JointDetector]) -> None:
    model, module = pair
    images, targets = scene()
    model.train()
    model.backbone.body.eval()
    expected = model(list(images), targets)
    terms = module.train().joint.losses(module.detector, batch(images, targets), 0, F.cross_entropy)
    names = {
        "loss_rpn_class": "loss_objectness",
        "loss_rpn_box": "loss_rpn_box_reg",
        "loss_class": "loss_classifier",
        "loss_box": "loss_box_reg",
        "loss_mask": "loss_mask",
    }
    for ours, name in names.items():
        torch.testing.assert_close(terms[ours], expected[name], atol=1e-5, rtol=1e-4)


def test_detections_are_those_of_torchvision(pair: tuple[Any, JointDetector]) -> None:
    model, module = pair
    images, targets = scene()
    given = batch(images, targets)
    module.eval()
    with torch.no_grad():
        expected = model.eval()(list(images))
        found = module.detect(given)
    assert torch.equal(zoom(given), torch.ones(2, 4))
    for image, theirs in enumerate(expected):
        own = found.valid[image]
        assert own.sum() == len(theirs["scores"]) > 0
        torch.testing.assert_close(found.scores[image][own], theirs["scores"])
        assert torch.equal(found.labels[image][own], theirs["labels"])
        torch.testing.assert_close(found.boxes[image][own], theirs["boxes"], atol=1e-3, rtol=1e-4)


def test_a_head_of_other_classes_is_refused(pair: tuple[Any, JointDetector]) -> None:
    model, module = pair
    state = model.state_dict()
    state["roi_heads.box_predictor.cls_score.bias"] = torch.zeros(CLASSES + 5)
    with pytest.raises(CheckpointError, match="cls_score"):
        official.load(module, state)
