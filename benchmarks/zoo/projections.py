"""Where both towers meet: the projections into one space that lie beside their files, and the
attention with which fusion begins."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from shared.checkpoints.pretrained_text import load_hugging_face
from shared.checkpoints.pretrained_vision import load_vision
from shared.checkpoints.reading import load_checkpoint
from shared.checkpoints.writing import AtomicCheckpointIO
from shared.nn.building import build
from shared.nn.image_text import ImageTextEncoders
from shared.training.method import Method

SHARPNESS = 0.5  # a right text gives [CLS] of an unseen drawing three times the attention of others


def projection_of(tower: Path) -> Path:
    """The file beside a tower's, of `weight` and `bias` and, with the vision tower's, `names`, the
    vectors of the concepts."""
    return tower.with_suffix(".projection.safetensors")


def join(vision: Path, text: Path, given: DictConfig, path: Path) -> None:
    """Write what `warm_start` reads: the module of the experiment `given`, from both towers with
    their projections, the first cross-attention from these, and the rest random."""
    config: Any = OmegaConf.to_container(given, resolve=True)
    torch.manual_seed(0)
    module: Any = build(config["method"], Method)
    encoders = module.encoders
    load_vision(encoders.visual_encoder, str(vision))
    load_hugging_face(encoders.text_encoder, text, encoders.word_head)
    for tower, layer in ((vision, encoders.vision_proj), (text, encoders.text_proj)):
        learned = load_checkpoint(projection_of(tower))
        layer.load_state_dict({name: learned[name] for name in ("weight", "bias")})
    ask_as_contrast(encoders, SHARPNESS)
    module.momentum_encoders.update(encoders, 0.0)
    content: dict[str, Any] = {"state_dict": module.state_dict()}
    content["hyper_parameters"] = dict(module.hparams)
    module.on_save_checkpoint(content)
    AtomicCheckpointIO().save_checkpoint(content, path)


@torch.no_grad()
def ask_as_contrast(encoders: ImageTextEncoders, sharpness: float) -> None:
    """Let the first cross-attention look for what both projections have in common.

    Its scores become the inner products of the projected text and the projected image tokens,
    dealt out to the heads by singular value, times `sharpness`: a matching head then sees from the
    first step on whether [CLS] of the image attracts the text. From random scores it takes
    thousands of steps to begin.
    """
    attention: Any = next(
        layer.cross_attention
        for layer in encoders.text_encoder.layers
        if layer.cross_attention is not None
    )
    common = encoders.text_proj.weight.T @ encoders.vision_proj.weight
    left, strength, right = torch.linalg.svd(common)
    width = attention.query.out_features // attention.heads
    scale = (sharpness * strength * width**0.5).sqrt()[:, None]

    def dealt(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (width, attention.heads)).transpose(0, 1).flatten(0, 1)

    attention.query.weight.copy_(dealt(left.T * scale))
    attention.key.weight.copy_(dealt(right * scale))
    attention.query.bias.zero_()
    attention.key.bias.zero_()
