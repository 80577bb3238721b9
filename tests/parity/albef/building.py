"""Arguments of our modules from a case's config."""

from typing import Any

import torch

Config = dict[str, Any]
# Our names, and those of the cases.
VISION = {
    "image_size": "image_size", "patch_size": "patch_size", "width": "vision_width",
    "depth": "vision_depth", "heads": "vision_heads", "mlp_ratio": "vision_mlp_ratio",
}  # fmt: skip
TEXT = {
    "vocab_size": "vocab_size", "hidden_size": "hidden_size", "dropout": "dropout",
    "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size", "max_positions": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size", "eps": "layer_norm_eps",
    "cross_attention_from": "fusion_layer",
}  # fmt: skip


def encoders(c: Config) -> Config:
    """`vision` and `text`, by our names of what the case sets."""
    text = {ours: c["text"][theirs] for ours, theirs in TEXT.items()}
    return {
        "vision": {ours: c[theirs] for ours, theirs in VISION.items()},
        "text": text | {"pad_id": c["special_tokens"]["pad"]},
    }


def frame(c: Config) -> Config:
    """The encoders, and a constant rate."""
    optimizer = c.get("optimizer", {})
    rates = dict.fromkeys(("lr", "min_lr", "warmup_lr"), optimizer.get("lr", 1e-4))
    rates |= {"warmup_blocks": 0, "warmup_block": 100, "epochs": 1}
    return encoders(c) | rates | {"weight_decay": optimizer.get("weight_decay", 0.02)}


def distilled(c: Config) -> Config:
    """Also what the case says of momentum and distillation."""
    momentum, alpha = c.get("momentum", 0.995), c.get("alpha", 0.4)
    return frame(c) | {"encoder_momentum": momentum, "alpha": alpha, "ramp": False}


def batch_of(inputs: Config) -> Config:
    """Our names of a case's inputs."""
    size = len(inputs["image"])
    named = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    return named | {
        "images": inputs["image"],
        "indices": torch.arange(size),
        "image_ids": inputs.get("idx", torch.arange(size)).flatten(),
    }
