"""Adapters of prompting: the region, the prompter's labels, the loss."""

from itertools import pairwise
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from methods.alpro import module as module_file
from methods.alpro.losses import (
    blackened,
    entity_loss,
    kept_clips,
    proposed_boxes,
    random_regions,
)

from ..recording import recording
from .building import Config, Inputs, Outputs, gradients, pretraining


def random_crop_for_pem(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    size, patch_size = config["img_size_used"], config["patch_size"]
    draws = _draws(config, size)
    clips = inputs["frame_uint8_range"].repeat(1, config["T"], 1, 1, 1)
    ends = proposed_boxes(draws, size, patch_size)[1].nonzero()[: len(clips), 0].tolist()
    draws = draws[: ends[-1] + 1]
    # Each clip's tries are those after the last one of the clip before; left and top are integers.
    whole = torch.tensor([0.0, 0.0, 0.5, 0.5])
    spans = torch.tensor([config["area"], config["aspect"], (0, size), (0, size)])
    uniforms = (draws + whole - spans[:, 0]) / (spans[:, 1] - spans[:, 0])
    rows = list(uniforms.split([end - before for before, end in pairwise([-1, *ends])]))
    inside = random_regions(nn.utils.rnn.pad_sequence(rows, True), size, patch_size)
    crop = blackened(clips, inside, torch.zeros(3))

    shift, scale = (torch.tensor(config[name]) for name in ("mean", "std"))
    module = pretraining(config | {"hidden_size": 8}, weights)
    normalised = (clips / 255 - shift[:, None, None]) / scale[:, None, None]
    found = {
        "crop": crop,
        "context": clips - crop,
        "crop_normalised": blackened(normalised, inside, module.black),
    }
    sampled = {name: value[..., ::4, ::4] for name, value in found.items()}
    return sampled | {"draws": draws, "patch_mask": (~inside).float()}


def _draws(config: Config, size: int) -> Tensor:
    """(100, 4): as numpy draws them, try by try, from the seed of the case."""
    generator = np.random.RandomState(config["numpy_seed"])
    spans = (config["area"], config["aspect"])
    rows = [
        [*(generator.uniform(*span) for span in spans), *generator.randint(0, size, 2)]
        for _ in range(100)
    ]
    return torch.tensor(rows, dtype=torch.get_default_dtype())


def prompter_pseudo_labels(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    within = {f"prompter.{name}": value for name, value in weights.items()}
    prompter = pretraining(config, within).prompter
    assert prompter is not None
    clips, found = inputs["crop_visual_inputs"], {}
    for kind in ("video", "image"):
        features = prompter.prompt_features(
            inputs[f"{kind}_prompt_ids"], inputs[f"{kind}_prompt_mask"]
        )
        getattr(prompter, f"{kind}_prompts").copy_(features)
        labels = prompter(clips, kind)
        found |= {f"{kind}_prompt_feat": features, f"{kind}_pseudo_labels": labels}
        for rule, name in (("official", "official"), ("paper", "paper_rule")):
            kept = kept_clips(labels, rule, config["ignore_threshold"])  # type: ignore[arg-type]
            found[f"{kind}_ignore_{name}"] = (~kept).long()
    return found | {
        "crop_feat": prompter.encoders.encode_image(clips)[1],
        "is_training_after": torch.tensor(int(prompter.encoders.training)),
    }


def pem_loss(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    module = pretraining(config, weights)
    states = inputs["encoder_out"].clone().requires_grad_()
    patches = states[:, inputs["text_atts"].shape[1] + 1 :]
    labels, kept = inputs["soft_labels"], inputs["ignore_mask"] == 0
    with (
        patch.object(module_file, "random_regions", lambda *_: inputs["patch_masks"] == 0),
        patch.object(module, "entity_labels", lambda *_: labels),
        patch.object(module_file, "kept_clips", lambda *_: kept),
        recording((module.entity_head, "forward")) as calls,
    ):
        size = config["img_size"]
        loss = module.entity_modelling(torch.zeros(len(labels), 1, 3, size, size), patches, "video")
    loss.backward()
    logits = calls["forward"][0].result
    none = torch.zeros_like(kept)
    of_none = entity_loss(logits, labels, none)
    assert of_none == 0
    return {
        "loss": loss,
        "logits": logits,
        "loss_none_ignored": entity_loss(logits, labels, ~none),
        # Over the number of clips that are kept, as the official code divides.
        "all_ignored_is_nan": (of_none / none.sum()).isnan().long(),
        "grad_input.encoder_out": states.grad,
        **gradients(module),
    }
