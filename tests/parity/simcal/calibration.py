"""Calibration heads, and the steps that train one."""

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.simcal import official
from methods.simcal.module import Candidates, SimCal
from shared.checkpoints.official import KeyTable, export_official, translation
from shared.training.method import Method

from ..recording import StepWatcher, gradients_as_weights, quiet_trainer, recording
from .building import box_head, calibration_head, fill, simcal, start_from

Inputs, Outputs = dict[str, Tensor], dict[str, Any]


def classifier_head(config: dict, inputs: Inputs, weights: Inputs, layers: int) -> Outputs:
    names = {2: official.TWO_LAYERS, 3: official.THREE_LAYERS}[layers]
    head = calibration_head(config, layers)
    fill(head, names, weights)
    logits = head(inputs["roi_feats"])
    loss = F.cross_entropy(logits, inputs["labels"])
    loss.backward()
    with gradients_as_weights(head):
        slopes = export_official(head, KeyTable(translation(names, "", "")))
        slopes = {f"grad.{name}": value.clone() for name, value in slopes.items()}
    return {"logits": logits, "loss": loss, **slopes}


def classifier_head_2fc(config: dict, inputs: Inputs, weights: Inputs) -> Outputs:
    return classifier_head(config, inputs, weights, 2)


def classifier_head_3fc(config: dict, inputs: Inputs, weights: Inputs) -> Outputs:
    return classifier_head(config, inputs, weights, 3)


def head_init_3fc_ft(config: dict, inputs: Inputs, weights: Inputs) -> Outputs:
    original = box_head(config, config["reg_class_agnostic"])
    fill(original, official.BOX_HEAD, weights)
    head = calibration_head(config, 3)
    head.start_from(original)
    logits, deltas = original(inputs["roi_feats"])
    cal_logits = head(inputs["roi_feats"])
    return {"cls_score": logits, "bbox_pred": deltas.flatten(1), "cal_logits": cal_logits}


class OneStepEpochs:
    """A loader whose n-th iteration yields the n-th batch alone."""

    def __init__(self, batches: list[dict[str, Any]]):
        self.remaining = iter(batches)

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield next(self.remaining)


def calibration_step(config: dict, inputs: Inputs, weights: Inputs) -> Outputs:
    module = simcal(config, config["head"], lr=config["initial_lr"])
    start_from(module, weights)
    epochs = [f"{epoch:02d}" for epoch in range(1, config["epochs"] + 1)]
    # Regions are rows of the features that a case gives, negatives first.
    features = [torch.cat([inputs[f"neg_feats.{e}"], inputs[f"pos_feats.{e}"]]) for e in epochs]
    images = torch.zeros(config["nc"], 3, 16, 16)
    common = {"images": images, "targets": [], "indices": torch.arange(config["nc"])}
    batches = [common | {"sampled_classes": inputs[f"class_indices.{e}"]} for e in epochs]
    outputs: Outputs = {}

    def given_candidates(self: SimCal, *_: Any) -> Candidates:
        return candidates(inputs, epochs[self.current_epoch])

    def given_features(self: SimCal, maps: list[Tensor], regions: Tensor) -> Tensor:
        return features[self.current_epoch][regions[:, 1].long()]

    def before_update(optimizer: torch.optim.Optimizer) -> None:
        outputs[f"lr.{epochs[module.current_epoch]}"] = optimizer.param_groups[0]["lr"]
        if module.current_epoch == 0:
            with gradients_as_weights(module):
                keep("grad")

    def keep(prefix: str) -> None:
        for name, value in official.export(module)["heads"]["0"].items():
            outputs[f"{prefix}.{name}"] = value.clone()

    watcher = StepWatcher(before_update, lambda _: keep(f"after_step_{module.global_step:02d}"))
    trainer = quiet_trainer(watcher, max_epochs=len(epochs), devices=1)
    with (
        patch.object(SimCal, "candidates", given_candidates),
        patch.object(SimCal, "features", given_features),
        recording((SimCal, "compose"), (Method, "total_loss")) as calls,
    ):
        trainer.fit(module, OneStepEpochs(batches))
    for number, e in enumerate(epochs):
        episode = calls["compose"][number].result
        outputs[f"kept_labels.{e}"] = episode.labels
        outputs[f"kept_feats.{e}"] = features[number][episode.rois[:, 1].long()]
        outputs[f"loss.{e}"] = calls["total_loss"][number].result
    return outputs


def candidates(inputs: Inputs, e: str) -> Candidates:
    """All negatives of a step as regions of the first image, positives behind them."""
    per_image = inputs[f"num_pos_per_image.{e}"]
    permutation, labels = inputs[f"neg_perm.{e}"], inputs[f"pos_label.{e}"]
    count, images, most = len(permutation), len(per_image), int(per_image.max())
    own = torch.arange(most) < per_image[:, None]
    regions = torch.zeros(images, count + most, 4)
    regions[0, :count, 0] = torch.arange(count).float()
    order = torch.full((images, count + most), torch.inf)
    order[0, permutation] = torch.arange(count).to(order)
    of_place = torch.zeros(images, count + most, dtype=torch.long)
    of_place[:, count:][own] = labels
    rows = torch.zeros(images, most, dtype=regions.dtype)
    rows[own] = count + torch.arange(len(labels)).to(rows)
    regions[:, count:, 0] = rows
    return Candidates(regions, of_place, order)
