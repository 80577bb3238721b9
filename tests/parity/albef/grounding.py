"""Adapters of Grad-CAM and of the evaluation of grounding."""

from typing import Any

import torch
from torch import Tensor

from methods.albef import official
from methods.albef.retrieval import Retrieval
from shared.evaluation.grounding import accuracies, ground, upsample

from .building import Config, batch_of
from .pretraining import alignment_arguments, complete

Inputs, Outputs = dict[str, Tensor], dict[str, Any]
SPLITS = ("val", "testA", "testB")


def grounding_module(c: Config, weights: Inputs, mode: str, layer: int) -> Retrieval:
    module = Retrieval(cam_mode=mode, cam_layer=layer, **alignment_arguments(c))
    official.load(module, complete(module, weights))
    return module.eval()


def gradcam(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    mask = inputs["attention_mask"]
    batch = batch_of(inputs) | {"image_ids": torch.arange(len(mask))}
    matching = grounding_module(config, weights, "itm", config["cross_attention_layer"])
    contrast = grounding_module(config, weights, "itc", config["itc_vit_block"])
    with torch.inference_mode():  # as the Trainer evaluates
        found = matching.evaluation.saliency(matching, batch)
        return {
            "itm_logits": found.scores,
            "attention": found.attention,
            "attention_grad": found.gradient,
            "attention_x_relu_grad": found.weighted(mask),
            "gradcam": matching.evaluation.cams(matching, batch),
            "gradcam_itc": contrast.evaluation.cams(contrast, batch),
        }


def grounding_eval(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    sizes, meant = inputs["image_hw"].tolist(), inputs["ref_boxes"].tolist()
    cases = zip(inputs["maps"], sizes, inputs["det_boxes"], meant, strict=True)
    found = [ground(cam, (h, w), boxes, box) for cam, (h, w), boxes, box in cases]
    splits = [SPLITS[number] for number in inputs["split"].tolist()]
    chosen = [boxes[f.proposal] for boxes, f in zip(inputs["det_boxes"], found, strict=True)]
    height, width = sizes[0]
    return {
        "pred_boxes": torch.stack(chosen),
        "best_score": torch.tensor([result.score for result in found]),
        "iou": torch.tensor([result.iou for result in found]),
        "map0_upsampled": upsample(inputs["maps"][0], (height, width)),
        **accuracies([result.iou for result in found], splits),
    }
