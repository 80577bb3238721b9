"""The whole detector: a step of training, inference with other classes, and learning rates."""

from typing import Any

import torch
from torch import Tensor

from methods.pb_ovd import official
from methods.pb_ovd.losses import text_logits
from methods.pb_ovd.module import OpenVocabularyDetector, Ramp
from shared.nn.detection.detector import Detector
from shared.nn.detection.geometry import Geometry
from shared.nn.detection.selection import Detections

from ..recording import StepWatcher, fit, recording
from . import building

Config = dict[str, Any]
Inputs, Outputs = dict[str, Tensor], dict[str, Any]


def batch_of(config: Config, inputs: Inputs) -> dict[str, Any]:
    sizes = torch.tensor(config["image_sizes_hw"])
    return {"images": inputs["images"], "sizes": sizes, "original_sizes": sizes}


def detector_train_step(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = building.module(config)
    official.load(module, weights)
    module.texts.copy_(inputs["class_emb_mtx"])
    batch = batch_of(config, inputs)
    images = len(batch["images"])
    batch |= {"targets": building.targets(inputs, images), "indices": torch.arange(images)}
    outputs: Outputs = {}
    watcher = StepWatcher(
        lambda _: outputs.update(building.gradients(module)),
        lambda _: outputs.update(building.official_names(module, "after")),
    )
    truths = [len(target["labels"]) for target in batch["targets"]]
    head = module.detector.box_heads[0]
    with (
        building.given_draws(building.draws(inputs), truths),
        recording(
            (Detector, "maps"), (Detector, "box_features"), (type(head), "deltas"),
            (OpenVocabularyDetector, "classify"), (OpenVocabularyDetector, "total_loss"),
        ) as calls,
    ):  # fmt: skip
        fit(module, [batch], watcher)
    regions = calls["box_features"][0].arguments["rois"]
    order = appended(regions, batch["targets"])
    image = regions[order, 0]
    embeddings, labels = (calls["classify"][0].arguments[n] for n in ("regions", "labels"))
    terms = calls["total_loss"][0].arguments["terms"]
    names = {
        "loss_classifier": "loss_class", "loss_box_reg": "loss_box",
        "loss_objectness": "loss_rpn_class", "loss_rpn_box_reg": "loss_rpn_box",
    }  # fmt: skip
    outputs |= {name: terms[ours].reshape(1) for name, ours in names.items()}
    for number in range(images):
        own = order[image == number]
        outputs[f"sampled_proposals.{number}"] = regions[own, 1:]
        outputs[f"sampled_labels.{number}"] = labels[own]
    return outputs | {
        "features_c4": calls["maps"][0].result[0],
        "roi_pooled_res5_mean": calls["deltas"][0].arguments["pooled"][order],
        "class_logits": text_logits(embeddings, inputs["class_emb_mtx"])[order],
        "box_regression": calls["deltas"][0].result.flatten(1)[order],
    }


def appended(regions: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
    """Order of regions (M, 5) in which the ground truths of an image follow its proposals."""
    kept = []
    for number, target in enumerate(targets):
        own = (regions[:, 0] == number).nonzero()[:, 0]
        equal = (regions[own, None, 1:] == target["boxes"]).all(dim=2)
        # A ground truth comes in front; a proposal that equals one is not one.
        truths = equal.any(dim=1) & (torch.arange(len(own)) < len(target["boxes"]))
        kept += [own[~truths], own[truths]]
    return torch.cat(kept)


def detector_inference(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = building.module(config).eval()
    official.load(module, weights)
    texts = inputs["class_emb_mtx"]
    with (
        torch.no_grad(),
        recording((Detector, "run_stages"), (Geometry, "pool")) as calls,
    ):
        detections = module.detect(batch_of(config, inputs), texts)
    stages = calls["run_stages"][0].result
    outputs: Outputs = {
        "class_logits": text_logits(stages.logits[0], texts),
        "roi_align": calls["pool"][0].result[:6],
    }
    rois = stages.rois[0]
    for number in range(len(inputs["images"])):
        outputs[f"proposals.{number}"] = rois[rois[:, 0] == number, 1:]
        own = of_image(stages.boxes[rois[:, 0] == number, 0], detections, number)
        outputs |= {f"{name}.{number}": value for name, value in own.items()}
    return outputs


def of_image(boxes: Tensor, detections: Detections, number: int) -> dict[str, Tensor]:
    """An image's detections class by class and, within a class, as regions (P, 4) come."""
    own = detections.valid[number]
    found, labels = detections.boxes[number][own], detections.labels[number][own]
    region = (boxes == found[:, None]).all(dim=2).int().argmax(dim=1)
    order = (labels * len(boxes) + region).argsort()
    scores = detections.scores[number][own]
    return {"boxes": found[order], "scores": scores[order], "labels": labels[order]}


def lr_schedule(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    outputs = {}
    for name, given in config["schedules"].items():
        ramp = Ramp(given["warmup_iters"], 1 / 3, given["steps"], 0.1)
        base = torch.tensor([given["base_lr"], 2 * given["base_lr"]])
        factors = torch.tensor([ramp.factor(step) for step in inputs[name].tolist()])
        outputs[f"lr.{name}"] = factors[:, None] * base
    return outputs
