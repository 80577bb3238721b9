"""Our module at the sizes that a case gives, with weights through the official importer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from methods.pb_ovd import official
from methods.pb_ovd.module import OpenVocabularyDetector
from methods.pb_ovd.network import RegionEmbedder
from shared.checkpoints.official import KeyTable, Rule, export_official, import_official
from shared.nn.detection.geometry import Geometry
from shared.nn.detection.matching import Assignment, Quota, Sample
from shared.nn.detection.matching import sample as draw_sample
from shared.tasks import detection

from ..recording import gradients_as_weights

STDS = (0.1, 0.1, 0.2, 0.2)  # weights 10, 10, 5 and 5 of the official coder
DETECTRON = Geometry(legacy=True, detectron=True)
SCHEDULE = {"warm_up": 500, "start": 1 / 3, "milestones": [60000, 120000], "gamma": 0.1}
Config = dict[str, Any]


def training(config: Config) -> Config:
    """Settings of `JointTraining`."""
    return {
        "anchors": {
            "count": config.get("rpn_batch", 256), "positive_fraction": 0.5,
            "negative_iou_low": 0.0, "positive": 0.7, "negative": 0.3, "best": 0.0,
            "beta": 1 / 9, "inside": True, "own_truth": True,
        },
        "regions": {
            "count": config.get("roi_batch", 512),
            "positive_fraction": config.get("roi_positive_fraction", 1.0),
            "negative_iou_low": 0.0, "beta": 1.0,
        },
        "stage_weights": [1.0],
    }  # fmt: skip


def proposal_counts(config: Config) -> Config:
    counts = {
        phase: {"before_nms": config[f"pre_nms_{phase}"], "kept": config[f"post_nms_{phase}"]}
        for phase in ("train", "test")
    }
    return {**counts, "nms": 0.7}


def module(config: Config, **more: Any) -> OpenVocabularyDetector:
    """The whole detector; a case's `num_classes` counts the background."""
    stage = config["res2"]
    backbone = {
        "_target_": "methods.pb_ovd.network.ResNetC4", "stem": config["stem"], "outputs": stage,
        "width": config["width"],
    }  # fmt: skip
    box_head = {
        "_target_": "methods.pb_ovd.network.RegionEmbedder",
        "resolution": config["pooler_resolution"], "outputs": 8 * stage,
        "width": 8 * config["width"], "blocks": 3, "stride": 2, "dim": config["emb_dim"],
        "delta_stds": STDS, "positive_iou": 0.5,
    }  # fmt: skip
    detector = {
        "backbone": backbone, "num_classes": config["num_classes"] - 1, "legacy": True,
        "detectron": True,
        "anchors": {"sizes": [config["anchor_sizes"]], "ratios": config["aspect_ratios"]},
        "proposals": proposal_counts(config), "box_head": box_head, "mask_head": None,
        "class_agnostic": True,
    }  # fmt: skip
    settings = {
        "detector": detector, "training": training(config),
        "background_weight": config["bg_weight"],
        "freeze_embedding": config["freeze_emb_pred"],
        "selection": {"threshold": config["score_thresh"], "nms": 0.5, "limit": 100},
        "lr": config["base_lr"], "momentum": 0.9, "weight_decay": config["weight_decay"],
        "schedule": SCHEDULE, "channels_last": False, "seed": 0,
    }  # fmt: skip
    return OpenVocabularyDetector(**{**settings, **more})


def head(config: Config, weights: dict[str, Tensor]) -> RegionEmbedder:
    """The layers behind the trunk, of a case that gives regions as the trunk leaves them."""
    size = config["in_channels"]
    found = RegionEmbedder(size, size, size, 1, 1, config["emb_dim"], STDS, 0.5)
    found.trunk = nn.Sequential()
    import_official(weights, KeyTable([Rule("{rest}", "{rest}")]), found)
    return found


def loss_module(config: Config, weights: dict[str, Tensor]) -> OpenVocabularyDetector:
    """A module around a `head`, which alone it runs."""
    sizes = {"stem": 4, "res2": 4, "width": 4, "pooler_resolution": 2, "anchor_sizes": [16],
             "aspect_ratios": [1.0], "pre_nms_train": 1, "post_nms_train": 1, "pre_nms_test": 1,
             "post_nms_test": 1, "score_thresh": 0.05}  # fmt: skip
    found = module({**sizes, **config})
    learns = found.detector.box_heads[0].emb_pred.weight.requires_grad
    found.detector.box_heads[0] = head(config, weights)
    found.detector.box_heads[0].emb_pred.requires_grad_(learns)
    return found


def official_names(net: nn.Module, prefix: str, table: KeyTable | None = None) -> dict[str, Tensor]:
    """Copies of a network's state under the official names, `prefix` in front."""
    if isinstance(net, OpenVocabularyDetector):
        state = official.export(net)["model"]
    else:
        state = export_official(net, table or KeyTable([Rule("{rest}", "{rest}")]))
    return {f"{prefix}.{name}": value.clone() for name, value in state.items()}


def gradients(net: nn.Module, table: KeyTable | None = None) -> dict[str, Tensor]:
    with gradients_as_weights(net):
        return official_names(net, "grad", table)


def draws(inputs: dict[str, Tensor]) -> Iterator[Tensor]:
    """The permutations of a case in the order of the official calls."""
    number = 0
    while f"randperm.{number}" in inputs:
        yield inputs[f"randperm.{number}"]
        number += 1


@contextmanager
def given_draws(
    permutations: Iterator[Tensor], truths: Sequence[int], anchors: bool = True
) -> Iterator[list[tuple[Assignment, Sample]]]:
    """Inside, boxes are sampled by these permutations, of each image's positives and negatives;
    yields what is sampled from, and the sample, of each call.

    Args:
        truths: of each image; the official code appends them to its proposals, which here they
            precede.
        anchors: the first call samples anchors, to which nothing is appended.
    """
    calls: list[tuple[Assignment, Sample]] = []

    def drawn(assignment: Assignment, priority: Tensor, quota: Quota) -> Sample:
        priority = torch.zeros_like(priority)
        for row, own in enumerate(assignment.truths):
            for candidates in (own >= 0, own == -1):
                places = candidates.nonzero()[:, 0]
                if calls or not anchors:
                    ahead = max(truths)
                    places = torch.cat([places[places >= ahead], places[places < ahead]])
                order = next(permutations)
                assert len(order) == len(places)
                priority[row, places[order]] = torch.arange(len(order)).to(priority)
        calls.append((assignment, draw_sample(assignment, priority, quota)))
        return calls[-1][1]

    with patch.object(detection, "sample", drawn):
        yield calls


def targets(inputs: dict[str, Tensor], images: int, labels: bool = True) -> list[dict[str, Tensor]]:
    found = []
    for image in range(images):
        boxes = inputs[f"gt_boxes.{image}"]
        ones = torch.ones(len(boxes), dtype=torch.long)
        found.append({"boxes": boxes, "labels": inputs[f"gt_labels.{image}"] if labels else ones})
    return found
