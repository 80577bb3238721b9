"""What vision transformers start from: DeiT or AugReg ViTs."""

import math
from collections.abc import Mapping
from typing import Any

import timm

from shared.checkpoints.official import Conversion, KeyReport, KeyTable, Rule, import_official
from shared.checkpoints.reading import CheckpointError, load_checkpoint
from shared.nn.vision_transformer import VisionTransformer, interpolate_positions

REMEDY = "a file of ViT weights, or null to start from random ones"
POSITIONS = Conversion(
    lambda positions, ours: interpolate_positions(positions, math.isqrt(ours.shape[1] - 1)),
    lambda value, _: value,
    interpolates=True,
)
"""Position embeddings of a ViT, interpolated to the grid of the module that takes them."""


def load_vision(module: VisionTransformer, source: str) -> KeyReport:
    """Load a ViT's weights but the classifier, its positions interpolated, from a file with timm's
    keys (DeiT's .pth, a .safetensors), or `timm:NAME`, which timm fetches from its hub.
    CheckpointError if there is no such one, or it does not fit."""
    name = source.removeprefix("timm:")
    if name != source:
        try:
            state: Mapping[str, Any] = timm.create_model(name, pretrained=True).state_dict()
        except Exception as error:  # the hub's client raises whatever its transport does
            said = f"timm cannot provide {name!r} ({error}); without a network give {REMEDY}"
            raise CheckpointError(said) from error
    else:
        try:
            loaded = load_checkpoint(source)
        except FileNotFoundError as error:
            raise CheckpointError(f"{error}: give timm:NAME, {REMEDY}") from None
        state = loaded.get("model", loaded)
    table = KeyTable(
        rules=[Rule("pos_embed", "pos_embed", POSITIONS), Rule("{key}", "{key}")],
        dropped={"head.{rest}": "the classifier of ImageNet"},
    )
    return import_official(state, table, module)
