"""Our modules at the sizes of a case, with its weights through the official importer."""

from typing import Any, TypeVar

import torch
from torch import Tensor

from methods.alpro import official
from methods.alpro.module import Pretraining
from methods.alpro.retrieval import Retrieval
from methods.alpro.vqa import VideoQA
from shared.training.method import Method

from ..recording import gradients_as_weights, snapshot

Config = dict[str, Any]
Inputs, Outputs = dict[str, Tensor], dict[str, Any]
M = TypeVar("M", bound=Method)
# Our names, those of the cases, and what is taken where a case has no such part.
VISION = {
    "image_size": ("img_size", 32), "patch_size": ("patch_size", 16), "frames": ("num_frm", 1),
    "width": ("hidden_size", 0), "depth": ("vision_depth", 1), "heads": ("vision_heads", 1),
    "mlp_ratio": ("mlp_ratio_vision", 4), "drop_path": ("drop_path_rate", 0.0),
}  # fmt: skip
TEXT = {
    "vocab_size": ("vocab_size", 5), "hidden_size": ("hidden_size", 0),
    "num_layers": ("num_hidden_layers", 2), "fusion_layer": ("fusion_layer", 1),
    "num_heads": ("text_heads", 1), "intermediate_size": ("intermediate_size", 8),
    "max_positions": ("max_position_embeddings", 8), "type_vocab_size": ("type_vocab_size", 2),
    "dropout": ("dropout", 0.0), "eps": ("layer_norm_eps_text", 1e-12),
}  # fmt: skip
NEGATIVES = ("neg_video_idx", "neg_text_idx")  # of a case
SPECIAL = {"cls_id": 1, "sep_id": 2, "mask_id": 3, "unk_id": 4}  # the notes of the cases say so


def frame(c: Config) -> Config:
    networks = {
        name: {ours: c.get(theirs, default) for ours, (theirs, default) in sizes.items()}
        for name, sizes in (("vision", VISION), ("text", TEXT))
    }
    return networks | {
        "lr": c.get("learning_rate", 1e-4),
        "min_lr": 1e-8,
        "epochs": 1,
        "warmup_ratio": c.get("warmup_ratio", 0.05),
        "betas": c.get("betas", (0.9, 0.98)),
        "eps": c.get("eps", 1e-6),
        "weight_decay": c.get("weight_decay_effective", 0.0),
    }


def aligned(c: Config) -> Config:
    sizes = {"embed_dim": c.get("embed_dim", 8), "temperature": 0.07, "seed": 0}
    return frame(c) | sizes | {"evaluation": {"k_test": "all", "score": "probability"}}


def pretraining(c: Config, weights: Inputs, rule: str = "official") -> Pretraining:
    """With a prompter if the case has one, whose regions are black where the pixels are 0."""
    module = Pretraining(
        align=True,
        prompt="num_entities" in c,
        entities=None,
        num_entities=c.get("num_entities", 0),
        keep=rule,  # type: ignore[arg-type]
        threshold=c.get("ignore_threshold", 0.2),
        mean=c.get("mean", (0.0, 0.0, 0.0)),
        std=c.get("std", (1.0, 1.0, 1.0)),
        mlm_probability=c.get("mlm_probability", 0.15),
        **SPECIAL,
        **aligned(c),
    )
    return filled(module, weights).train()


def retrieval(c: Config, weights: Inputs) -> Retrieval:
    return filled(Retrieval(**aligned(c)), weights).train()


def answering(c: Config, weights: Inputs, **more: Any) -> VideoQA:
    module = VideoQA(num_answers=c["num_labels"], **frame(c), **more)
    return filled(module, weights).train()


def filled(module: M, weights: Inputs) -> M:
    """The module with a case's weights; what a case leaves out keeps its values."""
    official.load(module, names(module) | weights)
    return module


def names(module: Method) -> Inputs:
    """The module's present state under official names."""
    return snapshot(official.export(module))


def gradients(module: Method) -> Outputs:
    """`grad.<official name>` of each parameter."""
    with gradients_as_weights(module):
        return {f"grad.{name}": value for name, value in names(module).items()}


def batch_of(clips: Tensor, inputs: Inputs) -> Inputs:
    """Our names of a case's inputs."""
    return {
        "images": clips,
        "indices": torch.arange(len(clips)),
        "input_ids": inputs["text_input_ids"],
        "attention_mask": inputs["text_input_mask"],
    }
