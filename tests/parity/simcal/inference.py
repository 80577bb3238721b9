"""Dual-head inference, and the losses that SimCal is compared with."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from methods.simcal import official
from methods.simcal.dual_head import combine, stage_mean
from methods.simcal.losses import (
    effective_number_weights,
    inverse_weights,
    sum_of_focal,
    weighted,
)
from shared.nn.detection.detector import Detector
from shared.nn.detection.selection import Detections, select

from .building import below, box_head, calibration_head, fill
from .regions import LEGACY

Inputs, Outputs = dict[str, Tensor], dict[str, Any]


def detected(config: dict, images: Tensor, boxes: Tensor, scores: Tensor) -> Outputs:
    """Boxes with scores, and labels from 0: class by class and region by region, as they were in
    `boxes` (M, 1 or K + 1, 4), unless there were too many."""
    limit = config["max_per_img"]
    detections = selected(config, images, boxes, scores, limit)
    own = detections.valid[0]
    found, labels = detections.boxes[0][own], detections.labels[0][own]
    order = torch.arange(len(labels))
    if selected(config, images, boxes, scores, limit + 1).valid.sum() <= limit:
        of_label = boxes[:, labels if boxes.shape[1] > 1 else torch.zeros_like(labels)]
        region = (of_label == found).all(dim=2).int().argmax(dim=0)
        order = (labels * len(boxes) + region).argsort()
    written = torch.cat([found, detections.scores[0][own][:, None]], dim=1)[order]
    return {"det_bboxes": written, "det_labels": labels[order] - 1}


def selected(config: dict, images: Tensor, boxes: Tensor, scores: Tensor, limit: int) -> Detections:
    return select(
        LEGACY, images, boxes, scores, 1, config["score_thr"], config.get("nms_iou", 0.5), limit
    )


def dual_head_inference(config: dict, inputs: Inputs, weights: Inputs) -> Outputs:
    regions, size = inputs["rois"], torch.tensor(config["img_shape"][:2])
    deltas = inputs["bbox_pred"].unflatten(1, (-1, 4))
    boxes = LEGACY.decode(regions[:, None, 1:], deltas, config["target_stds"])
    boxes = LEGACY.clip(boxes, size) / config["scale_factor"]
    scores = combine(
        inputs["cls_score"], inputs["cal_cls_score"], inputs["instance_count"],
        config["threshold"], "dual",
    )  # fmt: skip
    detections = detected(config, regions[:, 0].long(), boxes, scores)
    return {"boxes": boxes.flatten(1), "scores": scores, **detections}


def dual_head_inference_coco_lt(config: dict, inputs: Inputs, weights: Inputs) -> Outputs:
    return dual_head_inference(config, inputs, weights)


def dual_head_inference_lvis(config: dict, inputs: Inputs, weights: Inputs) -> Outputs:
    return dual_head_inference(config, inputs, weights)


def dual_head_inference_clswise(config: dict, inputs: Inputs, weights: Inputs) -> Outputs:
    return dual_head_inference(config, inputs, weights)


def dual_head_inference_htc(config: dict, inputs: Inputs, weights: Inputs) -> Outputs:
    heads, calibrated = [], []
    for stage, stds in enumerate(config["target_stds"]):
        heads.append(box_head(config, stds=stds))
        fill(heads[-1], official.BOX_HEAD, below(weights, f"bbox_head.{stage}."))
        calibrated.append(calibration_head(config, 3))
        fill(calibrated[-1], official.THREE_LAYERS, below(weights, f"cal_head.{stage}."))
    proposals = inputs["proposals"]
    regions = torch.cat([torch.zeros_like(proposals[:, :1]), proposals], dim=1)
    sizes = torch.tensor([config["img_shape"][:2]])
    features = (inputs[f"roi_feats.{stage}"] for stage in range(len(heads)))
    parts = SimpleNamespace(
        box_heads=heads, geometry=LEGACY, box_features=lambda *_: next(features)
    )
    stages = Detector.run_stages(parts, [], regions, sizes)  # type: ignore[arg-type]
    cal = [head(features) for head, features in zip(calibrated, stages.features, strict=True)]
    counts, threshold = inputs["instance_count"], config["threshold"]
    scores = combine(stage_mean(stages.logits), stage_mean(cal), counts, threshold, "dual")
    boxes = stages.boxes / config["scale_factor"]
    outputs = detected(config, regions[:, 0].long(), boxes, scores)
    for name, parts in (("rois", stages.rois), ("cls_score", stages.logits), ("cal_score", cal)):
        outputs |= {f"{name}.{stage}": part for stage, part in enumerate(parts)}
    return outputs


def class_balanced_reweighting(config: dict, inputs: Inputs, weights: Inputs) -> Outputs:
    counts, clip = inputs["instance_count"], config["clip"]
    background = config["background_weight"]
    outputs: Outputs = {}
    for name, by_class in (
        ("inverse", inverse_weights(counts, None, background, clip)),
        ("effective_number", effective_number_weights(counts, config["beta"], background, clip)),
    ):
        logits = inputs["cls_score"].clone().requires_grad_()
        loss = weighted(by_class)(logits, inputs["labels"])
        loss.backward()
        outputs |= {f"weight_{name}": by_class, f"loss_{name}": loss}
        outputs[f"grad_cls_score_{name}"] = logits.grad
    return outputs


def sigmoid_focal_loss(config: dict, inputs: Inputs, weights: Inputs) -> Outputs:
    pred = inputs["pred"].clone().requires_grad_()
    total = sum_of_focal(pred, inputs["labels"], config["gamma"], config["alpha"])
    loss = total / config["avg_factor"]
    loss.backward()
    return {"loss": loss, "grad_pred": pred.grad}
