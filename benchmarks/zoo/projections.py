"""Where both towers meet: the projections into one space that lie beside their files."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from shared.checkpoints.pretrained_text import load_hugging_face
from shared.checkpoints.pretrained_vision import load_vision
from shared.checkpoints.reading import load_checkpoint
from shared.checkpoints.writing import AtomicCheckpointIO
from shared.nn.building import build
from shared.training.method import Method


def projection_of(tower: Path) -> Path:
    """The file beside a tower's, of `weight` and `bias` and, with the vision tower's, `names`, the
    vectors of the concepts."""
    return tower.with_suffix(".projection.safetensors")


def join(vision: Path, text: Path, given: DictConfig, path: Path) -> None:
    """Write what `warm_start` reads: the module of the experiment `given`, from both towers with
    their projections, the rest random."""
    config: Any = OmegaConf.to_container(given, resolve=True)
    torch.manual_seed(0)
    module: Any = build(config["method"], Method)
    encoders = module.encoders
    load_vision(encoders.visual_encoder, str(vision))
    load_hugging_face(encoders.text_encoder, text, encoders.word_head)
    for tower, layer in ((vision, encoders.vision_proj), (text, encoders.text_proj)):
        learned = load_checkpoint(projection_of(tower))
        layer.load_state_dict({name: learned[name] for name in ("weight", "bias")})
    module.momentum_encoders.update(encoders, 0.0)
    content: dict[str, Any] = {"state_dict": module.state_dict()}
    content["hyper_parameters"] = dict(module.hparams)
    module.on_save_checkpoint(content)
    AtomicCheckpointIO().save_checkpoint(content, path)
