"""Arguments of our modules from a case's config."""

from typing import Any

Config = dict[str, Any]


def vision(c: Config) -> Config:
    return {
        "image_size": c["image_size"],
        "patch_size": c["patch_size"],
        "width": c["vision_width"],
        "depth": c["vision_depth"],
        "heads": c["vision_heads"],
        "mlp_ratio": c["vision_mlp_ratio"],
    }


def text(c: Config) -> Config:
    t = c["text"]
    return {
        "vocab_size": t["vocab_size"],
        "hidden_size": t["hidden_size"],
        "num_layers": t["num_hidden_layers"],
        "num_heads": t["num_attention_heads"],
        "intermediate_size": t["intermediate_size"],
        "max_positions": t["max_position_embeddings"],
        "type_vocab_size": t["type_vocab_size"],
        "dropout": t["dropout"],
        "eps": t["layer_norm_eps"],
        "cross_attention_from": t["fusion_layer"],
        "pad_id": c["special_tokens"]["pad"],
    }


def schedule(c: Config) -> Config:
    """A constant rate, and what the case says of momentum and distillation."""
    optimizer = c.get("optimizer", {})
    lr = optimizer.get("lr", 1e-4)
    return {
        "lr": lr,
        "min_lr": lr,
        "warmup_lr": lr,
        "warmup_blocks": 0,
        "warmup_block": 100,
        "epochs": 1,
        "weight_decay": optimizer.get("weight_decay", 0.02),
        "encoder_momentum": c.get("momentum", 0.995),
        "alpha": c.get("alpha", 0.4),
        "ramp": False,
    }
