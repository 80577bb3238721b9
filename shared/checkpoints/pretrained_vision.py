"""What vision transformers start from: DeiT or AugReg ViTs."""

import math
from collections.abc import Mapping
from typing import Any

import timm

from shared.checkpoints.official import Conversion, KeyReport, KeyTable, Rule, import_official
from shared.checkpoints.reading import CheckpointError, load_checkpoint
from shared.nn.timesformer import TimeSformer, nearest_frames
from shared.nn.vision_transformer import VisionTransformer, interpolate_positions

REMEDY = "a file of ViT weights, or null to start from random ones"
POSITIONS = Conversion(
    lambda positions, ours: interpolate_positions(positions, math.isqrt(ours.shape[1] - 1)),
    lambda value, _: value,
    interpolates=True,
)
"""Position embeddings of a ViT, interpolated to the grid of the module that takes them."""


TIMES = Conversion(
    lambda times, ours: nearest_frames(times, ours.shape[1]),
    lambda value, _: value,
    interpolates=True,
)
"""Embeddings of a TimeSformer's frames, the nearest ones where the module has other times."""
SPATIAL = Rule("pos_embed", "pos_embed", POSITIONS)
OVER_TIME = [
    Rule(f"blocks.{{n}}.{there}.{{rest}}", f"blocks.{{n}}.{here}.{{rest}}")
    for there, both in (("attn", ("attn", "temporal_attn")), ("norm1", ("norm1", "temporal_norm1")))
    for here in both
]
"""What a ViT's attention to a frame becomes in a TimeSformer: attention over time, too."""
NEW_IN_TIME = dict.fromkeys(
    ("time_embed", "blocks.{n}.temporal_fc.{rest}"), "zero: a new TimeSformer is a ViT"
)

OURS = "encoders.visual_encoder."
"""Where a model of ours has its vision transformer."""


def load_vision(module: VisionTransformer, source: str) -> KeyReport:
    """Load a ViT's weights but the classifier, its positions interpolated, from a file with timm's
    keys (DeiT's .pth, a .safetensors), from a checkpoint of ours that has a vision transformer, or
    `timm:NAME`, which timm fetches from its hub. A TimeSformer's attention over time begins as that
    to a frame (docs/papers/alpro.md, section 4.1). CheckpointError if there is no such one, or it
    does not fit."""
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
        if isinstance(whole := loaded.get("state_dict"), Mapping):
            own = [key for key in whole if str(key).startswith(OURS)]
            state = {key.removeprefix(OURS): whole[key] for key in own}
            if not state:
                said = f"{source} is of a model without a vision transformer"
                raise CheckpointError(f"{said}: give timm:NAME, {REMEDY}")
    in_time = isinstance(module, TimeSformer)
    table = KeyTable(
        rules=[SPATIAL, *(OVER_TIME if in_time else []), Rule("{key}", "{key}")],
        dropped={"head.{rest}": "the classifier of ImageNet"},
        fresh=NEW_IN_TIME if in_time else {},
    )
    return import_official(state, table, module)
