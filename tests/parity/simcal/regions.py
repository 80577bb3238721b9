"""Box arithmetic in the legacy convention, and the choice of regions for training."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from shared.nn.detection.geometry import Geometry
from shared.nn.detection.matching import Quota, assign, padded, sample, with_truth
from shared.nn.detection.proposals import rois
from shared.tasks.detection import labels_of

LEGACY = Geometry(legacy=True)


def legacy_box_ops(config: dict, inputs: dict[str, Tensor], weights: dict) -> dict[str, Any]:
    boxes, stds = inputs["boxes"], config["stds"]
    size = torch.tensor([config["h"], config["w"]])
    dets = inputs["dets"]
    one = torch.zeros(len(dets), dtype=torch.long)
    kept = LEGACY.nms(dets[:, :4], dets[:, 4], one, threshold=0.5)
    return {
        "iou": LEGACY.iou(inputs["gt"], boxes),
        "deltas": LEGACY.encode(boxes, inputs["target"], stds),
        "decoded": LEGACY.clip(LEGACY.decode(boxes, inputs["pred"], stds), size),
        "nms_keep": kept.sort().values,
        "levels": LEGACY.levels(inputs["level_rois"][:, 1:], config["num_levels"]),
        "roi_align": LEGACY.pool(
            inputs["feat"], inputs["rois"], config["out"], config["spatial_scale"]
        ),
    }


def proposal_sampling(config: dict, inputs: dict[str, Tensor], weights: dict) -> dict[str, Any]:
    images = range(config["num_images"])
    truth = padded(
        [{"boxes": inputs[f"gt_bboxes.{b}"], "labels": inputs[f"gt_labels.{b}"]} for b in images]
    )
    given = [inputs[f"proposals.{b}"] for b in images]
    boxes = pad_sequence(given, batch_first=True)
    counts = torch.tensor([len(proposals) for proposals in given])
    valid = torch.arange(boxes.shape[1]) < counts[:, None]
    rule, sampler = config["assigner"], config["sampler"]
    thresholds = (rule["pos_iou_thr"], rule["neg_iou_thr"], rule["min_pos_iou"])
    before = assign(LEGACY, boxes, valid, truth, *thresholds)
    regions, valid, assignment = with_truth(boxes, valid, before, truth)

    quota = int(sampler["num"] * sampler["pos_fraction"])
    positive = assignment.truths >= 0
    negative = (assignment.truths == -1) & (assignment.overlaps >= config["neg_low_iou"])
    shuffles = (inputs[name] for name in sorted(inputs) if name.startswith("shuffle."))
    priority = torch.zeros(valid.shape)
    for b in images:
        follow_shuffle(priority[b], positive[b], quota, shuffles)
        rest = sampler["num"] - min(quota, int(positive[b].sum()))
        follow_shuffle(priority[b], negative[b], rest, shuffles)
    limits = Quota(sampler["num"], sampler["pos_fraction"], config["neg_low_iou"])
    chosen = sample(assignment, priority, limits)

    outputs: dict[str, Any] = {"num_pos_per_image": chosen.positive.sum(dim=1)}
    labels = labels_of(assignment, truth)
    rows = []
    for b in images:
        # The case counts boxes without padding.
        place = valid[b].cumsum(0) - 1
        parts = [mask[b].nonzero()[:, 0] for mask in chosen]
        outputs[f"pos_inds.{b}"], outputs[f"neg_inds.{b}"] = (place[part] for part in parts)
        outputs[f"pos_assigned_gt_inds.{b}"] = assignment.truths[b, parts[0]]
        own = slice(0, int(counts[b]))
        outputs[f"assigned_gt_inds.{b}"] = before.truths[b, own] + 1
        outputs[f"max_overlaps.{b}"] = before.overlaps[b, own]
        order = torch.cat(parts)
        truths = assignment.truths[b, order]
        only = torch.zeros_like(valid)
        only[b] = chosen.chosen[b]
        seen = torch.cat([torch.full((len(order), 1), float(b)), regions[b, order]], dim=1)
        assert torch.equal(seen[order.argsort()], rois(regions, only))
        goal = LEGACY.encode(regions[b, order], truth.boxes[b, truths.clamp(min=0)], STDS)
        rows.append((labels[b, order], truths, seen, goal * (truths >= 0)[:, None]))
    for name, parts in zip(
        ("labels", "gt_inds", "rois", "bbox_targets"), zip(*rows, strict=True), strict=True
    ):
        outputs[name] = torch.cat(parts)
    outputs["bbox_weights"] = (outputs["labels"] > 0)[:, None].float().expand(-1, 4)
    outputs["label_weights"] = torch.ones(len(outputs["labels"]))
    return outputs


STDS = (0.1, 0.1, 0.2, 0.2)


def follow_shuffle(
    priority: Tensor, gallery: Tensor, quota: int, shuffles: Iterator[Tensor]
) -> None:
    """Give the candidates of `gallery` (P,) the order of the next shuffle, which the official code
    draws only when there are more than it needs."""
    places = gallery.nonzero()[:, 0]
    if len(places) > quota:
        priority[places[next(shuffles)]] = torch.arange(len(places)).to(priority)
