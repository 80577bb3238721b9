"""Anchors, proposals and regions: their losses, the classifier, and what becomes detections."""

from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from methods.pb_ovd.losses import text_logits
from methods.pb_ovd.module import OpenVocabularyDetector
from shared.checkpoints.official import KeyTable, Rule, import_official
from shared.nn.detection.anchors import inside
from shared.nn.detection.detector import Detector
from shared.nn.detection.matching import BACKGROUND, IGNORED, padded
from shared.nn.detection.proposals import Counts, Proposals, RegionProposalNetwork
from shared.nn.detection.selection import select
from shared.tasks import detection
from shared.tasks.detection import JointTraining, labels_of

from ..recording import StepWatcher, fit, recording
from . import building
from .building import DETECTRON, STDS
from .detector import of_image

Config = dict[str, Any]
Inputs, Outputs = dict[str, Tensor], dict[str, Any]
RPN = KeyTable(
    [Rule("head.conv.{rest}", "head.conv.0.0.{rest}"), Rule("head.{rest}", "head.{rest}")]
)


def text_classifier_logits(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    head = building.head(config, weights)
    features = inputs["roi_features"].clone().requires_grad_()
    with recording((type(head), "deltas")) as calls:
        embeddings, _ = head(features)
    logits = text_logits(embeddings, inputs["class_emb_mtx"])
    deltas = calls["deltas"][0].result.flatten(1)
    ((logits * inputs["grad_logits"]).sum() + (deltas * inputs["grad_box"]).sum()).backward()
    return {
        "region_embedding": embeddings,
        "class_logits": logits,
        "class_prob": logits.softmax(dim=1),
        "box_regression": deltas,
        "grad.roi_features": features.grad,
        **building.gradients(head),
    }


def open_vocab_box_loss(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = building.loss_module(config, weights)
    module.texts.copy_(inputs["class_emb_mtx"])
    head = module.detector.box_heads[0]
    images = config["images"]
    targets = building.targets(inputs, images)
    proposals = [inputs[f"proposals.{image}"] for image in range(images)]
    counts = [len(target["boxes"]) for target in targets]
    own = [boxes[:-count] for boxes, count in zip(proposals, counts, strict=True)]
    boxes = pad_sequence(own, batch_first=True)
    valid = torch.arange(boxes.shape[1]) < torch.tensor([len(part) for part in own])[:, None]
    features = [inputs[f"roi_features.{image}"] for image in range(images)]
    sampled: dict[str, Any] = {}

    def box_features(self: Detector, maps: list[Tensor], regions: Tensor) -> Tensor:
        """The features of regions as the case lists them, by their places there."""
        image = regions[:, 0].long()
        pairs = zip(image, regions[:, 1:], strict=True)
        equal = [(proposals[b] == box).all(dim=1) for b, box in pairs]
        places = torch.stack([row.nonzero()[-1, 0] for row in equal])  # last: appended truths
        rows = [features[b][place] for b, place in zip(image, places, strict=True)]
        sampled["order"] = (image * 10**6 + places).argsort()
        sampled["image"], sampled["places"] = image, places
        sampled["features"] = torch.stack(rows).requires_grad_()
        return sampled["features"]

    outputs: Outputs = {}
    table = KeyTable([Rule("{rest}", "{rest}")])
    named = dict(head.named_parameters())
    rates = lambda optimizer: torch.tensor(  # noqa: E731
        [
            next(g["lr"] for g in optimizer.param_groups for q in g["params"] if q is p)
            for p in named.values()
            if p.requires_grad
        ]
    )

    def before(optimizer: torch.optim.Optimizer) -> None:
        learnt = {name for name, p in named.items() if p.requires_grad}
        slopes = building.gradients(head, table)
        outputs.update({k: v for k, v in slopes.items() if k.removeprefix("grad.") in learnt})
        outputs["lr"], sampled["optimizer"] = rates(optimizer), optimizer

    def after(_: int) -> None:
        outputs.update(building.official_names(head, "after", table))
        outputs["lr_next"] = rates(sampled["optimizer"])

    given = Proposals(boxes, torch.zeros(boxes.shape[:2]), valid)
    sizes = torch.tensor(config["image_sizes_wh"]).flip(1)
    batch = {
        "images": torch.zeros(images, 3, 16, 16), "sizes": sizes, "targets": targets,
        "indices": torch.arange(images),
    }  # fmt: skip
    with ExitStack() as stack:
        for owner, name, value in (
            (Detector, "propose", lambda *_: given),
            (Detector, "box_features", box_features),
            (JointTraining, "anchor_losses", lambda *_: {}),
        ):
            stack.enter_context(patch.object(owner, name, value))
        draws = stack.enter_context(
            building.given_draws(building.draws(inputs), counts, anchors=False)
        )
        calls = stack.enter_context(
            recording((type(head), "deltas"), (OpenVocabularyDetector, "classify"),
                      (OpenVocabularyDetector, "total_loss"))
        )  # fmt: skip
        fit(module, [batch], StepWatcher(before, after))

    truth = padded(targets)
    assignment, _ = draws[0]
    ahead = truth.labels.shape[1]
    labels = labels_of(assignment, truth)
    for b in range(images):
        rows = torch.cat([torch.arange(ahead, ahead + len(own[b])), torch.arange(counts[b])])
        outputs[f"matched_labels.{b}"] = labels[b, rows]
        truths = assignment.truths[b, rows].clamp(min=0)
        goal = DETECTRON.encode(proposals[b], targets[b]["boxes"][truths], STDS)
        outputs[f"regression_targets.{b}"] = goal
    order = sampled["order"]
    embeddings, chosen = (calls["classify"][0].arguments[n] for n in ("regions", "labels"))
    for b in range(images):
        mine = order[sampled["image"][order] == b]
        outputs[f"sampled_indices.{b}"] = sampled["places"][mine]
        outputs[f"sampled_labels.{b}"] = chosen[mine]
    terms = calls["total_loss"][0].arguments["terms"]
    return outputs | {
        "class_logits": text_logits(embeddings, inputs["class_emb_mtx"])[order],
        "box_regression": calls["deltas"][0].result.flatten(1)[order],
        "loss_classifier": terms["loss_class"].reshape(1),
        "loss_box_reg": terms["loss_box"].reshape(1),
        "grad.roi_features": sampled["features"].grad[order],
    }


def open_vocab_box_loss_frozen(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    return open_vocab_box_loss(config, inputs, weights)


def rpn_loss_and_proposals(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    anchors = {"sizes": [config["anchor_sizes"]], "ratios": config["aspect_ratios"]}
    rpn = RegionProposalNetwork(DETECTRON, config["channels"], [config["stride"]], anchors)
    import_official(weights, RPN, rpn)
    features = inputs["features"].clone().requires_grad_()
    sizes = torch.tensor(config["image_sizes_hw"])
    images = range(len(sizes))
    targets = building.targets(inputs, len(sizes), labels=False)
    truth = padded(targets)
    with recording((type(rpn.head), "forward")) as calls:
        outputs = rpn([features])
    (objectness,), (deltas,) = calls["forward"][0].result
    objectness.retain_grad()
    deltas.retain_grad()

    class Holder:
        geometry = DETECTRON

    joint = JointTraining(building.training(config), seed=0)
    with (
        building.given_draws(building.draws(inputs), []) as drawn,
        recording((detection, "assign")) as assigned,
    ):
        terms = joint.anchor_losses(Holder(), outputs, truth, sizes, 0)  # type: ignore[arg-type]
    torch.stack(list(terms.values())).sum().backward()
    assignment, chosen = drawn[0]
    labels = (assignment.truths >= 0).float()
    labels[assignment.truths == IGNORED] = -1
    assert ((assignment.truths == BACKGROUND) == (labels == 0)).all()
    found: Outputs = {
        "cell_anchors": rpn.anchors.get_buffer("cell0"),
        "anchors": outputs.anchors,
        "objectness": objectness,
        "rpn_box_regression": deltas,
        "loss_objectness": terms["loss_rpn_class"].reshape(1),
        "loss_rpn_box_reg": terms["loss_rpn_box"].reshape(1),
        "grad.objectness": objectness.grad,
        "grad.rpn_box_regression": deltas.grad,
        "grad.features": features.grad,
        **building.gradients(rpn, RPN),
    }
    within = inside(outputs.anchors, sizes)
    proposed = {
        phase: rpn.propose(
            outputs, sizes, Counts(config[f"pre_nms_{phase}"], config[f"post_nms_{phase}"]), 0.7
        )
        for phase in ("train", "test")
    }
    for b in images:
        boxes = targets[b]["boxes"]
        truths = assigned["assign"][0].result.truths[b].clamp(min=0)
        goal = DETECTRON.encode(outputs.anchors, boxes[truths], (1.0, 1.0, 1.0, 1.0))
        found |= {
            f"visibility.{b}": within[b].long(),
            f"labels.{b}": labels[b],
            f"regression_targets.{b}": goal,
            f"sampled_pos_mask.{b}": chosen.positive[b].long(),
            f"sampled_neg_mask.{b}": chosen.negative[b].long(),
        }
        for phase, given in proposed.items():
            own, scores = given.boxes[b][given.valid[b]], given.scores[b][given.valid[b]].sigmoid()
            if phase == "train":  # appended there, put in front here
                own, scores = torch.cat([own, boxes]), torch.cat([scores, torch.ones(len(boxes))])
            found |= {f"{phase}_proposals.{b}": own, f"{phase}_objectness.{b}": scores}
    return found


def detector_postprocess(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    sizes = torch.tensor(config["image_sizes_wh"]).flip(1)
    per_image = config["n"]
    image = torch.arange(len(sizes)).repeat_interleave(torch.tensor(per_image))
    proposals = torch.cat([inputs[f"proposals.{b}"] for b in range(len(sizes))])
    deltas = inputs["box_regression"].unflatten(1, (2, 4))[:, 1:]
    decoded = DETECTRON.decode(proposals[:, None], deltas, STDS)
    boxes = DETECTRON.clip(decoded, sizes[image][:, None])
    scores = inputs["class_logits"].softmax(dim=1)
    detections = select(
        DETECTRON, image, boxes, scores, len(sizes), config["score_thresh"], config["nms"],
        config["detections_per_img"],
    )  # fmt: skip
    outputs: Outputs = {"decoded_boxes": decoded[:, 0]}
    for b in range(len(sizes)):
        own = of_image(boxes[image == b, 0], detections, b)
        outputs |= {f"{name}.{b}": value for name, value in own.items()}
    return outputs
