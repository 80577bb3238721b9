"""Our modules at the sizes of a case, with its weights through the official importer."""

from typing import Any

import torch
from torch import Tensor

from methods.blip import official
from methods.blip.captioning import Captioning
from methods.blip.module import Pretraining
from methods.blip.retrieval import Retrieval
from methods.blip.vqa import VQA
from shared.training.method import Method

from ..recording import gradients_as_weights, snapshot

Config = dict[str, Any]
Inputs, Outputs = dict[str, Tensor], dict[str, Any]
# Our names, and those of the cases.
VISION = {
    "image_size": "image_size", "patch_size": "patch_size", "width": "vision_width",
    "depth": "vision_depth", "heads": "vision_heads", "mlp_ratio": "vision_mlp_ratio",
    "drop_path": "drop_path",
}  # fmt: skip
TEXT = {
    "vocab_size": "vocab_size", "hidden_size": "text_width", "num_layers": "text_layers",
    "num_heads": "text_heads", "intermediate_size": "text_intermediate",
    "max_positions": "max_position_embeddings", "dropout": "dropout",
    "eps": "bert_layer_norm_eps",
}  # fmt: skip
SMOOTHING = 0.1  # the official head's, which no config sets


def networks(c: Config) -> Config:
    """`vision` and `text`, by our names of what the case sets."""
    text = {ours: c[theirs] for ours, theirs in TEXT.items()}
    return {
        "vision": {ours: c[theirs] for ours, theirs in VISION.items()},
        "text": text | {"type_vocab_size": 0, "pad_id": c["special_tokens"]["pad"]},
    }


def frame(c: Config) -> Config:
    """The networks, and a constant rate."""
    lr = c.get("lr", 1e-4)
    rates = {"lr": lr, "min_lr": lr, "epochs": 1, "weight_decay": c.get("weight_decay", 0.05)}
    return networks(c) | rates


def aligned(c: Config) -> Config:
    return frame(c) | {
        "embed_dim": c["embed_dim"],
        "enc_id": c["special_tokens"]["enc"],
        "queue_size": c.get("queue_size", 8),
        "temperature": c.get("temp", 0.07),
        "encoder_momentum": c.get("momentum", 0.995),
        "alpha": c.get("alpha", 0.4),
        "ramp": 0,
        "evaluation": {"k_test": c.get("k_test", 1), "score": "itm+itc"},
        "seed": 0,
    }


def pretraining(c: Config, weights: Inputs) -> Pretraining:
    module = Pretraining(
        bos_id=c["special_tokens"]["dec_bos"],
        sharing="all_but_sa",
        floor=1e-4,
        label_smoothing=SMOOTHING,
        warmup_lr=0.0,
        warmup_steps=0,
        lr_decay=1.0,
        **aligned(c),
    )
    official.load(module, weights)
    return module


def retrieval(c: Config, weights: Inputs) -> Retrieval:
    """Of weights that a case leaves out those of the new module stay."""
    negatives = "global" if c.get("negative_all_rank") else "local"
    module = Retrieval(negatives=negatives, **aligned(c))
    official.load(module, complete(module, weights))
    return module


def scorer(c: Config, weights: Inputs) -> Retrieval:
    """As a file that only scores pairs is loaded."""
    module = Retrieval(negatives="local", **aligned(c))
    official.load(module, weights)
    return module.eval()


def captioning(c: Config, weights: Inputs, **generation: Any) -> Captioning:
    tokens = c["special_tokens"]
    settings = {"max_length": 20, "min_length": 5, "num_beams": 3} | generation
    module = Captioning(
        bos_id=tokens["dec_bos"],
        prompt_ids=c.get("prompt_token_ids", []),
        label_smoothing=SMOOTHING,
        generation=settings | {"end_id": tokens["sep"], "pad_id": tokens["pad"]},
        seed=0,
        **frame(c),
    )
    official.load(module, weights)
    return module


def answering(c: Config, weights: Inputs, **more: Any) -> VQA:
    tokens = c["special_tokens"]
    settings = {name: c.get(name, n) for name, n in
                (("max_length", 10), ("min_length", 1), ("num_beams", 3))}  # fmt: skip
    module = VQA(
        bos_id=tokens["dec_bos"],
        enc_id=tokens["enc"],
        label_smoothing=SMOOTHING,
        k_test=c.get("k_test", 1),
        generation=settings | {"end_id": tokens["sep"], "pad_id": tokens["pad"]},
        **more,
        **frame(c),
    )
    official.load(module, weights)
    return module


def complete(module: Method, weights: Inputs) -> Inputs:
    """The case's weights; what a case leaves out keeps the values of `module`, official keys."""
    return names(module) | weights


def names(module: Method) -> Inputs:
    """The module's present state under official names."""
    exported = official.export(module)
    exported.pop("tenfold", None)
    return snapshot(exported)


def gradients(module: Method) -> Outputs:
    """`grad.<official name>` of each parameter."""
    with gradients_as_weights(module):
        return {f"grad.{name}": value for name, value in names(module).items()}


def batch_of(inputs: Inputs) -> Inputs:
    """Our names of a case's inputs."""
    size = len(inputs["image"])
    named = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
    return named | {
        "images": inputs["image"],
        "indices": torch.arange(size),
        "image_ids": inputs.get("idx", torch.arange(size)).flatten(),
    }
