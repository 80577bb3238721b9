"""Adapters of the pipeline: augmentation, learning rate, positions, masks."""

import math
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from shared.data.views import randaugment
from shared.losses.language import MaskDraws, mask_tokens
from shared.nn.vision_transformer import interpolate_positions
from shared.tasks.image_text_method import Evaluation, ImageTextMethod

from .building import Config

Inputs, Outputs = dict[str, Tensor], dict[str, Any]
SAMPLED = 50  # the file holds every such iteration of an epoch, and its last
GRIDS = 33


def randaugment_ops(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    """Each operation, with the official oddities; "_pos" and "_neg" are the signs."""
    image = inputs["image"].numpy().astype(np.uint8)
    level = config["M"] / config["max_level"] * randaugment.MAX_LEVEL
    outputs = {}
    with patch.object(randaugment, "FILL", config["fill"]):
        known = randaugment.OFFICIAL_FOR_CAPTIONS
        for name, (_, _, signed) in known.items():
            for suffix in ("_pos", "_neg") if signed else ("",):
                changed = randaugment.apply(name, image, level, suffix == "_neg", known)
                outputs[name + suffix] = torch.from_numpy(changed.astype(np.int64))
    return outputs


class _OneWeight(ImageTextMethod):
    """The frame of ALBEF's trainings around the smallest network."""

    def __init__(self, **schedule: Any):
        super().__init__(Evaluation(), **schedule, weight_decay=0.0)
        self.weight = nn.Parameter(torch.zeros(()))


def lr_schedule(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    """The rate that the optimiser has at each of the iterations that the file samples."""
    return {f"lr_{name}": _rates(given) for name, given in config["schedules"].items()}


def _rates(given: dict[str, Any]) -> Tensor:
    iterations, epochs = given["iterations_per_epoch"], given["epochs"]
    module = _OneWeight(
        **{key: given[key] for key in ("lr", "min_lr", "warmup_lr")},
        warmup_blocks=given["warmup_epochs"],
        epochs=epochs,
    )
    optimizer = module.configure_optimizers()
    rows = []
    for epoch in range(epochs):
        module._trainer = SimpleNamespace(current_epoch=epoch, optimizers=[optimizer])
        for iteration in sorted({*range(0, iterations, SAMPLED), iterations - 1}):
            with patch.object(module, "log_train"):
                module.on_train_batch_start({}, iteration)
            (rate,) = {group["lr"] for group in optimizer.param_groups}  # one for all groups
            rows.append((epoch, iteration, rate * 1e6))
    return torch.tensor(rows)


def pos_embed_interpolation(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    """Larger grids come from the smaller table, smaller ones from the larger table."""
    small, large = sorted(inputs.values(), key=lambda table: table.shape[1])
    side = math.isqrt(small.shape[1])
    outputs = {
        f"to_{grid}x{grid}": interpolate_positions(small if grid > side else large, grid)
        for grid in range(1, GRIDS)
    }
    return outputs | {"same": interpolate_positions(small, side)}


def mlm_masking(config: Config, inputs: Inputs, weights: Inputs) -> Outputs:
    booleans = (inputs[f"draw_{name}"].bool() for name in ("mask", "replace", "random"))
    draws = MaskDraws(*booleans, inputs["random_words"].long())
    special = (config[name] for name in ("pad", "cls", "mask"))
    masked, labels = mask_tokens(inputs["input_ids"], draws, *special)
    return {"masked_ids": masked, "labels": labels}
